"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_scalar, new_step
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State


class ASGD(Optimizer):
    r"""Gradient descent with a falling rate, and the average of the parameters it passes through.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, lambda the weight decay and
    t = 1, 2, ... the step; eta begins as gamma, mu as 1::

        g <- -g                if maximize
        g <- g + lambda theta  if weight_decay
        theta <- theta (1 - lambd eta) - eta g
        a <- a + mu (theta - a)
        eta <- gamma / (1 + lambd gamma t)^alpha;  mu <- 1 / max(1, t - t0)

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 1e-2).
        lambd: decay of the parameter and of the rate (default: 1e-4).
        alpha: power with which the rate falls (default: 0.75).
        t0: when averaging starts (default: 1e6).
        weight_decay: lambda, L2 penalty (default: 0).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        eta: 0-dimensional float32, as in torch.
        mu: 0-dimensional float32, as in torch.
        ax: a, the average, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import ASGD
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = ASGD([x], lr=0.05)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [0.00011 0.     ]

    Reference:
        Polyak, Juditsky, `Acceleration of Stochastic Approximation by Averaging <https://doi.org/10.1137/0330046>`_,
        1992.
    """

    _oxistep_rule = "asgd"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "lambd": number("lambd value", low=0.0),
        "alpha": number("alpha value", low=0.0),
        "t0": number("t0 value"),
        "weight_decay": number("weight_decay value", low=0.0),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "eta", "mu", "ax")
    _oxistep_scalars = ("step", "eta", "mu")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
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
                "lambd": lambd,
                "alpha": alpha,
                "t0": t0,
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
            "eta": new_scalar(self._oxistep_rate(group)),
            "mu": new_scalar(1.0),
            "ax": np.zeros_like(array, subok=False),
        }

    def _oxistep_begun(self, new: Array, group: Group, state: State, old: Array) -> State:
        # The average of what has just come is what it is.
        return {**super()._oxistep_begun(new, group, state, old), "ax": np.array(new, copy=True, subok=False)}
