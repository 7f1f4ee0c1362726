"""Clipping of gradients with torch's signatures and results: one read of them, and no write where none is due."""

import sys
import types
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import utils as torch_utils

from oxistep import _core
from oxistep.optim import _modes

__all__ = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"]

_ORDERS = (1.0, 2.0, float("inf"))
_is_compiling = torch.compiler.is_compiling
_is_inference = Tensor.is_inference


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of tensors as one vector, as ``torch.nn.utils.get_total_norm``.

    Sums are kept in float64 and rounded once: more exact than torch's, without overflow and underflow on the way, and
    the same bits whatever the number of threads and the order of the tensors. Tensors on other devices, sparse ones and
    subclasses take torch's own way, and so does a ``norm_type`` other than 1, 2 and infinity.

    Of DTensors each rank measures its local shards, and what they come to is reduced once over their mesh: every rank
    of it must call this. The norm is then a DTensor, as with torch, or a plain tensor if there are plain tensors among
    them, or several meshes.

    Args:
        tensors: a tensor or an iterable of them.
        norm_type: order of the norm; ``float("inf")`` for the largest absolute value (default: 2.0).
        error_if_nonfinite: raise if the norm is NaN or infinite (default: False).
        foreach: as in torch; chooses among torch's own ways (default: None).

    Returns:
        Tensor: the norm, 0-dimensional, on the device of the first tensor, of the dtype that torch promotes all to.

    Raises:
        RuntimeError: with ``error_if_nonfinite``, if the norm is not finite; for tensors that torch refuses.

    Example:
        >>> import torch, oxistep
        >>> oxistep.get_total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm_type = float(norm_type)
    if not tensors or norm_type not in _ORDERS or _torch_only():
        return torch_utils.get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    if _are_shards(tensors):
        norm = _norm_over_ranks(tensors, norm_type)
    else:
        norm, _ = _total_norm(tensors, norm_type, foreach)
    if error_if_nonfinite:
        _refuse_nonfinite(norm, norm_type)
    return norm


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients in place so that their norm as one vector is ``max_norm`` at most.

    As ``torch.nn.utils.clip_grad_norm_``: every gradient is multiplied by ``max_norm / (norm + 1e-6)`` where that is
    below one. Otherwise nothing is written, where torch multiplies by one. For the norm see :func:`get_total_norm`.
    Each native optimizer can clip as it steps, without writing the gradients at all: ``max_grad_norm=``.

    Args:
        parameters: a parameter or an iterable of them; those without a gradient are passed over.
        max_norm: the largest norm allowed.
        norm_type: order of the norm; ``float("inf")`` for the largest absolute value (default: 2.0).
        error_if_nonfinite: raise if the norm is NaN or infinite, before anything is written (default: False: the
            gradients are scaled by what comes of it).
        foreach: as in torch; chooses among torch's own ways (default: None).

    Returns:
        Tensor: the norm before clipping, 0-dimensional.

    Raises:
        RuntimeError: with ``error_if_nonfinite``, if the norm is not finite; for gradients that torch refuses.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> oxistep.clip_grad_norm_([w], max_norm=1.0)
        tensor(5.)
        >>> w.grad
        tensor([0.6000, 0.8000])

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    else:
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and not parameters:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    norm_type, max_norm = float(norm_type), float(max_norm)
    if not grads or norm_type not in _ORDERS or _torch_only():
        return torch_utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    left: list[int] = []
    if _are_shards(grads):
        norm = _norm_over_ranks(grads, norm_type)
    else:
        norm, left = _total_norm(grads, norm_type, foreach)
    if error_if_nonfinite:
        _refuse_nonfinite(norm, norm_type)
    number: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    factor = _core.clip_factor(number, max_norm)
    if factor != 1.0:
        _scale(grads, set(left), factor, number, max_norm)
    return norm


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor],
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    """Brings every element of the gradients between ``-clip_value`` and ``clip_value``, in place.

    As ``torch.nn.utils.clip_grad_value_``; NaN stays NaN.

    Args:
        parameters: a parameter or an iterable of them; those without a gradient are passed over.
        clip_value: the largest absolute value allowed.
        foreach: as in torch; chooses among torch's own ways (default: None).

    Raises:
        NotImplementedError: for complex gradients, as in torch.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(3, requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -4.0, 0.5])
        >>> oxistep.clip_grad_value_(w, 1.0)
        >>> w.grad
        tensor([ 1.0000, -1.0000,  0.5000])
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    clip_value = float(clip_value)
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    native = clip_value == clip_value and not _torch_only() and not _unwritable(grads)
    if not (native and _core.clamp(grads, -clip_value, clip_value)):
        # what torch refuses, before it has changed the others
        if refused := [p for p in parameters if p.grad is not None and p.grad.is_complex()]:
            torch_utils.clip_grad_value_(refused, clip_value, foreach)
        torch_utils.clip_grad_value_(parameters, clip_value, foreach)


def _torch_only() -> bool:
    """Whether everything is torch's: its operations are being traced or watched, or the user wants it so."""
    return _is_compiling() or _modes.because() is not None


def _unwritable(grads: list[Tensor]) -> bool:
    """Whether torch refuses to change one of them in place."""
    return not torch.is_inference_mode_enabled() and any(map(_is_inference, grads))


def _total_norm(tensors: list[Tensor], norm_type: float, foreach: bool | None) -> tuple[Tensor, list[int]]:
    """The norm of all, and the places of those that are torch's."""
    norm, left = _core.grad_norm(tensors, norm_type)
    if not left:
        return norm, left
    if not all(isinstance(tensors[i], Tensor) for i in left):
        return torch_utils.get_total_norm(tensors, norm_type, False, foreach), left  # which raises
    device = tensors[0].device
    others = torch_utils.get_total_norm([tensors[i] for i in left], norm_type, False, foreach)
    if norm is None:
        return others.to(device), left
    with torch.no_grad():
        return torch.linalg.vector_norm(torch.stack([norm.to(device), others.to(device)]), norm_type), left


def _are_shards(tensors: list[Tensor]) -> bool:
    """Whether there are DTensors among them, of which each rank can measure its own."""
    dtensors = _dtensors(tensors)
    return bool(dtensors) and not any(placement.is_partial() for t in dtensors for placement in t._spec.placements)


def _dtensors(tensors: list[Tensor]) -> list[Any]:
    """Those that are DTensors, of which there are none before their module is imported."""
    if "torch.distributed.tensor" not in sys.modules:
        return []
    from torch.distributed.tensor import DTensor

    return [t for t in tensors if type(t) is DTensor]


def _norm_over_ranks(tensors: list[Tensor], norm_type: float) -> Tensor:
    """The norm of tensors of which some are DTensors."""
    from torch.distributed.tensor import DTensor, Replicate

    from oxistep.optim._ranks import Ranks

    shards = [t for t in tensors if type(t) is DTensor]
    plain = [t for t in tensors if type(t) is not DTensor]
    ranks = Ranks([t._spec for t in shards])
    try:
        own, left = _core.grad_norm_in_double(plain, norm_type)
        others = [plain[i] for i in left]
        norms = []
        for place in range(len(ranks.meshes)):
            counted = [t for t, share in zip(shards, ranks.shares, strict=True) if share == place]
            norm, left = _core.grad_norm_in_double([t._local_tensor for t in counted], norm_type)
            norms.append(norm)
            others += [counted[i] for i in left]
    except BaseException:
        ranks.call_off(None)
        raise
    dtypes = {t.dtype.to_real() for t in tensors}
    double = torch.float64 in dtypes
    value, double = ranks.norm(None, norms, own, double, others, norm_type)
    dtype = torch.float64 if double else dtypes.pop() if len(dtypes) == 1 else torch.float32
    total = torch.tensor(value, dtype=dtype, device=tensors[0].device)
    if plain or len(ranks.meshes) > 1:
        return total
    mesh = ranks.meshes[0]
    return DTensor.from_local(total, mesh, [Replicate()] * mesh.ndim, run_check=False)


def _refuse_nonfinite(norm: Tensor, norm_type: float) -> None:
    """Raises torch's error for a norm that is not finite."""
    if torch.logical_or(norm.isnan(), norm.isinf()):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )


def _scale(grads: list[Tensor], left: set[int], factor: float | None, norm: Tensor, max_norm: float) -> None:
    """Multiplies all gradients: those in ``left`` by torch, and first, since it may refuse."""
    if dtensors := _dtensors(grads):  # each rank scales its shards; the version that autograd sees is the DTensor's
        grads = [getattr(grad, "_local_tensor", grad) for grad in grads]
        torch._C._increment_version(dtensors)
    ours = [grad for i, grad in enumerate(grads) if i not in left] if left else grads
    with torch.no_grad():
        if _unwritable(grads):
            ours, left = [], set(range(len(grads)))
        if left or factor is None:
            coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            for i in sorted(left):
                grads[i].mul_(coefficient.to(grads[i].device))
            factor = coefficient.item() if ours and factor is None else factor
        if ours and factor is not None and not _core.scale(ours, factor):
            for grad in ours:
                grad.mul_(factor)


def _norm_with(native: Tensor | None, grads: list[Tensor], device: torch.device) -> Tensor:
    """The 2-norm of a step's gradients: of the native ones, already taken, and of ``grads``."""
    with torch.no_grad():
        norms = [] if native is None else [native.to(device)]
        for grad in grads:
            norm: Any = torch.linalg.vector_norm(grad)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a DTensor
            norms.append(norm.to(device))
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total


def _scale_all(grads: list[Tensor], factor: float) -> None:
    """Multiplies gradients that torch's part of a step will read."""
    with torch.no_grad():
        for grad in grads:
            grad.mul_(factor)
