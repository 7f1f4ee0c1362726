"""Averaged stochastic gradient descent."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.asgd import asgd as asgd
from torch.optim.optimizer import ParamsT

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import zero_step, zeros

__all__ = ["ASGD", "asgd"]

# torch's class, whatever may be put under its name later
_ASGD = torch.optim.ASGD


class ASGD(NativeStep, _ASGD):
    r"""Gradient descent with a falling rate, and the average of the parameters it passes through.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        \theta &\leftarrow \theta (1 - \lambda' \eta) - \eta g \\
        a &\leftarrow a + \mu (\theta - a) \\
        \eta &\leftarrow \frac{\gamma}{(1 + \lambda' \gamma t)^\alpha}, \quad \mu \leftarrow \frac{1}{\max(1, t - t_0)}

    Equal to torch's for-loop bit for bit in float32, within the last place or two in float64.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-2).
        lambd: :math:`\lambda'`, decay of the parameter and of the rate (default: 1e-4).
        alpha: power with which the rate falls (default: 0.75).
        t0: when averaging starts (default: 1e6).
        weight_decay: :math:`\lambda` (default: 0).
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
        eta: :math:`\eta`, 0-dimensional float32.
        mu: :math:`\mu`, 0-dimensional float32.
        ax: :math:`a`, the average, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.ASGD`` rejects an argument; if ``state_dtype`` or ``weights`` is none of the above;
            if ``seed`` is not in [0, 2**64), or ``ema`` not in [0, 1); if ``max_grad_norm`` is not above zero.
        RuntimeError: in ``step``, for a sparse gradient, before anything is updated.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.ASGD([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.79999

    Reference:
        Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1000000.0,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
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
        _ASGD.__init__(
            self,
            params,
            lr=lr,
            lambd=lambd,
            alpha=alpha,
            t0=t0,
            weight_decay=weight_decay,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
            capturable=capturable,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    lr = group["lr"]
    return {
        "step": zero_step(p, group),
        "eta": zero_step(p, group) + (lr.item() if isinstance(lr, Tensor) else lr),
        "mu": zero_step(p, group) + 1.0,
        "ax": zeros(p),
    }


define(ASGD, "asgd", _ASGD, _new_state, scalars=("eta", "mu"))
