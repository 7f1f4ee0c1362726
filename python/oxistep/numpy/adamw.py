"""AdamW: Adam with one thing different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oxistep.numpy._hyper import LearningRate
from oxistep.numpy._types import Group, Params
from oxistep.numpy.adam import Adam


class AdamW(Adam):
    r"""AdamW: `Adam` whose weight decay shrinks the parameter and does not enter the averages.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, lambda the weight decay and
    t = 1, 2, ... the step::

        g <- -g         if maximize
        theta <- theta - gamma lambda theta
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        s <- max(s, v)  if amsgrad, else s = v
        theta <- theta - gamma (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon)

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 1e-3).
        betas: beta1 and beta2, how slowly the averages of gradient and square forget (default: (0.9, 0.999)).
        eps: epsilon, added to the denominator, outside the root (default: 1e-8).
        weight_decay: lambda (default: 1e-2).
        amsgrad: divide by the largest average of squares seen so far (default: False).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        exp_avg: m, in the parameter's shape and dtype.
        exp_avg_sq: v, in the parameter's shape and dtype.
        max_exp_avg_sq: s, if amsgrad; in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import AdamW
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = AdamW([x], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [-0.01616  0.01787]

    Reference:
        Loshchilov, Hutter, `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        follow: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_checked(self, given: Group, where: str = "") -> Group:
        checked = super()._oxistep_checked(given, where)
        if not checked["decoupled_weight_decay"]:
            raise ValueError(f"AdamW's weight decay is decoupled{where}; use Adam for the other kind")
        return checked

    def _oxistep_saved_group(self, saved: Mapping[str, Any]) -> Group:
        # Whatever a checkpoint of Adam says, as in torch.
        return {**super()._oxistep_saved_group(saved), "decoupled_weight_decay": True}
