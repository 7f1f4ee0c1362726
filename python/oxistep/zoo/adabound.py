"""AdaBound."""

import math
from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_betas, checked_rate

__all__ = ["AdaBound"]


class AdaBound(Optimizer):
    r"""AdaBound: Adam whose rate of each element is held between bounds that close in on SGD's.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \eta &= \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{1}{\sqrt{v} + \epsilon}
          \text{ within } f \left(1 - \frac{1}{\kappa t + 1}\right), f \left(1 + \frac{1}{\kappa t}\right) \\
        \theta &\leftarrow \theta - \eta m

    :math:`f` is ``final_lr`` times the learning rate over what it was at first. As ``adabound.AdaBound``: names, order,
    defaults and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        final_lr: the learning rate of the SGD that it becomes (default: 0.1).
        gamma: :math:`\kappa`, how fast the bounds close in (default: 1e-3).
        eps: :math:`\epsilon` (default: 1e-8).
        weight_decay: added to the gradient, times the parameter (default: 0).
        amsbound: divide by the largest :math:`v` so far (default: False).
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
        max_exp_avg_sq: with ``amsbound``, the largest :math:`v`.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.
        ``param_groups[k]["base_lr"]`` is the learning rate that the group had at first.

    Raises:
        ValueError: for a hyperparameter out of range, in adabound's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.AdaBound([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Luo, Xiong, Liu, Sun, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate", 2019.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsbound: bool = False,
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
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"Invalid gamma parameter: {gamma}")
        super().__init__(
            params,
            {
                "lr": checked_rate(lr),
                "betas": checked_betas(betas),
                "final_lr": checked_rate(final_lr, "final learning rate"),
                "gamma": gamma,
                "eps": checked_rate(eps, "epsilon value"),
                "weight_decay": weight_decay,
                "amsbound": amsbound,
                "base_lr": float(lr),
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
        """Adds a group of parameters. Its learning rate is what later ones are compared with.

        Args:
            param_group: ``{"params": tensors}``, and hyperparameters of this group.
        """
        if "lr" in param_group:
            param_group.setdefault("base_lr", float(param_group["lr"]))
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        first = [group.get("base_lr") for group in self.__dict__.get("param_groups", ())]
        super().__setstate__(state)
        for group, lr in zip(self.param_groups, first, strict=False):
            group.setdefault("base_lr", lr)  # adabound saves none, and goes on with the constructor's

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        betas: Any,
        final_lr: Any,
        gamma: Any,
        eps: Any,
        weight_decay: Any,
        amsbound: bool,
        base_lr: Any,
    ) -> Any:
        beta1, beta2 = betas
        if weight_decay != 0:
            g = weight_decay * p + g
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
        square = s.exp_avg_sq = rules.addcmul(s.exp_avg_sq * beta2, g, g, 1 - beta2)
        if amsbound:
            square = s.max_exp_avg_sq = rules.maximum(s.max_exp_avg_sq, square)
        # a learning rate of 0 is 0 of anything
        final = final_lr * rules.where(lr > 0, rules.where(base_lr > 0, lr / base_lr, 1.0), 0.0)
        low = final * (1 - 1 / (gamma * s.step + 1))
        high = rules.where(gamma > 0, final * (1 + 1 / (gamma * s.step)), math.inf)
        rate = lr * rules.sqrt(1 - beta2**s.step) / (1 - beta1**s.step)
        return p - rules.clip(rate / (rules.sqrt(square) + eps), low, high) * s.exp_avg
