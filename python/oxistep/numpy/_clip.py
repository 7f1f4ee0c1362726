"""Norms of gradients that are arrays, and what is done where they are too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oxistep._core import GradientStatistics
from oxistep.numpy._accepted import span_overlaps
from oxistep.numpy._hyper import real
from oxistep.numpy._structure import Flat, is_container
from oxistep.numpy._types import Array, Grad, Grads, kind

__all__ = ["Clipping", "clip_grad_norm", "clip_grad_value"]

_NORM, _LARGEST, _NAN, _INF = (GradientStatistics.fields().index(name) for name in ("norm", "largest", "nan", "inf"))
_SERVED: tuple[type[np.floating[Any]], ...] = (np.float64, np.float32, np.float16)


class Clipping:
    """What a step does with gradients before it takes them: the settings of one optimizer, and the norm found last."""

    __slots__ = ("max_norm", "norm", "skip_nonfinite")

    def __init__(self, max_norm: float | None, skip_nonfinite: bool) -> None:
        self.max_norm, self.skip_nonfinite = max_norm, skip_nonfinite
        self.norm: float | None = None

    def skipped(self) -> bool:
        """Whether the last step was left out."""
        return self.skip_nonfinite and self.norm is not None and not math.isfinite(self.norm)

    def applied(self, listed: list[list[Grad]], name_of: Callable[[int, int], str]) -> list[list[Grad]] | None:
        """The gradients as the step is to take them; none, if it is to be left out. Those given stay as they are.

        Args:
            listed: for each group its gradients.
            name_of: what errors call a parameter, by its group and its place in there.
        """
        arrays = [
            _readable(grad, name_of, k, i)
            for k, row in enumerate(listed)
            for i, grad in enumerate(row)
            if grad is not None
        ]
        self.norm = _norm(arrays, 2.0)
        if self.skipped():
            return None
        factor = 1.0 if self.max_norm is None else _factor(arrays, self.norm, self.max_norm)
        if factor == 1.0:
            return listed
        return [[None if grad is None else _scaled(grad, factor) for grad in row] for row in listed]


def clip_grad_norm(grads: Grads, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    """Scales gradients in place so that their norm as one vector is `max_norm` at most.

    As ``torch.nn.utils.clip_grad_norm_``: every gradient is multiplied by ``max_norm / (norm + 1e-6)`` where that is
    below one; otherwise nothing is written. The norm is summed in float64. An optimizer made with ``max_grad_norm=``
    does the same in its step, and leaves the gradients as they are.

    Args:
        grads: arrays of float64, float32 or float16, in any structure; None stands for no gradient.
        max_norm: the largest norm allowed.
        norm_type: order of the norm; ``float("inf")`` for the largest absolute value (default: 2.0).
        error_if_nonfinite: raise if the norm is NaN or infinite, before anything is written (default: False: the
            gradients are scaled by what comes of it).

    Returns:
        float: the norm before clipping.

    Raises:
        TypeError: for what is no array of these types; numbers cannot be scaled in place.
        ValueError: for a read-only array, or arrays that overlap. Whatever is raised, nothing has been changed.
        RuntimeError: with `error_if_nonfinite`, if the norm is not finite.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import clip_grad_norm
        >>> grads = {"w": np.array([3.0, 0.0]), "b": np.array(4.0)}
        >>> clip_grad_norm(grads, max_norm=1.0)
        5.0
        >>> grads["w"].round(3)
        array([0.6, 0. ])

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    max_norm, norm_type = float(real(max_norm, "max_norm")), float(real(norm_type, "norm_type"))
    arrays, written = _writeable(grads)
    norm = _norm(arrays, norm_type)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients is non-finite, so it cannot be clipped. To disable "
            "this error and scale the gradients by the non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    factor = _factor(arrays, norm, max_norm)
    if factor != 1.0:
        with np.errstate(all="ignore"):
            for array in written:
                np.multiply(array, _as_factor(array, factor), out=array)
    return norm


def clip_grad_value(grads: Grads, clip_value: float) -> None:
    """Brings every element of the gradients between ``-clip_value`` and ``clip_value``, in place.

    As ``torch.nn.utils.clip_grad_value_``; NaN stays NaN.

    Args:
        grads: arrays of float64, float32 or float16, in any structure; None stands for no gradient.
        clip_value: the largest absolute value allowed.

    Raises:
        TypeError: for what is no array of these types; numbers cannot be changed in place.
        ValueError: for a negative or NaN `clip_value`, a read-only array, or arrays that overlap. Whatever is raised,
            nothing has been changed.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import clip_grad_value
        >>> grads = [np.array([0.5, -3.0])]
        >>> clip_grad_value(grads, 1.0)
        >>> grads
        [array([ 0.5, -1. ])]
    """
    clip_value = float(real(clip_value, "clip_value"))
    if not clip_value >= 0:
        raise ValueError(f"clip_value: expected zero or more, got {clip_value}")
    for array in _writeable(grads)[1]:
        np.clip(array, -clip_value, clip_value, out=array)


def _writeable(grads: Any) -> tuple[list[Array], list[Array]]:
    """All gradients of a structure, as often as they are there; and once each, if they can be changed in place."""
    if not is_container(grads) and (isinstance(grads, np.ndarray) or not hasattr(grads, "__iter__")):
        grads = [grads]
    flat = Flat(grads if is_container(grads) else list(grads))
    named = [(f"grads[{name}]", grad) for name, grad in zip(flat.names, flat.arrays, strict=True) if grad is not None]
    for name, grad in named:
        if not isinstance(grad, np.ndarray) or isinstance(grad, np.ma.MaskedArray):
            raise TypeError(
                f"{name} is a {kind(grad)}, which cannot be changed in place; expected an array (np.array(value) makes "
                "one). An optimizer made with max_grad_norm= takes what its step takes"
            )
        if grad.dtype not in _SERVED:
            raise TypeError(f"{name} has dtype {grad.dtype}, expected float64, float32 or float16")
        if not grad.flags.writeable:
            raise ValueError(
                f"{name} is read-only, so it cannot be changed in place; clip a copy of it, "
                "grad = np.array(grad), and give that one to the step too"
            )
    once = {id(grad): (name, grad) for name, grad in named}
    if (pair := span_overlaps(once.values())) is not None:
        raise ValueError(f"{pair[1]} shares memory with {pair[0]}, which would be changed twice")
    return [grad for _, grad in named], [grad for _, grad in once.values()]


def _readable(grad: Grad, name_of: Callable[[int, int], str], k: int, i: int) -> Array:
    """A gradient as an array that can be measured."""
    if type(grad) is np.ndarray and grad.dtype.kind == "f":
        return grad
    name = name_of(k, i)
    if not isinstance(grad, np.ndarray | np.generic | int | float) or isinstance(grad, np.ma.MaskedArray):
        raise TypeError(
            f"the gradient of {name} is a {kind(grad)}, whose norm is not known; without max_grad_norm= and "
            "skip_nonfinite= the optimizer says whether it takes it"
        )
    array = np.asarray(grad)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"the gradient of {name} has dtype {array.dtype}, expected real numbers")
    return array


def _norm(arrays: Sequence[Array], order: float) -> float:
    """The norm of arrays as one vector, in float64: NaN where there is one, else infinite where there is infinity."""
    arrays = [_native(array) for array in arrays if array.size]
    found = np.empty((len(arrays), len(GradientStatistics.fields())))
    GradientStatistics().of_arrays(arrays, [str(i) for i in range(len(arrays))], found)
    if found[:, _NAN].any():
        return math.nan
    if found[:, _INF].any():
        return math.inf
    largest = float(found[:, _LARGEST].max(initial=0.0))
    if order == math.inf or largest == 0.0:
        return largest
    if order == 2.0 and 1e-140 < largest < 1e140:
        return math.hypot(*found[:, _NORM])
    # of numbers between 0 and 1, so that no power is infinite
    sums = [np.sum(np.abs(np.asarray(array, np.float64) / largest) ** order) for array in arrays]
    return largest * float(math.fsum(sums) ** (1 / order))


def _native(array: Array) -> Array:
    """As the native pass takes it."""
    if array.dtype in _SERVED and array.dtype.isnative and array.flags.aligned:
        return array
    return np.asarray(array, np.float64)


def _factor(arrays: Sequence[Array], norm: float, max_norm: float) -> float:
    """What gradients are multiplied with; torch computes it in their own type."""
    wide = np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32
    with np.errstate(all="ignore"):
        factor = wide(max_norm) / (wide(norm) + wide(1e-6))
    return 1.0 if factor >= 1 else float(factor)


def _as_factor(array: Array, factor: float) -> Any:
    """The factor in the type in which it is multiplied with."""
    return np.float64(factor) if array.dtype == np.float64 else np.float32(factor)


def _scaled(grad: Grad, factor: float) -> Grad:
    """A gradient times a factor, of its own type and layout; whole numbers become float64."""
    if isinstance(grad, int | float) and not isinstance(grad, np.generic):
        return float(grad) * factor
    array = np.asarray(grad)
    if array.dtype not in _SERVED:
        return np.multiply(array, factor, dtype=np.float64)
    with np.errstate(all="ignore"):
        scaled = np.multiply(array, _as_factor(array, factor), out=np.empty_like(array, subok=False))
    return scaled
