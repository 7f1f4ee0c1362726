"""SparseAdam."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, keep_settings
from oxistep.optim._native import NativeStep
from oxistep.optim._new_states import zeros

__all__ = ["SparseAdam"]

# torch's class, whatever may be put under its name later
_SparseAdam = torch.optim.SparseAdam


class SparseAdam(NativeStep, _SparseAdam):
    r"""Adam on the rows that a sparse gradient names; the moments of other rows stand still.

    .. math::
        m &\leftarrow m + (1 - \beta_1) (g - m), \quad v \leftarrow v + (1 - \beta_2) (g^2 - v) \\
        \theta &\leftarrow \theta - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    A step costs by the rows named, not by the rows held; the first makes the dense states.

    Args:
        params: dense parameters, named parameters, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-3).
        betas: :math:`\beta_1, \beta_2` (default: (0.9, 0.999)).
        eps: :math:`\epsilon`, outside the root (default: 1e-8).
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
        step: steps done, a Python integer, as in torch.
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        param_ema: the average, with ``ema``.

    Native:
        Contiguous CPU parameters of float32, float64, float16 and bfloat16 with sparse gradients, coalesced or not.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite`` or
            ``ema`` has the wrong type.
        ValueError: if ``torch.optim.SparseAdam`` rejects an argument; if ``state_dtype`` is not float32; if
            ``max_grad_norm`` is not above zero.
        RuntimeError: in ``step``, for a dense gradient.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> table = torch.nn.Embedding(1000, 2, sparse=True)
        >>> optimizer = optim.SparseAdam(table.parameters(), lr=0.1)
        >>> before = table.weight.detach().clone()
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> optimizer.step()
        >>> (table.weight.detach() != before).any(dim=1).nonzero().flatten().tolist()
        [3, 7]

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
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
        _SparseAdam.__init__(
            self,
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            maximize=maximize,
        )


def _new_state(optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    return {"step": 0, "exp_avg": zeros(p), "exp_avg_sq": zeros(p)}


define(SparseAdam, "sparse_adam", _SparseAdam, _new_state)
