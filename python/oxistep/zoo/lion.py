"""Lion."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import cautious, decay_rate, largest_lr

__all__ = ["Lion"]


class Lion(Optimizer):
    r"""Lion: steps of one size for every element, in the direction of the sign of a mean of gradients.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        u &\leftarrow \mathrm{sign}(\beta_1 m + (1 - \beta_1) g) \\
        \theta &\leftarrow \theta - \gamma u \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    As ``timm.optim.Lion``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-4).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.99)).
        weight_decay: :math:`\lambda`, decoupled (default: 0).
        caution: skip elements whose update and gradient differ in sign, and scale the others up (default: False).
        corrected_weight_decay: decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma` (default: False).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
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
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Lion([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        caution: bool = False,
        corrected_weight_decay: bool = False,
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
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "weight_decay": weight_decay,
                "caution": caution,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": largest_lr(lr, corrected_weight_decay),
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
        betas: Any,
        weight_decay: Any,
        caution: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
    ) -> Any:
        beta1, beta2 = betas
        p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
        u = rules.sign(rules.lerp(s.exp_avg, g, 1 - beta1))
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta2)
        return p - lr * (cautious(u, g) if caution else u)
