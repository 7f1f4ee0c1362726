"""LARS."""

from typing import Any

from oxistep import rules
from oxistep.zoo._base import Optimizer, Params, checked_rate
from oxistep.zoo._parts import begun

__all__ = ["LARS"]


class LARS(Optimizer):
    r"""LARS: SGD with momentum, whose gradients are scaled to the norm of each parameter, for large batches.

    .. math::
        r &= \eta \frac{\|\theta\|}{\|g\| + \lambda \|\theta\| + \epsilon} \\
        b &\leftarrow \mu b + r (g + \lambda \theta) \\
        \theta &\leftarrow \theta - \gamma b

    As ``timm.optim.Lars``: names, order, defaults, param-group keys and states.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma` (default: 1.0).
        momentum: :math:`\mu` (default: 0).
        dampening: part of the gradient that the momentum leaves out, except the first (default: 0).
        weight_decay: :math:`\lambda`; with 0 gradients are not scaled, unless ``always_adapt`` (default: 0).
        nesterov: Nesterov's momentum (default: False).
        trust_coeff: :math:`\eta` (default: 0.001).
        eps: :math:`\epsilon` (default: 1e-8).
        trust_clip: no :math:`r` above :math:`\gamma`: LARC (default: False).
        always_adapt: scale also where there is no weight decay (default: False).
        foreach: a key of the param groups, as in timm; it changes nothing (default: None).
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
        momentum_buffer: :math:`b`, in the parameter's shape and dtype, if there is momentum.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Raises:
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.LARS([w], lr=0.1, weight_decay=0.1, trust_coeff=0.5)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.95

    Reference:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
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
        checked_rate(lr), checked_rate(momentum, "momentum value"), checked_rate(weight_decay, "weight_decay value")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "trust_coeff": trust_coeff,
                "eps": eps,
                "trust_clip": trust_clip,
                "always_adapt": always_adapt,
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
        """As every optimizer's; timm's states, which have no ``step``, are those of a parameter that has taken steps.

        Args:
            state_dict: what ``state_dict`` of this class, or of timm's, returned.
        """
        super().load_state_dict(state_dict)
        begun(self, "momentum_buffer")

    @staticmethod
    def update(
        p: Any,
        g: Any,
        s: Any,
        lr: Any,
        momentum: Any,
        dampening: Any,
        weight_decay: Any,
        nesterov: bool,
        trust_coeff: Any,
        eps: Any,
        trust_clip: bool,
        always_adapt: bool,
    ) -> Any:
        if weight_decay != 0 or always_adapt:
            of_p, of_g = rules.norm(p), rules.norm(g)
            ratio = trust_coeff * of_p / (of_g + weight_decay * of_p + eps)
            ratio = rules.where((of_p > 0) & (of_g > 0), ratio, 1.0)
            g = rules.fma(p, weight_decay, g) * (rules.minimum(ratio / lr, 1.0) if trust_clip else ratio)
        if momentum != 0:
            if dampening == 0:  # the first is the gradient then: the buffer starts as zeros
                s.momentum_buffer = rules.fma(s.momentum_buffer, momentum, g)
            else:
                s.momentum_buffer = g if s.step == 1 else rules.fma(s.momentum_buffer, momentum, g * (1 - dampening))
            g = rules.fma(s.momentum_buffer, momentum, g) if nesterov else s.momentum_buffer
        return rules.fma(g, -lr, p)
