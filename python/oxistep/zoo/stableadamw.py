"""StableAdamW."""

import warnings
from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params
from oxistep.zoo._group_counts import GroupCounts

__all__ = ["StableAdamW"]


class StableAdamW(GroupCounts, Optimizer):
    r"""StableAdamW: AdamW whose learning rate falls, tensor by tensor, where gradients are larger than expected.

    .. math::
        \hat\beta &= (\beta^t - \beta) / (\beta^t - 1) \\
        m &\leftarrow \hat\beta_1 m + (1 - \hat\beta_1) g \\
        v &\leftarrow \hat\beta_2 v + (1 - \hat\beta_2) g^2 \\
        \eta &= \gamma / \max\left(1, \sqrt{\mathrm{mean}(g^2 / \max(v, \epsilon^2))}\right) \\
        \theta &\leftarrow \theta (1 - \eta \lambda) - \eta \frac{m}{\sqrt{v} + \epsilon}

    As ``optimi.StableAdamW``: names, order, defaults, param-group keys and states. The means are corrected as they are
    kept, so they are not those of AdamW.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`.
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.99)).
        weight_decay: :math:`\lambda`, decoupled (default: 0.01).
        eps: :math:`\epsilon`, added to the root (default: 1e-6).
        decouple_lr: decay with :math:`\eta / \gamma_{max}` in place of :math:`\eta` (default: False).
        max_lr: :math:`\gamma_{max}`, the largest learning rate of the schedule (default: None: ``lr``).
        kahan_sum: keep beside a half-precision parameter what rounding would lose of it. A group is then all bfloat16
            or all float16 (default: None: for half-precision parameters, if there are no ``weights=``, which keep
            more).
        foreach: a key of the param groups, as in optimi; it changes nothing (default: None).
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
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        kahan_comp: what the parameter could not hold, with ``kahan_sum``.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        Of the group: ``step``, :math:`t`, which counts every step of the optimizer.

    Raises:
        ValueError: for a hyperparameter out of range, in optimi's words; for a group of several dtypes with
            ``kahan_sum``; for ``kahan_sum=True`` with ``weights``.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.StableAdamW([w], lr=0.1, weight_decay=0.0)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Wortsman et al., "Stable and low-precision training for large-scale vision-language models", 2023.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        eps: float = 1e-6,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        kahan_sum: bool | None = None,
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
        beta1, beta2 = betas
        max_lr = lr if decouple_lr and max_lr is None else max_lr
        for name, value, most in (
            ("beta1 parameter: betas[0]", beta1, 1.0),
            ("beta2 parameter: betas[1]", beta2, 1.0),
            ("epsilon: eps", eps, float("inf")),
            ("learning rate: lr", lr, float("inf")),
            ("weight decay: weight_decay", weight_decay, float("inf")),
            ("maximum learning rate: max_lr", max_lr, float("inf")),
        ):
            if isinstance(value, (int, float)) and not 0.0 <= value < most:
                raise ValueError(f"Invalid {name}={value}")
        if decouple_lr and weight_decay >= 1e-3:
            warnings.warn(
                f"weight_decay={weight_decay} is much with decouple_lr=True, which does not multiply it with the "
                "learning rate",
                stacklevel=2,
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "weight_decay": weight_decay,
                "decouple_lr": decouple_lr,
                "max_lr": max_lr,
                "kahan_sum": kahan_sum,
                "kahan_split": None,
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as torch's does.

        Args:
            param_group: ``{"params": tensors}``, and hyperparameters of this group.

        Raises:
            ValueError: for parameters of several dtypes with ``kahan_sum``, or if that is True beside ``weights``.
        """
        super().add_param_group(param_group)
        try:
            settle(self.param_groups[-1], self._weights())
        except ValueError:
            del self.param_groups[-1]
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = vars(self).get("_oxistep")
        if kept is not None and kept.weights is not None and kept.loading is not None:  # what may be made without
            entries = {number: _without_kahan(entry) for number, entry in kept.loading["state"].items()}
            kept.loading = {**kept.loading, "state": entries}
            for group in state["param_groups"]:
                if group["kahan_sum"]:
                    group["kahan_sum"] = None
        super().__setstate__(state)
        for group in self.param_groups:
            settle(group, self._weights())

    def _weights(self) -> str | None:
        """The setting ``weights``, if it is there already."""
        kept = vars(self).get("_oxistep")
        return None if kept is None else kept.weights

    def _zoo_under(self, group: dict[str, Any], weights: str | None) -> dict[str, Any]:
        """A group as it would be with this setting of ``weights``, for estimates."""
        other = {**group, "kahan_sum": None}
        try:
            settle(other, weights)
        except ValueError:  # of several dtypes, which then need kahan_sum=False
            other["kahan_sum"] = False
        return other

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        beta1: Any,
        beta2: Any,
        eps: Any,
        weight_decay: Any,
        decouple_lr: bool,
        max_lr: Any = None,
        kahan_split: Any = None,
    ) -> Any:
        s.group.step = step = s.group.get("step", 0) + 1
        hat1, hat2 = ((beta**step - beta) / (beta**step - 1) for beta in (beta1, beta2))
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - hat1)
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * hat2, g, g, value=1 - hat2)
        lr = lr / rules.maximum(rules.sqrt(rules.mean(g * g / rules.maximum(s.exp_avg_sq, eps * eps))), 1.0)
        decay = lr if not decouple_lr else rules.where(lr > 0, lr / max_lr, 0.0)
        p = p * (1 - decay * weight_decay)
        root = rules.sqrt(s.exp_avg_sq) + eps
        if kahan_split is None:
            return rules.addcdiv(p, s.exp_avg, root, value=-lr)
        comp = rules.addcdiv(s.kahan_comp, s.exp_avg, root, value=-lr)
        # rounded as the parameter is stored, by Veltkamp's splitting, so that what is lost is known
        apart = (p + comp) * kahan_split
        kept = apart - (apart - (p + comp))
        s.kahan_comp = comp + (p - kept)
        return kept


def settle(group: dict[str, Any], weights: str | None = None) -> None:
    """Settles whether a group sums as Kahan does, and of which type its parameters are: that of the first says both.

    Raises:
        ValueError: for a group of several dtypes, and where ``weights`` keeps the digits already.
    """
    if weights is not None:
        if group["kahan_sum"]:
            raise ValueError(
                f"kahan_sum=True: expected None or False with weights={weights!r}, which keeps the digits that "
                "parameters cannot hold; leave one of them out"
            )
        group["kahan_split"] = None
        return
    dtypes = {str(p.dtype).removeprefix("torch.") for p in group["params"]}
    halves = dtypes & _SPLITS.keys()
    group["kahan_split"] = None
    if halves and group["kahan_sum"] is not False:
        if len(dtypes) > 1:
            raise ValueError(
                f"kahan_sum: a group of {', '.join(sorted(dtypes))}: make one group of each dtype, or give "
                "kahan_sum=False"
            )
        group["kahan_sum"], group["kahan_split"] = True, _SPLITS[halves.pop()]


def _without_kahan(entry: dict[str, Any]) -> dict[str, Any]:
    """A saved entry; what the rule kept of the parameter's digits becomes what ``weights`` keeps."""
    rest = {name: value for name, value in entry.items() if name != "kahan_comp"}
    if len(rest) < len(entry) and not any(name in entry for name in _BESIDE):
        rest["compensation"] = entry["kahan_comp"]
    return rest


# What ``weights`` keeps beside a parameter.
_BESIDE = ("residual", "compensation", "master")

# 2 ** s + 1 for the s bits that float32 has and the type lacks.
_SPLITS = {"bfloat16": 2.0**16 + 1, "float16": 2.0**13 + 1}
