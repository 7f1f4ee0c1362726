"""Stochastic gradient descent."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd as sgd

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import out_of_the_way

__all__ = ["SGD", "sgd"]

# torch's class, whatever may be put under its name later
_SGD = torch.optim.SGD


class SGD(NativeStep, _SGD):
    r"""Stochastic gradient descent, with momentum or Nesterov's.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b \leftarrow g \text{ at the first step}) \\
        g &\leftarrow g + \mu b \text{ if nesterov, else } b \\
        \theta &\leftarrow \theta - \gamma g

    Equal to torch's for-loop bit for bit in float32 and float64.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-3).
        momentum: :math:`\mu`; zero keeps no buffer (default: 0).
        dampening: :math:`\tau` (default: 0).
        weight_decay: :math:`\lambda` (default: 0).
        nesterov: look ahead along the buffer; needs momentum and no dampening (default: False).
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
        momentum_buffer: :math:`b`, if momentum is not zero, in the gradient's shape, dtype and layout.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout; rows of
        sparse gradients too, if momentum and weight decay are zero and the parameter is contiguous and real. Everything
        else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.SGD`` rejects an argument; if ``state_dtype`` is not float32; if ``max_grad_norm``
            is not above zero.
        RuntimeError: in ``step``, for a sparse gradient with weight decay, as in torch.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.SGD([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> w.item()
        0.800000011920929

    Reference:
        Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
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
        _SGD.__init__(
            self,
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    if group["momentum"] == 0:
        return {}
    # torch clones the gradient; the first step writes every element, so nothing needs to be copied here
    # (in the dtype of the parameter, also for a half gradient of a float32 parameter)
    if p.stride() == grad.stride() and p.is_contiguous() and 1 not in p.shape and 0 not in p.shape:
        return {"momentum_buffer": out_of_the_way(p, lambda: torch.empty_like(grad, dtype=p.dtype))}
    strides = _strides(p, grad, group)
    return {"momentum_buffer": out_of_the_way(p, lambda: torch.empty_strided(p.shape, strides, dtype=p.dtype))}


def _strides(p: Tensor, grad: Tensor, group: dict[str, Any]) -> tuple[int, ...]:
    """The strides of what torch clones, which its operations choose: asked of tensors without memory."""
    param, like = (torch.empty_strided(t.shape, t.stride(), device="meta") for t in (p, grad))
    if group["maximize"]:
        like = _result_of(like)
    if group["weight_decay"] != 0:
        like = _result_of(like, param)
    return like.clone().stride()


def _result_of(*operands: Tensor) -> Tensor:
    """What an operation on the CPU returns: there torch has shortcuts that tensors on ``meta`` go without."""
    first = operands[0]
    for layout in (torch.contiguous_format, torch.channels_last):
        if all(t.is_contiguous(memory_format=layout) for t in operands):
            return torch.empty(first.shape, device="meta", memory_format=layout)
    if all(t.stride() == first.stride() == t.clone().stride() for t in operands):  # dense, in the same order
        return first
    return first + operands[-1]


define(SGD, "sgd", _SGD, _new_state, narrows_states=lambda group: bool(group["momentum"] != 0))
