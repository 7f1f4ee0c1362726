"""ADOPT."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import cautious, decay_rate, largest_lr, refused

__all__ = ["ADOPT"]


class ADOPT(Optimizer):
    r"""ADOPT: Adam that divides by what it knew before this gradient, so that it converges for any :math:`\beta_2`.

    .. math::
        h &= g / \max(\sqrt{v}, \epsilon) \text{ within } \pm (t - 1)^c \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) h \\
        \theta &\leftarrow \theta - \gamma m \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2

    A parameter's first gradient gives :math:`v = g^2` and moves nothing. As ``timm.optim.Adopt``: names, order,
    defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.9999)).
        eps: :math:`\epsilon` (default: 1e-6).
        clip_exp: :math:`c`; None: nothing is clipped (default: 0.333).
        weight_decay: added to the gradient, times the parameter (default: 0).
        decoupled: multiply the parameter with :math:`1 - \gamma \lambda` instead (default: False).
        corrected_weight_decay: if decoupled, decay with :math:`\gamma^2 / \gamma_{max}` in place of :math:`\gamma`
            (default: False).
        caution: skip elements whose update and gradient differ in sign, and scale the others up (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
        maximize: ascend instead of descend (default: False).
        capturable: False; True is refused, because steps cannot be captured in CUDA graphs (default: False).
        differentiable: False; True is refused, because autograd cannot see the step (default: False).
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
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.ADOPT([w], lr=0.1)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (w * w).backward()
        ...     optimizer.step()
        >>> round(w.item(), 6)
        0.99

    Reference:
        Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any :math:`\beta_2` with the Optimal Rate", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        corrected_weight_decay: bool = False,
        *,
        caution: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
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
                "clip_exp": clip_exp,
                "weight_decay": checked_rate(weight_decay, "weight_decay value"),
                "decoupled": decoupled,
                "corrected_weight_decay": corrected_weight_decay,
                "max_lr_snapshot": largest_lr(lr, corrected_weight_decay),
                "caution": caution,
                "foreach": foreach,
                "capturable": refused("capturable", capturable),
                "differentiable": refused("differentiable", differentiable),
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
        decoupled: bool,
        corrected_weight_decay: bool,
        max_lr_snapshot: Any,
        caution: bool,
        clip_exp: Any = None,  # a default of None: any kind may be given
    ) -> Any:
        beta1, beta2 = betas
        if weight_decay != 0 and not decoupled:
            g = weight_decay * p + g
        mean = s.exp_avg  # there from the first step on
        if s.step == 1:
            s.exp_avg_sq = g * g
            return p
        if weight_decay != 0 and decoupled:
            p = p - decay_rate(lr, corrected_weight_decay, max_lr_snapshot) * weight_decay * p
        normed = g / rules.maximum(rules.sqrt(s.exp_avg_sq), eps)
        if clip_exp is not None:
            most = (s.step - 1) ** clip_exp
            normed = rules.clip(normed, -most, most)
        s.exp_avg = rules.lerp(mean, normed, 1 - beta1)
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, g, g, 1 - beta2)
        return p - lr * (cautious(s.exp_avg, g) if caution else s.exp_avg)
