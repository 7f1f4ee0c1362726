"""Tiger."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params
from oxistep.zoo._parts import below_one, positive_or_zero

__all__ = ["Tiger"]


class Tiger(Optimizer):
    r"""Tiger: Lion with one weight for both of its means; steps of one size, and one state.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        m &\leftarrow \beta m + (1 - \beta) g \\
        \theta &\leftarrow \theta - \gamma\, \mathrm{sign}(m)

    As ``pytorch_optimizer.Tiger``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        beta: :math:`\beta` (default: 0.965).
        weight_decay: :math:`\lambda` (default: 0.01).
        weight_decouple: False adds the decay to the gradient (default: True).
        fixed_decay: if decoupled, decay with :math:`\lambda` alone, whatever the learning rate (default: False).
        foreach: a key of the param groups, as in pytorch_optimizer; it changes nothing (default: None).
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
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in pytorch_optimizer's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Tiger([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.899

    Reference:
        Su, "Tiger: A Tight-fisted Optimizer", 2023 (github.com/bojone/tiger).
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
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
                "lr": positive_or_zero("learning rate", lr),
                "beta": below_one("beta", beta),
                "weight_decay": positive_or_zero("weight_decay", weight_decay),
                "weight_decouple": weight_decouple,
                "fixed_decay": fixed_decay,
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
        p: Any, g: Any, s: Any, lr: Any, beta: Any, weight_decay: Any, weight_decouple: bool, fixed_decay: bool
    ) -> Any:
        if weight_decay != 0:
            if weight_decouple:
                p = p * (1 - (weight_decay if fixed_decay else lr * weight_decay))
            else:
                g = weight_decay * p + g
        s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta)
        return p - lr * rules.sign(s.exp_avg)
