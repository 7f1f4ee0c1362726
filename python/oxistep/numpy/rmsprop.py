"""RMSprop."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over a running average of its size, optionally centered and with momentum.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, alpha the smoothing, mu the momentum
    and lambda the weight decay::

        g <- -g                                       if maximize
        g <- g + lambda theta                         if weight_decay
        v <- alpha v + (1 - alpha) g^2
        a <- alpha a + (1 - alpha) g                  if centered
        d <- sqrt(v - a^2) + epsilon                  if centered, else sqrt(v) + epsilon
        b <- mu b + g / d;  theta <- theta - gamma b  if momentum > 0
        theta <- theta - gamma g / d                  else

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 1e-2).
        alpha: how slowly the average forgets (default: 0.99).
        eps: epsilon, added to the denominator, outside the root (default: 1e-8).
        weight_decay: lambda, L2 penalty (default: 0).
        momentum: mu (default: 0).
        centered: divide by an estimate of the standard deviation (default: False).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        square_avg: v, in the parameter's shape and dtype.
        momentum_buffer: b, if momentum > 0; in the parameter's shape and dtype.
        grad_avg: a, if centered; in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import RMSprop
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = RMSprop([x], lr=0.1, alpha=0.9)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(abs(x).max() < 1e-4)
        True

    Reference:
        Tieleman, Hinton, `Neural Networks for Machine Learning, lecture 6
        <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, 2012.
        Graves, `Generating Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_, 2013
        (centered).
    """

    _oxistep_rule = "rmsprop"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "alpha": number("alpha value", low=0.0),
        "eps": number("epsilon value", low=0.0),
        "weight_decay": number("weight_decay value", low=0.0),
        "momentum": number("momentum value", low=0.0),
        "centered": flag("centered"),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "square_avg", "momentum_buffer", "grad_avg")
    _oxistep_added_later: ClassVar[Group] = {"momentum": 0, "centered": False, "maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
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
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_required_state(self, group: Group) -> tuple[str, ...]:
        keys = ["step", "square_avg"]
        if group["momentum"] > 0:
            keys.append("momentum_buffer")
        if group["centered"]:
            keys.append("grad_avg")
        return tuple(keys)

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            key: new_step() if key == "step" else np.zeros_like(array, subok=False)
            for key in self._oxistep_required_state(group)
        }
