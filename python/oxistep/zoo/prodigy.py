"""Prodigy."""

from typing import TYPE_CHECKING, Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate

if TYPE_CHECKING:
    from oxistep.zoo._base import Optimizer as _Base
else:
    _Base = object

__all__ = ["OneEstimate", "Prodigy"]

NUMBERS = ("k", "d", "d_max", "d_numerator", "d_denom", "d_hat")
"""Numbers that all groups have the same of."""
SHARED = ("betas", "beta3", "d0", "d_coef", "growth_rate", "use_bias_correction", "decouple")
"""Hyperparameters from which they follow."""


class OneEstimate(_Base):
    """All groups have one estimate of the step size."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Perform a single optimization step.

        Raises:
            RuntimeError: for groups of several learning rates other than zero.
            ValueError: for groups that differ in what the estimate follows from.
        """
        first, *others = self.param_groups
        if others:
            _check(self.param_groups)
        for group in others:  # which may have been added since
            group.update((name, first[name]) for name in NUMBERS if name in first)
        result = super().step(*args, **kwargs)
        if others:
            idle = {id(group) for group, *_ in self._zoo_idle(*args)}
            active = next((group for group in self.param_groups if id(group) not in idle), first)
            for group in self.param_groups:
                if id(group) in idle:
                    group.update((name, active[name]) for name in NUMBERS if name in active)
        return result

    # torch must not wrap it for hooks: the step that it calls has them called.
    step.hooked = True  # type: ignore[attr-defined]


class Prodigy(OneEstimate, Optimizer):
    r"""Prodigy: Adam that finds its step size :math:`d` by itself.

    .. math::
        r &\leftarrow \sqrt{\beta_2} r + \sum \frac{d}{d_0} \gamma d \langle g, \theta_0 - \theta \rangle \\
        s &\leftarrow \sqrt{\beta_2} s + \frac{d}{d_0} \gamma d g \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) d g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2 \\
        d' &= \max(d, d_{coef} \, r / \sum \|s\|_1) \\
        \theta &\leftarrow \theta - \gamma d \left(\lambda \theta + \frac{m}{\sqrt{v} + d' \epsilon}\right),
            \qquad d \leftarrow d'

    As ``prodigyopt.Prodigy``: names, order, defaults and param-group keys. Sums are over all parameters of all groups.
    A group with a learning rate of zero rests. Leave ``lr`` at 1, and give a schedule as factors of it.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: :math:`\gamma`, what the step size is multiplied with; in each group the same, or zero (default: 1.0).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        beta3: in place of :math:`\sqrt{\beta_2}` (default: None).
        eps: :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay: :math:`\lambda` (default: 0).
        decouple: decay the parameter, not through the gradient (default: True).
        use_bias_correction: divide the means by what their weights sum to (default: False).
        safeguard_warmup: leave :math:`\gamma` out of :math:`s`, for schedules that begin near zero (default: False).
        d0: :math:`d_0`, the first step size (default: 1e-6).
        d_coef: what the estimate is multiplied with, which is what to tune (default: 1.0).
        growth_rate: :math:`d` grows by this factor at most in a step (default: inf).
        slice_p: 1: the estimate is of all elements (default: 1).
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
        s: :math:`s`, in the parameter's shape and dtype.
        p0: :math:`\theta_0`, the parameter before its first step.
        exp_avg: :math:`m`, unless :math:`\beta_1` is 0.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        Of the group, and the same in all: ``k`` steps done, ``d``, ``d_max``, ``d_numerator`` (:math:`r`), ``d_denom``,
        ``d_hat``.

    Raises:
        ValueError: for a hyperparameter out of range, in prodigyopt's words; for a ``slice_p`` other than 1.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Prodigy([w], d0=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6), optimizer.param_groups[0]["d"]
        (0.683772, 0.1)

    Reference:
        Mishchenko, Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = float("inf"),
        slice_p: int = 1,
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
        if not d0 > 0.0:
            raise ValueError(f"Invalid d0 value: {d0}")
        if not eps > 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        if slice_p != 1:
            raise ValueError(
                f"slice_p: oxistep's Prodigy takes every element for its estimate, so slice_p is 1, not {slice_p}"
            )
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "beta3": beta3,
                "eps": eps,
                "weight_decay": weight_decay,
                "d": d0,
                "d0": d0,
                "d_max": d0,
                "d_numerator": 0.0,
                "d_coef": d_coef,
                "k": 0,
                "growth_rate": growth_rate,
                "use_bias_correction": use_bias_correction,
                "decouple": decouple,
                "safeguard_warmup": safeguard_warmup,
                "slice_p": slice_p,
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; of prodigyopt's states, which lie flat, the shapes are given back.

        Args:
            state_dict: what ``state_dict`` of this class, or of prodigyopt's with ``slice_p=1``, returned.

        Raises:
            ValueError: for states that were saved with another ``slice_p``.
        """
        if any(group.get("slice_p", 1) != 1 for group in state_dict["param_groups"]):
            raise ValueError("slice_p: these states were saved with another slice_p than 1")
        params = (p for group in self.param_groups for p in group["params"])
        ids = (saved for group in state_dict["param_groups"] for saved in group["params"])
        state = dict(state_dict["state"])
        for p, saved in zip(params, ids, strict=False):
            entry = state.get(saved, {})
            flat = {name: entry[name] for name in ("s", "p0") if name in entry and entry[name].shape != p.shape}
            if flat:  # what was zero altogether has one zero in p0
                state[saved] = entry | {name: x.expand(p.numel()).reshape(p.shape).clone() for name, x in flat.items()}
        super().load_state_dict({**state_dict, "state": state})

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        betas: Any,
        eps: Any,
        weight_decay: Any,
        decouple: bool,
        use_bias_correction: bool,
        safeguard_warmup: bool,
        d0: Any,
        d_coef: Any,
        growth_rate: Any,
        beta3: Any = None,
    ) -> Any:
        beta1, beta2 = betas
        beta3 = rules.sqrt(beta2) if beta3 is None else beta3
        group = s.group
        k, d, d_max = group.get("k", 0), group.get("d", 1e-6), group.get("d_max", 1e-6)
        before = group.get("d_numerator", 0.0)
        rate = d * lr
        if use_bias_correction:
            rate = rate * (rules.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)))
        if weight_decay != 0 and not decouple:
            g = rules.fma(p, weight_decay, g)
        moments = [s.s, s.exp_avg_sq] + ([s.exp_avg] if beta1 > 0 else [])
        along = rules.dot(g, s.get("p0", p) - p) * (d / d0 * rate)
        if lr > 0:
            share = d / d0 * (d if safeguard_warmup else rate)
            s.s = rules.fma(g, share, moments[0] * beta3)
            s.exp_avg_sq = rules.addcmul(moments[1] * beta2, g, g, value=d * d * (1 - beta2))
            if beta1 > 0:
                s.exp_avg = rules.fma(g, d * (1 - beta1), moments[2] * beta1)
        numerator = beta3 * before + rules.total(rules.where(lr > 0, along, 0.0))
        denominator = rules.total(rules.where(lr > 0, rules.sum(abs(s.s)), 0.0))
        goes_on = denominator != 0  # else all gradients so far were zero
        hat = d_coef * numerator / denominator
        d_max_now = rules.maximum(d_max, hat)
        d_now = rules.minimum(d_max_now, rules.where(d == d0, rules.maximum(d, hat), d) * growth_rate)
        group.k = rules.where(goes_on, k + 1, k)
        group.d = d_now = rules.where(goes_on, d_now, d)
        group.d_max = rules.where(goes_on, d_max_now, d_max)
        group.d_numerator = rules.where(goes_on, numerator, before)
        for name, now in (("d_denom", denominator), ("d_hat", hat)):  # to look at
            setattr(group, name, rules.where(goes_on, now, group.get(name, 0.0)))
        if not lr > 0:
            return p
        rate = rules.where(goes_on, rate, 0.0)
        if weight_decay != 0 and decouple:
            p = p * (1 - weight_decay * rate)
        root = rules.sqrt(s.exp_avg_sq) + d_now * eps
        return rules.addcdiv(p, s.exp_avg if beta1 > 0 else g * d_now, root, value=-rate)


def _check(groups: list[dict[str, Any]]) -> None:
    given = (group["lr"] for group in groups)  # what is no number the step refuses
    rates = {float(lr) for lr in given if isinstance(lr, (int, float)) or hasattr(lr, "item")} - {0.0}
    if len(rates) > 1:
        raise RuntimeError(
            "Setting different lr values in different parameter groups is only supported for values of 0"
        )
    for name in SHARED:
        if any(group[name] != groups[0][name] for group in groups):
            raise ValueError(f"{name}: all groups have one estimate of the step size, so it must be the same in all")
