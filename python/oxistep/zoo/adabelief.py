"""AdaBelief."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import in_float32

__all__ = ["AdaBelief"]


class AdaBelief(Optimizer):
    r"""AdaBelief: Adam that divides by how far gradients are from their mean, not by how large they are.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) (g - m)^2 + \epsilon \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 - \beta_1^t} \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Rectified, the step is RAdam's: with :math:`d = \sqrt{v} + \epsilon` and its factor from the sixth step or so on,
    and before that :math:`m` without a denominator. As ``timm.optim.AdaBelief``: names, order, defaults, param-group
    keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        eps: :math:`\epsilon`, added to :math:`v` in each step (default: 1e-16).
        weight_decay: :math:`\lambda` (default: 0).
        amsgrad: divide by the largest :math:`v` so far, if not rectified (default: False).
        decoupled_decay: False adds the decay to the gradient (default: True).
        fixed_decay: if decoupled, decay with :math:`\lambda` alone, whatever the learning rate (default: False).
        rectify: the step of RAdam (default: True).
        degenerated_to_sgd: step at all before RAdam's factor is there (default: True).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
        maximize: ascend instead of descend (default: False).
        state_dtype: how states are kept: ``torch.bfloat16``, ``"8bit"``, or ``torch.float32``, which half-precision
            parameters have with None too, as in timm (default: None).
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
        exp_avg, exp_avg_var: :math:`m, v`, in the parameter's shape; float32 for half-precision parameters.
        max_exp_avg_var: with ``amsgrad``, the largest :math:`v`.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdaBelief([w], lr=0.1, rectify=False)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.888889

    Reference:
        Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0,
        amsgrad: bool = False,
        decoupled_decay: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
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
                "amsgrad": amsgrad,
                "decoupled_decay": decoupled_decay,
                "fixed_decay": fixed_decay,
                "rectify": rectify,
                "degenerated_to_sgd": degenerated_to_sgd,
                "foreach": foreach,
            },
            maximize=maximize,
            state_dtype=in_float32(state_dtype),
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
        amsgrad: bool,
        decoupled_decay: bool,
        fixed_decay: bool,
        rectify: bool,
        degenerated_to_sgd: bool,
    ) -> Any:
        beta1, beta2 = betas
        if decoupled_decay:
            p = p * (1 - (weight_decay if fixed_decay else lr * weight_decay))
        elif weight_decay != 0:
            g = weight_decay * p + g
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        apart = g - s.exp_avg
        var = s.exp_avg_var = rules.addcmul(s.exp_avg_var * beta2, apart, apart, 1 - beta2) + eps
        if amsgrad:
            var = s.max_exp_avg_var = rules.maximum(s.max_exp_avg_var, var)
        rate, correction = lr / (1 - beta1**s.step), 1 - beta2**s.step
        if not rectify:
            return rules.addcdiv(p, s.exp_avg, rules.sqrt(var) / rules.sqrt(correction) + eps, -rate)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * s.step * (1 - correction) / correction
        if length >= 5:
            factor = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            root = rules.sqrt(s.exp_avg_var) + eps
            return rules.addcdiv(p, s.exp_avg, root, -rate * rules.sqrt(correction * factor))
        return p - rate * s.exp_avg if degenerated_to_sgd else p
