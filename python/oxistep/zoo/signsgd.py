"""SignSGD."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params
from oxistep.zoo._parts import below_one, positive_or_zero

__all__ = ["SignSGD"]


class SignSGD(Optimizer):
    r"""SignSGD, and with a momentum Signum: steps of one size in the direction of a sign.

    .. math::
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        b &\leftarrow \mu b + (1 - \mu) g \\
        \theta &\leftarrow \theta - \gamma\, \mathrm{sign}(b)

    As ``pytorch_optimizer.SignSGD``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1e-3).
        momentum: :math:`\mu`; 0 takes the sign of the gradient (default: 0.9).
        weight_decay: :math:`\lambda` (default: 0).
        weight_decouple: False adds the decay to the gradient (default: True).
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
        momentum_buffer: with a momentum :math:`b`, in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in pytorch_optimizer's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.SignSGD([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", 2018.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
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
                "momentum": below_one("beta", momentum),
                "weight_decay": positive_or_zero("weight_decay", weight_decay),
                "weight_decouple": weight_decouple,
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
    def update(p: Any, g: Any, s: Any, lr: Any, momentum: Any, weight_decay: Any, weight_decouple: bool) -> Any:
        if weight_decay != 0:
            if weight_decouple:
                p = p * (1 - lr * weight_decay)
            else:
                g = weight_decay * p + g
        if momentum != 0:
            g = s.momentum_buffer = rules.lerp(s.momentum_buffer, g, 1 - momentum)
        return p - lr * rules.sign(g)
