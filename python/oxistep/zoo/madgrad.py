"""MADGRAD."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params
from oxistep.zoo._parts import in_float32

__all__ = ["MADGRAD"]


class MADGRAD(Optimizer):
    r"""MADGRAD: dual averaging with momentum; the sum of gradients, over the cube root of the sum of their squares.

    .. math::
        l &= (\gamma + \epsilon) \sqrt{t} \\
        \nu &\leftarrow \nu + l g^2, \qquad s \leftarrow s + l g \\
        z &= \theta_0 - s / (\sqrt[3]{\nu} + \epsilon) \\
        \theta &\leftarrow \mu \theta + (1 - \mu) z

    As ``timm.optim.MADGRAD``: names, order, defaults, param-group keys and states. But a learning rate of 0 adds
    nothing to the sums, where timm adds :math:`\epsilon \sqrt{t} g` (and its constructor refuses 0).

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-2).
        momentum: :math:`\mu` (default: 0.9).
        weight_decay: added to the gradient, times the parameter (default: 0).
        eps: :math:`\epsilon` (default: 1e-6).
        decoupled_decay: multiply the parameter with :math:`1 - \gamma \lambda` instead (default: False).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups, as in torch; it changes nothing (default: None).
        state_dtype: how to store the states: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"``; without a momentum float32, which None is then too, and no other (default: None).
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
        grad_sum_sq, s: :math:`\nu, s`, in the parameter's shape and dtype.
        x0: with a momentum :math:`\theta_0`, the parameter before its first step.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.MADGRAD([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.972856

    Reference:
        Defazio, Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for
        Stochastic Optimization", 2021.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0,
        eps: float = 1e-6,
        decoupled_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        *,
        state_dtype: Any = None,
        weights: Any = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Momentum {momentum} must be in the range [0,1]")
        if lr < 0:
            raise ValueError(f"Learning rate {lr} must not be negative")
        if weight_decay < 0:
            raise ValueError(f"Weight decay {weight_decay} must be non-negative")
        if eps < 0:
            raise ValueError("Eps must be non-negative")
        if momentum == 0 and state_dtype is not None and "float32" not in str(state_dtype):
            raise ValueError(
                f"state_dtype={state_dtype!r}: without a momentum MADGRAD computes the parameter back from its states, "
                "which must be exact; give a momentum, or torch.float32"
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "eps": eps,
                "decoupled_decay": decoupled_decay,
                "foreach": foreach,
            },
            maximize=maximize,
            # without a momentum the parameter is computed back from the sums: they must be what they were
            state_dtype=in_float32(state_dtype) if momentum == 0 else state_dtype,
            weights=weights,
            seed=seed,
            ema=ema,
            ema_warmup=ema_warmup,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            grad_norm_group=grad_norm_group,
        )

    @staticmethod
    def update(
        p: Any, g: Any, s: Any, lr: Any, momentum: Any, weight_decay: Any, eps: Any, decoupled_decay: bool
    ) -> Any:
        start = s.get("x0", p) if momentum != 0 else None
        before = s.s / (rules.cbrt(s.grad_sum_sq) + eps) if momentum == 0 else None
        rate = rules.where(lr > 0, lr + eps, 0.0) * rules.sqrt(s.step)
        if weight_decay != 0:
            if decoupled_decay:
                p = p - lr * weight_decay * p
            else:
                g = weight_decay * p + g
        s.grad_sum_sq = rules.addcmul(s.grad_sum_sq, g, g, rate)
        s.s = s.s + rate * g
        away = s.s / (rules.cbrt(s.grad_sum_sq) + eps)
        if start is None:  # the parameter itself says where it began
            return p - (away - before)
        return rules.lerp(p, start - away, 1 - momentum)
