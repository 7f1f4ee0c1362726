"""LAMB."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._group_counts import GroupCounts
from oxistep.zoo._parts import cautious, decay_rate, largest_lr, trust

__all__ = ["LAMB"]


class LAMB(GroupCounts, Optimizer):
    r"""LAMB: the update of Adam, scaled to the norm of each parameter, for large batches.

    .. math::
        g &\leftarrow g / \max(1, \|g_{all}\| / max\_grad\_norm) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda \theta \\
        \theta &\leftarrow \theta - \gamma \frac{\|\theta\|}{\|u\|} u

    As ``timm.optim.Lamb``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        bias_correction: divide the means by what their weights sum to (default: True).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        eps: :math:`\epsilon`, added to the root (default: 1e-6).
        weight_decay: :math:`\lambda` (default: 0.01).
        grad_averaging: weigh gradients with :math:`1 - \beta_1` in the mean, not with 1 (default: True).
        max_grad_norm: the largest norm of all gradients together, a key of the param groups; None does not clip, and
            leaves the group out of the norm (default: 1.0).
        trust_clip: no ratio of norms above 1 (default: False).
        always_adapt: scale also where there is no weight decay (default: False).
        caution: skip elements whose update and gradient differ in sign, and scale the others up (default: False).
        decoupled_decay: decay the parameter, not through the update (default: False).
        corrected_weight_decay: decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma`, if
            decoupled (default: False).
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
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters (default: None).

    State:
        step: steps done, 0-dimensional float32.
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        Of the group: ``step``, :math:`t`, which counts every step of the optimizer.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.LAMB([w], lr=0.1, weight_decay=0.0)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
        caution: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        *,
        state_dtype: Any = None,
        weights: Any = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        skip_nonfinite: bool = False,
        grad_norm_group: Any = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "bias_correction": bias_correction,
                "betas": checked_betas(betas),
                "eps": checked_rate(eps, "epsilon"),
                "weight_decay": checked_rate(weight_decay, "weight_decay"),
                "grad_averaging": grad_averaging,
                "max_grad_norm": max_grad_norm,
                "trust_clip": trust_clip,
                "always_adapt": always_adapt,
                "caution": caution,
                "decoupled_decay": decoupled_decay,
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
            skip_nonfinite=skip_nonfinite,
            grad_norm_group=grad_norm_group,
        )

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        bias_correction: bool,
        betas: Any,
        eps: Any,
        weight_decay: Any,
        grad_averaging: bool,
        trust_clip: bool,
        always_adapt: bool,
        caution: bool,
        decoupled_decay: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
        max_grad_norm: Any = None,
    ) -> Any:
        beta1, beta2 = betas
        s.group.step = step = s.group.get("step", 0) + 1
        if max_grad_norm is not None:
            g = g * (1 / rules.maximum(rules.sqrt(rules.total(rules.dot(g, g))) / max_grad_norm, 1.0))
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1) if grad_averaging else rules.fma(s.exp_avg, beta1, g)
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, g, g, value=1 - beta2)
        bias1, bias2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
        u = s.exp_avg / (rules.sqrt(s.exp_avg_sq) * (bias1 / rules.sqrt(bias2)) + eps * bias1)
        if caution:
            u = cautious(u, g)
        if weight_decay != 0 and decoupled_decay:
            p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
        elif weight_decay != 0:
            u = rules.fma(p, weight_decay, u)
        if weight_decay != 0 or always_adapt:
            lr = lr * trust(p, u, trust_clip)
        return rules.fma(u, -lr, p)
