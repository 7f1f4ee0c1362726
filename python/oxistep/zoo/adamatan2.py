"""AdamAtan2."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate

__all__ = ["AdamAtan2"]


class AdamAtan2(Optimizer):
    r"""Adam with an arc tangent in place of the division: no :math:`\epsilon`; steps no longer than :math:`2 \gamma`.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \mathrm{atan2}\left(\frac{m}{1 - \beta_1^t}, b \sqrt{\frac{v}{1 - \beta_2^t}}\right) \\
        \theta &\leftarrow \theta (1 - \gamma \lambda) - \gamma a u

    As ``adam_atan2_pytorch.AdamAtan2``: names, order, defaults and states, but for the counter, which is ``steps``
    there. A learning rate of 0 is taken.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-4).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.99)).
        weight_decay: :math:`\lambda`, decoupled (default: 0).
        regen_reg_rate: move the parameter so much of the way to where it began, times :math:`\gamma`, before the step;
            not beside a weight decay (default: 0).
        decoupled_wd: divide both by the constructor's learning rate, so that they do not depend on it (default: False).
        cautious_wd: decay only elements that the update moves towards zero (default: False).
        cautious_factor: what elements are multiplied with whose update and gradient differ in sign; all are scaled up
            for it (default: 1).
        a: :math:`a` (default: 1.27).
        b: :math:`b` (default: 1).
        maximize: ascend instead of descend (default: False).
        foreach: a key of the param groups, as in torch; it changes nothing (default: None).
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
        param_init: with ``regen_reg_rate``, the parameter before its first step.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        ``param_groups[k]["init_lr"]`` is the constructor's learning rate.

    Raises:
        ValueError: for a hyperparameter out of range, where adam_atan2_pytorch asserts.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdamAtan2([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.900254

    Reference:
        Everett et al., "Scaling Exponents Across Parameterizations and Optimizers", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        regen_reg_rate: float = 0.0,
        decoupled_wd: bool = False,
        cautious_wd: bool = False,
        cautious_factor: float = 1.0,
        a: float = 1.27,
        b: float = 1.0,
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
        if weight_decay > 0 and regen_reg_rate > 0:
            raise ValueError("weight_decay and regen_reg_rate exclude each other: one of them must be 0")
        if not 0.0 <= cautious_factor <= 1.0:
            raise ValueError(f"Invalid cautious_factor: {cautious_factor}")
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "weight_decay": checked_rate(weight_decay, "weight_decay"),
                "regen_reg_rate": checked_rate(regen_reg_rate, "regen_reg_rate"),
                "decoupled_wd": decoupled_wd,
                "cautious_wd": cautious_wd,
                "cautious_factor": cautious_factor,
                "a": a,
                "b": b,
                "init_lr": float(lr),
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
        for group in self.param_groups:  # as adam_atan2_pytorch saves: divided already, and counted by another name
            group.setdefault("decoupled_wd", False)
            group.setdefault("init_lr", 1.0)
        for entry in self.state.values():
            if "steps" in entry:
                entry["step"] = entry.pop("steps")

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        betas: Any,
        weight_decay: Any,
        regen_reg_rate: Any,
        decoupled_wd: bool,
        cautious_wd: bool,
        cautious_factor: Any,
        a: Any,
        b: Any,
        init_lr: Any,
    ) -> Any:
        beta1, beta2 = betas
        rate = lr / rules.where(init_lr > 0, init_lr, 1.0) if decoupled_wd else lr
        if regen_reg_rate > 0:
            p = rules.lerp(p, s.get("param_init", p), rate * regen_reg_rate)
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        s.exp_avg_sq = rules.lerp(s.exp_avg_sq, g * g, 1 - beta2)
        root = rules.sqrt(s.exp_avg_sq * (b * b / (1 - beta2**s.step)))
        u = rules.atan2(s.exp_avg * (1 / (1 - beta1**s.step)), root)
        if cautious_factor < 1:
            agrees = rules.where(u * g > 0, 1.0, cautious_factor)
            u = u * agrees * (1 / rules.maximum(rules.mean(agrees), 1e-5))
        if weight_decay > 0:
            keep = 1 - rate * weight_decay
            p = p * (rules.where(u * p > 0, keep, 1.0) if cautious_wd else keep)
        return p - lr * a * u
