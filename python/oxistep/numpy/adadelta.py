"""Adadelta."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State


class Adadelta(Optimizer):
    r"""Adadelta: the ratio of two running root mean squares, of updates and of gradients, in place of a learning rate.

    In these lines theta is the parameter, g its gradient, gamma the factor lr, rho the smoothing and lambda the weight
    decay::

        g <- -g                if maximize
        g <- g + lambda theta  if weight_decay
        v <- rho v + (1 - rho) g^2
        d <- sqrt(u + epsilon) / sqrt(v + epsilon) * g
        u <- rho u + (1 - rho) d^2
        theta <- theta - gamma d

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: gamma, factor on the update, a number or a function of the number of steps done, counted from 0
            (default: 1.0).
        rho: how slowly both averages forget (default: 0.9).
        eps: epsilon, added inside the roots (default: 1e-6).
        weight_decay: lambda, L2 penalty (default: 0).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        square_avg: v, in the parameter's shape and dtype.
        acc_delta: u, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import Adadelta
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = Adadelta([x], lr=10.0)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [1.22258 0.55101]

    Reference:
        Zeiler, `ADADELTA: An Adaptive Learning Rate Method <https://arxiv.org/abs/1212.5701>`_, 2012.
    """

    _oxistep_rule = "adadelta"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "rho": number("rho value", low=0.0, high=1.0),
        "eps": number("epsilon value", low=0.0),
        "weight_decay": number("weight_decay value", low=0.0),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "square_avg", "acc_delta")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        follow: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            "step": new_step(),
            "square_avg": np.zeros_like(array, subok=False),
            "acc_delta": np.zeros_like(array, subok=False),
        }
