"""MARS."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate
from oxistep.zoo._parts import cautious

__all__ = ["MARS"]


class MARS(Optimizer):
    r"""MARS: AdamW or Lion on gradients whose variance is reduced with those of the step before.

    .. math::
        c &= g + \eta \frac{\beta_1}{1 - \beta_1} (g - g_{last}), \qquad c \leftarrow c / \max(1, \|c\|) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) c \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) c^2 \\
        \theta &\leftarrow \theta - \gamma \left(\lambda \theta
            + \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}\right)

    As ``timm.optim.Mars``: names, order, defaults, param-group keys and states. Parameters of fewer than two dimensions
    take a step of AdamW.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 3e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.99)).
        eps: :math:`\epsilon`, added to the root (default: 1e-8).
        weight_decay: :math:`\lambda`, decoupled (default: 0.0).
        gamma: :math:`\eta`, how much the difference of gradients counts (default: 0.025).
        mars_type: ``"adamw"`` or ``"lion"``, which has the sign of :math:`m` as its update (default: "adamw").
        optimize_1d: treat parameters of fewer than two dimensions like others (default: False).
        lr_1d_factor: what the learning rate is multiplied with for them, if not (default: 1.0).
        betas_1d: :math:`\beta_1, \beta_2` for them (default: None: ``betas``).
        caution: leave out elements whose mean and gradient differ in sign, and scale the others up (default: False).
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
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype; with ``mars_type="lion"`` only where AdamW steps.
        last_grad: the gradient of the step before, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words, or another ``mars_type``.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.MARS([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models", 2024.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
        mars_type: str = "adamw",
        optimize_1d: bool = False,
        lr_1d_factor: float = 1.0,
        betas_1d: tuple[float, float] | None = None,
        caution: bool = False,
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
        if mars_type not in ("adamw", "lion"):
            raise ValueError(f"MARS type not supported: {mars_type!r}")
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "eps": checked_rate(eps, "epsilon value"),
                "weight_decay": weight_decay,
                "mars_type": mars_type,
                "gamma": gamma,
                "optimize_1d": optimize_1d,
                "lr_1d_factor": lr_1d_factor,
                "betas_1d": betas_1d or betas,
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

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        betas: Any,
        eps: Any,
        weight_decay: Any,
        gamma: Any,
        mars_type: str,
        optimize_1d: bool,
        lr_1d_factor: Any,
        betas_1d: Any,
        caution: bool,
    ) -> Any:
        last, s.last_grad = s.last_grad, g
        if optimize_1d or p.ndim >= 2:
            beta1, beta2 = betas
            c = g if s.step == 1 else rules.fma(g - last, gamma * (beta1 / (1 - beta1)), g)
            c = c * (1 / rules.maximum(rules.norm(c), 1.0))
        else:
            beta1, beta2 = betas_1d
            c, lr, mars_type = g, lr * lr_1d_factor, "adamw"
        s.exp_avg = rules.lerp(s.exp_avg, c, 1 - beta1)
        u = cautious(s.exp_avg, g) if caution else s.exp_avg
        p = p * (1 - lr * weight_decay)
        if mars_type == "lion":
            return p - lr * rules.sign(u)
        s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, c, c, value=1 - beta2)
        root = rules.sqrt(s.exp_avg_sq) * (1 / rules.sqrt(1 - beta2**s.step)) + eps
        return rules.addcdiv(p, u, root, value=-(lr / (1 - beta1**s.step)))
