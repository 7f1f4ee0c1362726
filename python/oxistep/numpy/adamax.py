"""Adamax."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, betas, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State

# The argument's name hides the checker's inside __init__.
_betas = betas


class Adamax(Optimizer):
    r"""Adamax: Adam with the largest recent gradient in place of the root mean square.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, lambda the weight decay and
    t = 1, 2, ... the step::

        g <- -g                if maximize
        g <- g + lambda theta  if weight_decay
        m <- beta1 m + (1 - beta1) g
        u <- max(beta2 u, |g| + epsilon)
        theta <- theta - gamma / (1 - beta1^t) * m / u

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 2e-3).
        betas: beta1 and beta2, how slowly the average of gradients and the largest one forget (default: (0.9, 0.999)).
        eps: epsilon, added to the gradient's size (default: 1e-8).
        weight_decay: lambda, L2 penalty (default: 0).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        exp_avg: m, in the parameter's shape and dtype.
        exp_inf: u, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import Adamax
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = Adamax([x], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [ 0.08632 -0.01231]

    Reference:
        Kingma, Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014, section 7.1.
    """

    _oxistep_rule = "adamax"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "betas": _betas,
        "eps": number("epsilon value", low=0.0),
        "weight_decay": number("weight_decay value", low=0.0),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "exp_avg", "exp_inf")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
                "betas": betas,
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
            "exp_avg": np.zeros_like(array, subok=False),
            "exp_inf": np.zeros_like(array, subok=False),
        }
