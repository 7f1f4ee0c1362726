"""RMSpropTF."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_rate
from oxistep.zoo._parts import cautious, decay_rate, largest_lr

__all__ = ["RMSpropTF"]


class RMSpropTF(Optimizer):
    r"""RMSprop as TensorFlow has it: :math:`\epsilon` in the root, squares that begin as ones, rates in the momentum.

    .. math::
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \qquad (v = 1 \text{ at first}) \\
        b &\leftarrow \mu b + \gamma g / \sqrt{v + \epsilon} \\
        \theta &\leftarrow \theta - b

    As ``timm.optim.RMSpropTF``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-2).
        alpha: :math:`\alpha` (default: 0.9).
        eps: :math:`\epsilon` (default: 1e-10).
        weight_decay: :math:`\lambda`, added to the gradient (default: 0).
        momentum: :math:`\mu` (default: 0).
        centered: divide by the variance of gradients, :math:`v` less the square of their mean (default: False).
        decoupled_decay: multiply the parameter with :math:`1 - \gamma \lambda` instead (default: False).
        corrected_weight_decay: if decoupled, decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma`
            (default: False).
        lr_in_momentum: False multiplies with :math:`\gamma` when the parameter moves, as torch does (default: True).
        caution: with a momentum, skip elements whose update and gradient differ in sign, and scale the others up
            (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
        maximize: ascend instead of descend (default: False).
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
        square_avg: :math:`v`, in the parameter's shape and dtype.
        momentum_buffer: with a momentum :math:`b`.
        grad_avg: if centered, the mean of gradients.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.RMSpropTF([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.824588

    Reference:
        Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; Tan, Le, "EfficientNet", 2019, for the recipe.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0,
        momentum: float = 0.0,
        centered: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        lr_in_momentum: bool = True,
        caution: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
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
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "alpha": checked_rate(alpha, "alpha value"),
                "eps": checked_rate(eps, "epsilon"),
                "weight_decay": checked_rate(weight_decay, "weight_decay"),
                "momentum": checked_rate(momentum, "momentum"),
                "centered": centered,
                "decoupled_decay": decoupled_decay,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": largest_lr(lr, corrected_weight_decay),
                "lr_in_momentum": lr_in_momentum,
                "caution": caution,
                "foreach": foreach,
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

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        alpha: Any,
        eps: Any,
        weight_decay: Any,
        momentum: Any,
        centered: bool,
        decoupled_decay: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
        lr_in_momentum: bool,
        caution: bool,
    ) -> Any:
        if weight_decay != 0:
            if decoupled_decay:
                p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
            else:
                g = weight_decay * p + g
        square = s.square_avg = rules.lerp(s.get("square_avg", rules.full_like(p, 1.0)), g * g, 1 - alpha)
        if centered:
            s.grad_avg = rules.lerp(s.grad_avg, g, 1 - alpha)
            square = square - s.grad_avg * s.grad_avg
        root = rules.sqrt(square + eps)
        if momentum == 0:
            return rules.addcdiv(p, g, root, -lr)
        within, after = (lr, 1.0) if lr_in_momentum else (1.0, lr)
        s.momentum_buffer = rules.addcdiv(s.momentum_buffer * momentum, g, root, within)
        u = cautious(s.momentum_buffer, g) if caution else s.momentum_buffer
        return p - u if lr_in_momentum else p - after * u
