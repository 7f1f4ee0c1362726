"""Adagrad."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad as adagrad

from oxistep.optim._native import NativeStep, zero_step

__all__ = ["Adagrad", "adagrad"]


class Adagrad(NativeStep, torch.optim.Adagrad):
    r"""Adagrad: a learning rate per element that falls with the squares of all its gradients.

    .. math::
        g &\leftarrow g + \lambda \theta \\
        h &\leftarrow h + g^2 \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 + (t - 1) \eta} \frac{g}{\sqrt{h} + \epsilon}

    Equal to torch's for-loop bit for bit in float32 and float64.

    Args:
        params: parameters, named parameters, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-2).
        lr_decay: :math:`\eta` (default: 0).
        weight_decay: :math:`\lambda` (default: 0).
        initial_accumulator_value: what :math:`h` starts with (default: 0).
        eps: :math:`\epsilon` (default: 1e-10).
        maximize: ascend instead of descend (default: False).
        foreach, fused, differentiable: as in torch; they choose among torch's own paths.
        state_dtype: ``torch.float32`` keeps the states of half-precision parameters in it (default: None, as torch).
        max_grad_norm: clip the norm of all gradients as they are read, which stay as they are (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).

    State: ``step`` (0-dimensional float32), ``sum`` (shape and dtype of the parameter); made by the constructor, as
    torch does.

    Raises:
        ValueError: for what ``torch.optim.Adagrad`` refuses, in its words.

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

    _rule = "adagrad"
    _torch = torch.optim.Adagrad

    def _new_state(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        initial = self.defaults["initial_accumulator_value"]
        return {
            "step": zero_step(p, group),
            "sum": torch.full_like(
                p, complex(initial, initial) if p.is_complex() else initial, memory_format=torch.preserve_format
            ),
        }
