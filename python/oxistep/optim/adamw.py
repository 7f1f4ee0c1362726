"""AdamW: Adam with decoupled weight decay."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw
from torch.optim.optimizer import ParamsT

from oxistep.optim._definition import define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings
from oxistep.optim.adam import Adam, _new_state

__all__ = ["AdamW", "adamw"]

# torch's class, whatever may be put under its name later
_AdamW = torch.optim.AdamW


class AdamW(Adam, _AdamW):
    r"""Adam that shrinks the parameter instead of adding weight decay to the gradient.

    .. math::
        \theta \leftarrow \theta (1 - \gamma \lambda), \text{ then Adam's step with } \lambda = 0

    There is no ``decoupled_weight_decay``: it is always on. Accuracy is that of :class:`Adam`.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: learning rate :math:`\gamma`, a number or a tensor of one element (default: 1e-3).
        betas: :math:`\beta_1, \beta_2`, numbers or tensors of one element (default: (0.9, 0.999)).
        eps: :math:`\epsilon`, outside the root (default: 1e-8).
        weight_decay: :math:`\lambda` (default: 1e-2).
        amsgrad: keep and divide by the largest second moment (default: False).
        maximize: ascend instead of descend (default: False).
        capturable, foreach, fused, differentiable: as in torch. ``capturable`` and ``differentiable`` leave the step to
            torch; the others do not change a native step.
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
        exp_avg: :math:`m`, in the parameter's shape and dtype.
        exp_avg_sq: :math:`v`, in the parameter's shape and dtype.
        max_exp_avg_sq: the largest :math:`v` so far, with ``amsgrad``; in the parameter's shape and dtype.
        param_ema: with ``ema``, the average. "Train with less memory" names what ``state_dtype`` and ``weights`` add.

    Native:
        CPU tensors of float32, float64, float16, bfloat16, complex64 and complex128, of any shape and layout.
        Everything else falls back to torch's implementation; ``oxistep.explain(optimizer)`` says why.

    Raises:
        TypeError: if ``params`` holds something other than tensors, or if ``max_grad_norm``, ``skip_nonfinite``,
            ``seed`` or ``ema`` has the wrong type.
        ValueError: if ``torch.optim.AdamW`` rejects an argument; if ``state_dtype`` or ``weights`` is none of the
            above; if ``seed`` is not in [0, 2**64), or ``ema`` not in [0, 1); if ``max_grad_norm`` is not above
            zero.
        RuntimeError: in ``step``, for a sparse gradient, before anything is updated.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.AdamW([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.899

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2017.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
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
        _AdamW.__init__(
            self,
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


define(AdamW, "adam", _AdamW, _new_state)
