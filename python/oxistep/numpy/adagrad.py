"""Adagrad."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State


class Adagrad(Optimizer):
    r"""Adagrad: each element's learning rate shrinks with the gradients that it has seen.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, eta its decay, lambda the weight
    decay and t = 1, 2, ... the step::

        g <- -g                if maximize
        g <- g + lambda theta  if weight_decay
        h <- h + g^2
        theta <- theta - gamma / (1 + (t - 1) eta) * g / (sqrt(h) + epsilon)

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 1e-2).
        lr_decay: eta (default: 0).
        weight_decay: lambda, L2 penalty (default: 0).
        initial_accumulator_value: what h starts from (default: 0).
        eps: epsilon, added to the denominator (default: 1e-10).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        sum: h, in the parameter's shape and dtype. Both are made when the parameter is added, as in torch.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import Adagrad
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = Adagrad([x], lr=0.1, eps=1e-8)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [2.32355 1.39497]

    Reference:
        Duchi, Hazan, Singer, `Adaptive Subgradient Methods for Online Learning and Stochastic Optimization
        <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011.
    """

    _oxistep_rule = "adagrad"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "lr_decay": number("lr_decay value", low=0.0),
        "weight_decay": number("weight_decay value", low=0.0),
        "initial_accumulator_value": number("initial_accumulator_value value", low=0.0),
        "eps": number("epsilon value", low=0.0),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "sum")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
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
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_first_state(self, array: Array, group: Group) -> State:
        # At once, not at the first gradient: torch's Adagrad cannot step from a checkpoint that lacks a
        # state.
        return self._oxistep_new_state(array, group)

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            "step": new_step(),
            "sum": np.full_like(array, group["initial_accumulator_value"], subok=False),
        }

    def _oxistep_begun(self, new: Array, group: Group, state: State, old: Array) -> State:
        return {**super()._oxistep_begun(new, group, state, old), "sum": self._oxistep_new_state(new, group)["sum"]}
