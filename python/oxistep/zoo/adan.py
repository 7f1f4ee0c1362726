"""Adan."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._group_counts import GroupCounts
from oxistep.zoo._parts import begun, cautious

__all__ = ["Adan"]


class Adan(GroupCounts, Optimizer):
    r"""Adan: means of gradients, of their differences, and of squares of both together.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad \delta \leftarrow \beta_2 \delta + (1 - \beta_2) (g - g') \\
        n &\leftarrow \beta_3 n + (1 - \beta_3) (g + \beta_2 (g - g'))^2 \\
        d &= \sqrt{n / (1 - \beta_3^t)} + \epsilon \\
        \theta &\leftarrow \theta - \frac{\gamma}{d}
          \left(\frac{m}{1 - \beta_1^t} + \frac{\beta_2 \delta}{1 - \beta_2^t}\right) \\
        \theta &\leftarrow \theta / (1 + \gamma \lambda), \qquad g' \leftarrow g

    As ``timm.optim.Adan``: names, order, defaults, param-group keys and states. The betas are what is kept of a mean,
    as in sail-sg/Adan; the paper gives what is taken.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2, \beta_3` (default: (0.98, 0.92, 0.99)).
        eps: :math:`\epsilon` (default: 1e-8).
        weight_decay: :math:`\lambda` (default: 0).
        no_prox: decay as AdamW does, by :math:`1 - \gamma \lambda` before the step (default: False).
        caution: leave out elements whose mean :math:`m` and gradient differ in sign, and scale the others up (default:
            False).
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
        exp_avg, exp_avg_diff, exp_avg_sq: :math:`m, \delta, n`, in the parameter's shape and dtype.
        neg_pre_grad: :math:`-g'`.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        ``param_groups[k]["step"]`` is :math:`t`: all steps of the optimizer, as timm counts them for its corrections.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Adan([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
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
                "betas": checked_betas(betas),
                "eps": checked_rate(eps, "epsilon value"),
                "weight_decay": weight_decay,
                "no_prox": no_prox,
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        begun(self, "neg_pre_grad")  # timm counts steps of groups alone

    @staticmethod
    def update(
        p: Any, g: Any, s: Any, lr: Any, betas: Any, eps: Any, weight_decay: Any, no_prox: bool, caution: bool
    ) -> Any:
        beta1, beta2, beta3 = betas
        step = s.group.step = s.group.get("step", 0) + 1
        diff = rules.zeros_like(p) if s.step == 1 else g + s.neg_pre_grad
        s.neg_pre_grad = -g
        mean = s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        s.exp_avg_diff = beta2 * s.exp_avg_diff + (1 - beta2) * diff
        both = beta2 * diff + g
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta3, both, both, 1 - beta3)
        root = rules.sqrt(s.exp_avg_sq) / rules.sqrt(1 - beta3**step) + eps
        if caution:
            mean = cautious(mean, g)
        if no_prox:
            p = p * (1 - lr * weight_decay)
        p = p - (lr / (1 - beta1**step) * mean + lr * beta2 / (1 - beta2**step) * s.exp_avg_diff) / root
        return p if no_prox else p * (1 / (1 + lr * weight_decay))
