"""Schedule-free SGD."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_rate
from oxistep.zoo._schedulefree import ScheduleFree, begin, checked_momentum, warmed_up, weight_of

__all__ = ["SGDScheduleFree"]


class SGDScheduleFree(ScheduleFree, Optimizer):
    r"""Schedule-free SGD: an average of the iterates takes the place of a schedule.

    .. math::
        c &= w_k / \sum_{j \le k} w_j, \qquad w_k = k^r \gamma_{max}^{power} \\
        d &= g + \lambda \theta \\
        \theta &\leftarrow \theta + c (z - \theta) - \gamma (1 - \mu (1 - c)) d \\
        z &\leftarrow z - \gamma d

    As ``schedulefree.SGDScheduleFree``: names, order, defaults, param-group keys and states. Call ``train()`` before
    training and ``eval()`` before the parameters are tested or saved.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1.0).
        momentum: :math:`\mu`, between 0 and 1 exclusive (default: 0.9).
        weight_decay: :math:`\lambda`, at the point where gradients are taken (default: 0).
        warmup_steps: steps in which the learning rate grows to ``lr`` (default: 0).
        r: steps count in the average with their number to this power (default: 0.0).
        weight_lr_power: and with the largest learning rate so far to this power (default: 2).
        foreach: a key of the param groups, as in schedulefree; it changes nothing (default: True).
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
        z: where plain SGD is, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        Of the group: ``k`` steps done, ``weight_sum``, ``lr_max``, ``scheduled_lr``, ``train_mode``.

    Raises:
        ValueError: for a hyperparameter out of range, in schedulefree's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.SGDScheduleFree([w], lr=0.1)
        >>> optimizer.train()
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> optimizer.eval()
        >>> round(w.item(), 6)
        0.8

    Reference:
        Defazio et al., "The Road Less Scheduled", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        foreach: bool | None = True,
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
            begin(
                lr=checked_rate(lr),
                momentum=checked_momentum(momentum),
                r=r,
                warmup_steps=warmup_steps,
                weight_lr_power=weight_lr_power,
                weight_decay=checked_rate(weight_decay, "weight_decay value"),
                foreach=foreach,
            ),
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
        momentum: Any,
        weight_decay: Any,
        warmup_steps: Any,
        r: Any,
        weight_lr_power: Any,
        train_mode: bool = True,
    ) -> Any:
        z = s.get("z", p)
        if not train_mode:  # of a step that moves nothing
            return p
        lr = warmed_up(s, lr, warmup_steps)
        weight = weight_of(s, lr, r, weight_lr_power)
        d = rules.fma(p, weight_decay, g) if weight_decay != 0 else g
        s.z = rules.fma(d, -lr, z)
        return rules.fma(d, lr * (momentum * (1 - weight) - 1), rules.lerp(p, z, weight))
