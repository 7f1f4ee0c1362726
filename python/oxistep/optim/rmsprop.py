"""RMSprop."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.rmsprop import rmsprop as rmsprop

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import zero_step, zeros

__all__ = ["RMSprop", "rmsprop"]

# torch's class, whatever may be put under its name later
_RMSprop = torch.optim.RMSprop


class RMSprop(NativeStep, _RMSprop):
    r"""RMSprop: the gradient divided by a running root mean square of itself.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        a &\leftarrow \alpha a + (1 - \alpha) g, \quad \tilde v = v - a^2 \text{ if centered, else } v \\
        b &\leftarrow \mu b + g / (\sqrt{\tilde v} + \epsilon) \\
        \theta &\leftarrow \theta - \gamma b

    Equal to torch's for-loop bit for bit in float32 and float64, where torch's own square roots are rounded correctly.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-2).
        alpha: decay of the running averages (default: 0.99).
        eps: :math:`\epsilon`, outside the root (default: 1e-8).
        weight_decay: :math:`\lambda` (default: 0).
        momentum: :math:`\mu`; zero keeps no buffer (default: 0).
        centered: divide by the standard deviation instead of the root mean square (default: False).
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
        square_avg: :math:`v`, in the parameter's shape and dtype.
        momentum_buffer: :math:`b`, with momentum; in the parameter's shape and dtype.
        grad_avg: :math:`a`, if centered; in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.RMSprop`` rejects an argument; if ``state_dtype`` or ``weights`` is none of the
            above; if ``seed`` is not in [0, 2**64), or ``ema`` not in [0, 1); if ``max_grad_norm`` is not above
            zero.
        RuntimeError: in ``step``, for a sparse gradient, before anything is updated.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.RMSprop([w], lr=0.01, alpha=0.75)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.98

    Reference:
        Hinton, lecture 6 of "Neural Networks for Machine Learning", 2012; centered: Graves, "Generating Sequences With
        Recurrent Neural Networks", 2013.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
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
        _RMSprop.__init__(
            self,
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            capturable=capturable,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    state = {"step": zero_step(p, group), "square_avg": zeros(p)}
    if group["momentum"] > 0:
        state["momentum_buffer"] = zeros(p)
    if group["centered"]:
        state["grad_avg"] = zeros(p)
    return state


define(RMSprop, "rmsprop", _RMSprop, _new_state)
