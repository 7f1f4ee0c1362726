"""SGDW."""

from typing import Any

from oxistep.zoo._base import Optimizer, Params, checked_rate
from oxistep.zoo._parts import begun, cautious, decay_rate, largest_lr, refused

__all__ = ["SGDW"]


class SGDW(Optimizer):
    r"""SGD with momentum and decoupled weight decay.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b = g \text{ at first}) \\
        \theta &\leftarrow \theta - \gamma b \qquad (g + \mu b \text{ with Nesterov's momentum})

    As ``timm.optim.SGDW``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        momentum: :math:`\mu` (default: 0).
        dampening: :math:`\tau` (default: 0).
        weight_decay: :math:`\lambda`, decoupled (default: 0).
        nesterov: Nesterov's momentum (default: False).
        caution: with a momentum, skip elements whose update and gradient differ in sign, and scale the others up
            (default: False).
        corrected_weight_decay: decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma` (default: False).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
        differentiable: False; True is refused, because autograd cannot see the step (default: False).
        state_dtype: how to store the states: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"`` (default: None).
        weights: how to keep the digits that bfloat16 parameters cannot hold: ``"stochastic"``, ``"kahan"``,
            ``"residual8"``, ``"residual16"`` or ``"master"``; float16 takes ``"kahan"`` and ``"master"`` only
            (default: None, round to nearest).
        seed: seed of the random rounding that ``weights`` and ``state_dtype`` use (default: 0).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients inside the step, without modifying them (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters (default: None).

    State:
        step: steps done, 0-dimensional float32.
        momentum_buffer: with a momentum :math:`b`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.SGDW([w], lr=0.1, momentum=0.9, weight_decay=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.79

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        state_dtype: Any = None,
        weights: Any = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "momentum": checked_rate(momentum, "momentum value"),
                "dampening": dampening,
                "weight_decay": checked_rate(weight_decay, "weight_decay value"),
                "nesterov": nesterov,
                "caution": caution,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": largest_lr(lr, corrected_weight_decay),
                "foreach": foreach,
                "differentiable": refused("differentiable", differentiable),
            },
            maximize=maximize,
            state_dtype=state_dtype,
            weights=weights,
            seed=seed,
            ema=ema,
            ema_warmup=ema_warmup,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            grad_norm_group=grad_norm_group,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        begun(self, "momentum_buffer")  # timm counts no steps

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        momentum: Any,
        dampening: Any,
        weight_decay: Any,
        nesterov: bool,
        caution: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
    ) -> Any:
        p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
        if momentum == 0:
            return p - lr * g
        if dampening == 0:
            s.momentum_buffer = momentum * s.momentum_buffer + g
        else:
            s.momentum_buffer = g if s.step == 1 else momentum * s.momentum_buffer + (1 - dampening) * g
        u = momentum * s.momentum_buffer + g if nesterov else s.momentum_buffer
        return p - lr * (cautious(u, g) if caution else u)
