"""AdamW."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import cautious, decay_rate, largest_lr, refused

__all__ = ["AdamW"]


class AdamW(Optimizer):
    r"""AdamW with timm's additions: caution, corrected weight decay, and steps clipped by their root mean square.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d &= \sqrt{v / (1 - \beta_2^t)} + \epsilon \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 - \beta_1^t} \frac{m}{d}

    As ``timm.optim.AdamWLegacy``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        eps: :math:`\epsilon` (default: 1e-8).
        weight_decay: :math:`\lambda`, decoupled (default: 1e-2).
        amsgrad: divide by the largest :math:`v` so far (default: False).
        caution: skip elements whose update and gradient differ in sign, and scale the others up (default: False).
        corrected_weight_decay: decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma` (default: False).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
        capturable: False; True is refused, because steps cannot be captured in CUDA graphs (default: False).
        clipping_threshold: the step is divided by the root mean square of :math:`g / d` over this number, if that is
            more than 1; 1.0 is StableAdamW's (default: None, never).
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
        exp_avg, exp_avg_sq: :math:`m, v`, in the parameter's shape and dtype.
        max_exp_avg_sq: with ``amsgrad``, the largest :math:`v`.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdamW([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.899

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019; Wortsman et al., "Stable and low-precision
        training for large-scale vision-language models", 2023.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        clipping_threshold: float | None = None,
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
                "caution": caution,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": largest_lr(lr, corrected_weight_decay),
                "foreach": foreach,
                "capturable": refused("capturable", capturable),
                "clipping_threshold": clipping_threshold,
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
        amsgrad: bool,
        caution: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
        clipping_threshold: Any,
    ) -> Any:
        beta1, beta2 = betas
        p = p * (1 - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay)
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        square = s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, g, g, 1 - beta2)
        if amsgrad:
            square = s.max_exp_avg_sq = rules.maximum(s.max_exp_avg_sq, square)
        root = rules.sqrt(square) / rules.sqrt(1 - beta2**s.step) + eps
        rate = lr / (1 - beta1**s.step)
        if clipping_threshold is not None:
            rate = rate / rules.maximum(rules.rms(g / root) / clipping_threshold, 1)
        return rules.addcdiv(p, cautious(s.exp_avg, g) if caution else s.exp_avg, root, -rate)
