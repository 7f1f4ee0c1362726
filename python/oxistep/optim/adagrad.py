"""Adagrad."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad as adagrad
from torch.optim.optimizer import ParamsT

from oxistep.optim._definition import define, definition_of
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import filled, zero_step
from oxistep.optim._state_dtype import form_states

__all__ = ["Adagrad", "adagrad"]

# torch's class, whatever may be put under its name later
_Adagrad = torch.optim.Adagrad


class Adagrad(NativeStep, _Adagrad):
    r"""Adagrad: a learning rate per element that falls with the squares of all its gradients.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        h &\leftarrow h + g^2 \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 + (t - 1) \eta} \frac{g}{\sqrt{h} + \epsilon}

    Equal to torch's for-loop bit for bit in float32 and float64, where torch's own square roots are rounded correctly.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-2).
        lr_decay: :math:`\eta` (default: 0).
        weight_decay: :math:`\lambda` (default: 0).
        initial_accumulator_value: what :math:`h` starts with (default: 0).
        eps: :math:`\epsilon` (default: 1e-10).
        maximize: ascend instead of descend (default: False).
        foreach, fused, differentiable: as in torch. ``differentiable`` leaves the step to torch; the others do not
            change a native step.
        state_dtype: how to store the states: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"`` (default: None, as torch).
        weights: how to keep the digits that bfloat16 parameters cannot hold: ``"stochastic"``, ``"kahan"``,
            ``"residual8"``, ``"residual16"`` or ``"master"``; float16 takes ``"kahan"`` and ``"master"`` only
            (default: None, round to nearest).
        seed: seed of the random rounding that ``weights`` and ``state_dtype`` use (default: 0).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients inside the step, without modifying them (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters: ``"world"``, a
            process group, or a function that sums a small tensor over ranks (default: None, for ranks that hold all
            parameters, or DTensors).

    State:
        step: steps done, 0-dimensional float32 (float64 where that is torch's default dtype).
        sum: :math:`h`, in the parameter's shape and dtype. Both are made by the constructor, as in torch.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout; rows of
        sparse gradients too, if weight decay is zero and the parameter is contiguous and real. Everything else falls
        back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.Adagrad`` rejects an argument; if ``state_dtype`` or ``weights`` is none of the
            above; if ``seed`` is not in [0, 2**64), or ``ema`` not in [0, 1); if ``max_grad_norm`` is not above
            zero.
        RuntimeError: in ``step``, for a sparse gradient with weight decay, as in torch.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.Adagrad([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> w.item()
        0.8999999761581421

    Reference:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: StateDType = None,
        weights: Weights = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: GradNormGroup = None,
    ) -> None:
        keep_settings(self, state_dtype, max_grad_norm, skip_nonfinite, grad_norm_group, weights, seed, ema, ema_warmup)
        _Adagrad.__init__(
            self,
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
            fused=fused,
        )
        if state_dtype is not None and initial_accumulator_value:
            for p, state in self.state.items():  # torch's constructor has rounded it to the parameter's dtype
                state["sum"] = filled(self, p, initial_accumulator_value)
        form_states(self, lambda group: definition_of(Adagrad).kinds(self, group))


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    initial = optimizer.defaults["initial_accumulator_value"]
    return {"step": zero_step(p, group), "sum": filled(optimizer, p, initial)}


define(Adagrad, "adagrad", _Adagrad, _new_state)
