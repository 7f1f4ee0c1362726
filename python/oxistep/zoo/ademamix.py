"""AdEMAMix."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate

__all__ = ["AdEMAMix"]


class AdEMAMix(Optimizer):
    r"""AdEMAMix: AdamW with a second, much slower mean of gradients.

    .. math::
        m_1 &\leftarrow \beta_1 m_1 + (1 - \beta_1) g \\
        m_2 &\leftarrow \beta_3 m_2 + (1 - \beta_3) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta (1 - \gamma \lambda)
            - \gamma \frac{m_1 / (1 - \beta_1^t) + \alpha m_2}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    As ``bitsandbytes.optim.AdEMAMix``: names, order and defaults. The states are named as in ``pytorch_optimizer``.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2, \beta_3` (default: (0.9, 0.999, 0.9999)).
        alpha: :math:`\alpha`, the weight of the slow mean (default: 5.0).
        t_alpha: steps in which :math:`\alpha` grows from zero (default: None: at once).
        t_beta3: steps in which :math:`\beta_3` grows from :math:`\beta_1` (default: None: at once).
        eps: :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay: :math:`\lambda`, decoupled (default: 0.01).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups; it changes nothing (default: None).
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
        exp_avg: :math:`m_1`, in the parameter's shape and dtype.
        exp_avg_slow: :math:`m_2`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in bitsandbytes' words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdEMAMix([w], lr=0.1, weight_decay=0.0)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.89995

    Reference:
        Pagliardini, Ablin, Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
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
                "alpha": alpha,
                "t_alpha": t_alpha,
                "t_beta3": t_beta3,
                "eps": checked_rate(eps, "epsilon value"),
                "weight_decay": checked_rate(weight_decay, "weight_decay value"),
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
        alpha: Any,
        t_alpha: Any,
        t_beta3: Any,
        eps: Any,
        weight_decay: Any,
    ) -> Any:
        beta1, beta2, beta3 = betas
        if t_alpha is not None and t_alpha != 0:
            alpha = rules.minimum(s.step * alpha / t_alpha, alpha)
        if t_beta3 is not None and t_beta3 != 0:
            done, of1, of3 = s.step / t_beta3, rules.log(beta1), rules.log(beta3)
            beta3 = rules.minimum(rules.exp(of1 * of3 / ((1 - done) * of3 + done * of1)), beta3)
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        s.exp_avg_slow = rules.lerp(s.exp_avg_slow, g, 1 - beta3)
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, g, g, value=1 - beta2)
        u = rules.fma(s.exp_avg, 1 / (1 - beta1**s.step), s.exp_avg_slow * alpha)
        root = rules.sqrt(s.exp_avg_sq) * (1 / rules.sqrt(1 - beta2**s.step)) + eps
        return rules.addcdiv(p * (1 - lr * weight_decay), u, root, value=-lr)
