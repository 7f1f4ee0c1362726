"""NovoGrad."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import decay_rate, largest_lr

__all__ = ["NovoGrad"]


class NovoGrad(Optimizer):
    r"""NovoGrad: Adam with one second moment for each tensor, which needs no more memory than SGD with momentum.

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) \|g\|^2 \\
        m &\leftarrow \beta_1 m + \frac{g}{\sqrt{v} + \epsilon} + \lambda \theta \\
        \theta &\leftarrow \theta - \gamma m

    As ``timm.optim.NvNovoGrad``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.95, 0.98)).
        eps: :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay: :math:`\lambda` (default: 0).
        grad_averaging: weigh what is added to the mean with :math:`1 - \beta_1` (default: False).
        amsgrad: divide by the root of the largest :math:`v` so far (default: False).
        decoupled_decay: decay the parameter, not through the mean (default: False).
        corrected_weight_decay: decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma`, if
            decoupled (default: False).
        foreach: a key of the param groups; it changes nothing (default: None).
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
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, 0-dimensional float64; the squared norm of the first gradient that is not zero.
        max_exp_avg_sq: the largest of them, with ``amsgrad``.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.NovoGrad([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep
            Networks", 2019.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        decoupled_decay: bool = False,
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
                "eps": checked_rate(eps, "epsilon value"),
                "weight_decay": weight_decay,
                "grad_averaging": grad_averaging,
                "amsgrad": amsgrad,
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
        eps: Any,
        weight_decay: Any,
        grad_averaging: bool,
        amsgrad: bool,
        decoupled_decay: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
    ) -> Any:
        beta1, beta2 = betas
        now, before = rules.dot(g, g), s.get("exp_avg_sq", 0.0)
        s.exp_avg_sq = v = rules.where(before == 0, now, beta2 * before + (1 - beta2) * now)
        if amsgrad:
            s.max_exp_avg_sq = v = rules.maximum(s.get("max_exp_avg_sq", 0.0), v)
        share = 1 - beta1 if grad_averaging else 1.0
        u = g * (share / (rules.sqrt(v) + eps))
        if weight_decay != 0 and decoupled_decay:
            p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
        elif weight_decay != 0:
            u = rules.fma(p, weight_decay * share, u)
        s.exp_avg = rules.fma(s.exp_avg, beta1, u)
        return rules.fma(s.exp_avg, -lr, p)
