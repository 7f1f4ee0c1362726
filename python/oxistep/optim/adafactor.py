"""Adafactor."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adafactor as _Adafactor
from torch.optim._adafactor import adafactor as adafactor
from torch.optim.optimizer import ParamsT

from oxistep.optim._definition import Definition, define
from oxistep.optim._kept import GradNormGroup, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import zero_step

__all__ = ["Adafactor", "adafactor"]


class Adafactor(NativeStep, _Adafactor):
    r"""Adafactor: gradients over the root of a running mean of squares, of which a matrix keeps rows and columns only.

    .. math::
        \alpha &\leftarrow \max(\epsilon_2, \mathrm{RMS}(\theta)) \min(\gamma, 1 / \sqrt{t}) \\
        \theta &\leftarrow \theta (1 - \gamma \lambda) \\
        R_i &\leftarrow R_i + t^\tau (\mathrm{mean}_j\, g_{ij}^2 - R_i), \quad
        C_j \leftarrow C_j + t^\tau (\mathrm{mean}_i\, g_{ij}^2 - C_j) \\
        V_{ij} &\leftarrow R_i C_j / \max(\mathrm{mean}(R), \epsilon_1) \\
        u &\leftarrow g / \sqrt{\max(V, \epsilon_1^2)} \\
        \theta &\leftarrow \theta - \frac{\alpha}{\max(1, \mathrm{RMS}(u) / d)} u

    A parameter of one dimension or none keeps a mean of its own, :math:`V \leftarrow V + t^\tau (g^2 - V)`; one of more
    than two is a batch of matrices. Agrees with torch's for-loop to 1e-4 in float32 and 1e-10 in float64 over eight
    steps (sums are taken in double precision). Nothing of the parameter's size is made for a step.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: :math:`\gamma`, the largest relative step and the factor of the decay; a number or a tensor of one element
            (default: 1e-2).
        beta2_decay: :math:`\tau`, at most 0: the weight of a new square is :math:`t^\tau` (default: -0.8).
        eps: :math:`\epsilon_1, \epsilon_2`, the smallest root of a mean of squares and the smallest RMS of a parameter.
            :math:`\epsilon_1` may be None: the machine epsilon of the dtype of the group's first parameter with a
            gradient (default: (None, 1e-3)).
        d: the largest RMS of an update, at least 1 (default: 1.0).
        weight_decay: :math:`\lambda` (default: 0.0).
        foreach: as in torch; it selects among torch's own implementations.
        maximize: ascend instead of descend (default: False).
        state_dtype: ``torch.float32`` keeps the states of half-precision parameters in float32 (default: None, as
            torch).
        ema: decay of a running average of the parameters, which each step updates (default: None, no average).
        ema_warmup: start the average with small decays, as timm's ``ModelEmaV3`` does (default: False).
        max_grad_norm: clip the norm of all gradients inside the step, without modifying them (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks to sum the norm over, if each rank holds a part of the parameters: ``"world"``, a
            process group, or a function that sums a small tensor over ranks (default: None, for ranks that hold all
            parameters, or DTensors).

    State:
        step: steps done, 0-dimensional float32 (float64 where that is torch's default dtype).
        row_var: :math:`R` of a matrix: the gradient's shape with a last dimension of one, and its dtype.
        col_var: :math:`C` of a matrix: the gradient's shape with a last dimension but one of one, and its dtype.
        variance: :math:`V` of a parameter of one dimension or none, in the gradient's shape and dtype.
        param_ema: the average, with ``ema``.

    Native:
        Contiguous CPU tensors of float32, float64, float16 and bfloat16, with gradients of the same dtype. Everything
        else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why. An empty parameter, on which
        torch divides by zero, has nothing to update: its step is counted.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite`` or
            ``ema`` has the wrong type.
        ValueError: if ``torch.optim.Adafactor`` rejects an argument; if ``state_dtype`` is not float32; if
            ``max_grad_norm`` is not above zero.
        RuntimeError: in ``step``, for a complex parameter or a sparse gradient, before anything is updated.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.Adafactor([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.9

    Reference:
        Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: GradNormGroup = None,
    ) -> None:
        keep_settings(
            self,
            state_dtype,
            max_grad_norm,
            skip_nonfinite,
            grad_norm_group,
            ema=ema,
            ema_warmup=ema_warmup,
            element_wise=False,
        )
        _Adafactor.__init__(
            self,
            params,
            lr=lr,
            beta2_decay=beta2_decay,
            eps=eps,
            d=d,
            weight_decay=weight_decay,
            foreach=foreach,
            maximize=maximize,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    state = {"step": zero_step(p, group)}
    if grad.dim() > 1:
        state["row_var"] = grad.new_zeros((*grad.shape[:-1], 1))
        state["col_var"] = grad.new_zeros((*grad.shape[:-2], 1, grad.shape[-1]))
    else:
        state["variance"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
    return state


class _AdafactorDefinition(Definition):
    """What is special where torch's step is asked: names of states, and an epsilon that belongs to a whole group."""

    def rehearse(self, optimizer: Any, g: int, p: Tensor, state: dict[str, Any] | None) -> None:
        # the rehearsal's parameter is a vector, whose state goes by another name
        if state and "row_var" in state:
            state = {"step": state["step"], "variance": state["row_var"]}
        super().rehearse(optimizer, g, p, state)

    def check_left(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        for _, p in left:  # torch refuses these group by group, with earlier groups updated
            if p.grad is None:
                continue
            if p.is_complex():
                raise RuntimeError("Adafactor does not support complex parameters")
            if p.grad.is_sparse:
                raise RuntimeError("Adafactor does not support sparse gradients")
        super().check_left(optimizer, left)

    def torch_step(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        # torch must see the epsilon of the whole group's first parameter, not of the first that is left to it
        groups = optimizer.param_groups
        try:
            optimizer.param_groups = [_with_eps(group) for group in groups]
            super().torch_step(optimizer, left)
        finally:
            optimizer.param_groups = groups


def _with_eps(group: dict[str, Any]) -> dict[str, Any]:
    """The group with a number for ``eps[0]``, if one of its parameters has a gradient."""
    eps1, eps2 = group["eps"]
    first = next((p for p in group["params"] if p.grad is not None), None)
    if eps1 is not None or first is None:
        return group
    return {**group, "eps": (torch.finfo(first.dtype).eps, eps2)}


define(Adafactor, "adafactor", _Adafactor, _new_state, kind=_AdafactorDefinition)
