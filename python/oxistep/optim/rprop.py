"""Resilient backpropagation."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _to_scalar
from torch.optim.rprop import rprop as rprop

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import filled, zero_step, zeros

__all__ = ["Rprop", "rprop"]

# torch's class, whatever may be put under its name later
_Rprop = torch.optim.Rprop


class Rprop(NativeStep, _Rprop):
    r"""Rprop: each element steps by a size of its own, which grows while its gradient keeps its sign.

    .. math::
        e &= \eta_+ \text{ if } g h > 0, \; \eta_- \text{ if } g h < 0, \; 1 \text{ else} \\
        s &\leftarrow \min(\max(e s, s_{\min}), s_{\max}) \\
        g &\leftarrow 0 \text{ where } e = \eta_- \\
        \theta &\leftarrow \theta - s \operatorname{sign}(g), \quad h \leftarrow g

    Equal to torch's for-loop bit for bit in float32 and float64. For full batches: the
    signs of noisy gradients mean little.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: what the step sizes start with, a number or a tensor of one element (default: 1e-2).
        etas: :math:`\eta_-, \eta_+` (default: (0.5, 1.2)).
        step_sizes: :math:`s_{\min}, s_{\max}` (default: (1e-6, 50)).
        maximize: ascend instead of descend (default: False).
        capturable, foreach, differentiable: as in torch. ``capturable`` and ``differentiable`` leave the step to torch;
            ``foreach`` does not change a native step.
        state_dtype: how to store the states: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"`` (default: None, as torch).
        weights: how to keep the digits that bfloat16 parameters cannot hold: ``"stochastic"``, ``"kahan"``,
            ``"residual8"``, ``"residual16"`` or ``"master"``; float16 takes ``"kahan"`` and ``"master"`` only
            (default: None, round to nearest).
        seed: seed of the random rounding that ``weights`` and ``state_dtype`` use (default: 0).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients inside the step, without modifying them (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters: ``"world"``, a
            process group, or a function that sums a small tensor over ranks (default: None, for ranks that hold all
            parameters, or DTensors).

    State:
        step: steps done, 0-dimensional float32 (float64 where that is torch's default dtype).
        prev: :math:`h`, in the parameter's shape and dtype.
        step_size: :math:`s`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.Rprop`` rejects an argument; if ``state_dtype`` or ``weights`` is none of the
            above; if ``seed`` is not in [0, 2**64), or ``ema`` not in [0, 1); if ``max_grad_norm`` is not above
            zero.
        RuntimeError: in ``step``, for a sparse gradient, before anything is updated.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.Rprop([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Riedmiller, Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        state_dtype: StateDType = None,
        weights: Weights = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: GradNormGroup = None,
    ) -> None:
        keep_settings(self, state_dtype, max_grad_norm, skip_nonfinite, grad_norm_group, weights, seed, ema, ema_warmup)
        _Rprop.__init__(
            self,
            params,
            lr=lr,
            etas=etas,
            step_sizes=step_sizes,
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    lr = _to_scalar(group["lr"])
    return {
        "step": zero_step(p, group),
        "prev": zeros(p),
        "step_size": filled(optimizer, p, lr, grad),
    }


define(Rprop, "rprop", _Rprop, _new_state)
