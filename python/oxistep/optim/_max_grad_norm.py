"""``max_grad_norm`` and ``skip_nonfinite``: gradients clipped as the step reads them, and steps left out.

Both are kept on the instance, as ``state_dtype`` is: distributed checkpoints read every key of a param group.
"""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._state_dtype import StateDtype

_PARAMETERS = [
    inspect.Parameter("max_grad_norm", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="float | None"),
    inspect.Parameter("skip_nonfinite", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool"),
]


class MaxGradNorm(StateDtype):
    """An optimizer whose constructor takes ``max_grad_norm`` and ``skip_nonfinite`` after torch's arguments."""

    last_grad_norm: Tensor | None = None
    """The norm of all gradients at the last step, before clipping: 0-dimensional, of the dtype that
    ``torch.nn.utils.get_total_norm`` gives. ``None`` before the first step with either option."""

    _max_grad_norm: float | None = None
    _skip_nonfinite: bool = False
    _guarded: bool = False
    """Whether either is on."""

    def __init__(
        self, *args: Any, max_grad_norm: float | None = None, skip_nonfinite: bool = False, **kwargs: Any
    ) -> None:
        # assigned only where they differ from the default, so that attributes of a plain optimizer stay torch's
        if max_grad_norm is not None:
            self.max_grad_norm = max_grad_norm
        if skip_nonfinite is not False:
            self.skip_nonfinite = skip_nonfinite
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows torch's signature with ours after it."""
        super().__init_subclass__(**kwargs)
        if "_torch" in cls.__dict__:
            shown = cls.__signature__
            cls.__signature__ = shown.replace(parameters=[*shown.parameters.values(), *_PARAMETERS])

    @property
    def max_grad_norm(self) -> float | None:
        """The largest norm of all gradients that a step uses; may be set between steps."""
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        given: Any = value  # whatever the annotation says
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, Real):
                raise TypeError(f"max_grad_norm: expected a positive number or None, got {type(given).__name__}")
            value = float(given)
            if not value > 0:
                raise ValueError(f"max_grad_norm: expected a positive number or None, got {given}")
        self._max_grad_norm = value
        self._guarded = value is not None or self._skip_nonfinite

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a step with a NaN or an infinity among its gradients is skipped; may be set between steps."""
        return self._skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        given: Any = value
        if not isinstance(given, bool):
            raise TypeError(f"skip_nonfinite: expected True or False, got {type(given).__name__}")
        self._skip_nonfinite = value
        self._guarded = value or self._max_grad_norm is not None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._guarded:
            state |= {key: self.__dict__[key] for key in _KEPT if key in self.__dict__}
        return state

    def _guarded_by_torch(self, unscale: Callable[[], None] | None) -> bool:
        """What the native plan does before the first write, with torch's operations. ``False``: the step is skipped."""
        from oxistep._clip import _norm_with, _scale_all

        if unscale is not None:
            unscale()
        if not self._guarded:
            return True
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            self._note_norm(None)
            return True
        norm = _norm_with(None, grads, grads[0].device)
        self._note_norm(norm)
        if self._skip_nonfinite and not norm.isfinite():
            return False
        if self._max_grad_norm is not None:
            wide = norm if norm.dtype == torch.float64 else norm.float()
            factor = torch.clamp(self._max_grad_norm / (wide + 1e-6), max=1.0).item()
            if factor != 1.0:
                _scale_all(grads, factor)
        return True

    def _note_norm(self, norm: Tensor | None) -> None:
        self.last_grad_norm = torch.tensor(0.0) if norm is None else norm


_KEPT = ("_max_grad_norm", "_skip_nonfinite", "_guarded")
