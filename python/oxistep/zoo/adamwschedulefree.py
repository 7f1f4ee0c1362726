"""Schedule-free AdamW."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_rate
from oxistep.zoo._schedulefree import ScheduleFree, begin, checked_weights, warmed_up, weight_of

__all__ = ["AdamWScheduleFree"]


class AdamWScheduleFree(ScheduleFree, Optimizer):
    r"""Schedule-free AdamW: an average of the iterates takes the place of a schedule.

    .. math::
        c &= w_k / \sum_{j \le k} w_j, \qquad w_k = k^r \gamma_{max}^{power} \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        d &= \frac{g}{\sqrt{v / (1 - \beta_2^k)} + \epsilon} + \lambda \theta \\
        \theta &\leftarrow \theta + c (z - \theta) - \gamma (1 - \beta_1 (1 - c)) d \\
        z &\leftarrow z - \gamma d

    As ``schedulefree.AdamWScheduleFree``: names, order, defaults, param-group keys and states. Call ``train()`` before
    training and ``eval()`` before the parameters are tested or saved.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 0.0025).
        betas: :math:`\beta_1`, which is above 0, and :math:`\beta_2` (default: (0.9, 0.999)).
        eps: :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay: :math:`\lambda`, at the point where gradients are taken (default: 0).
        warmup_steps: steps in which the learning rate grows to ``lr`` (default: 0).
        r: steps count in the average with their number to this power (default: 0.0).
        weight_lr_power: and with the largest learning rate so far to this power (default: 2.0).
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
        z: where plain AdamW is, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        Of the group: ``k`` steps done, ``weight_sum``, ``lr_max``, ``scheduled_lr``, ``train_mode``.

    Raises:
        ValueError: for a hyperparameter out of range.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdamWScheduleFree([w], lr=0.1)
        >>> optimizer.train()
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> optimizer.eval()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Defazio et al., "The Road Less Scheduled", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
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
                betas=checked_weights(betas),
                eps=checked_rate(eps, "epsilon value"),
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
        betas: Any,
        eps: Any,
        weight_decay: Any,
        warmup_steps: Any,
        r: Any,
        weight_lr_power: Any,
        train_mode: bool = True,
    ) -> Any:
        beta1, beta2 = betas
        z, v = s.get("z", p), s.exp_avg_sq
        if not train_mode:  # of a step that moves nothing
            return p
        k = s.group.get("k", 0)
        lr = warmed_up(s, lr, warmup_steps)
        weight = weight_of(s, lr, r, weight_lr_power)
        s.exp_avg_sq = rules.addcmul(v * beta2, g, g, value=1 - beta2)
        d = g / (rules.sqrt(s.exp_avg_sq) * (1 / rules.sqrt(1 - beta2 ** (k + 1))) + eps)
        d = rules.fma(p, weight_decay, d) if weight_decay != 0 else d
        s.z = rules.fma(d, -lr, z)
        return rules.fma(d, lr * (beta1 * (1 - weight) - 1), rules.lerp(p, z, weight))
