"""Resilient backpropagation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, two
from oxistep.numpy._types import Array, Group, Params, State


def _two_etas(value: Any) -> tuple[float, float]:
    first, second = two("etas", "eta value")(value)
    if not 0.0 < first < 1.0 < second:
        raise ValueError(f"Invalid eta values: {first}, {second}")
    return first, second


class Rprop(Optimizer):
    r"""Rprop: each element steps by a size of its own, which grows while its gradient keeps its sign.

    In these lines theta is the parameter and g its gradient, of a whole batch (the signs of noisy gradients mean
    little)::

        g <- -g                                      if maximize
        s <- max(s etas[0], step_sizes[0]);  g <- 0  where g h < 0
        s <- min(s etas[1], step_sizes[1])           where g h > 0
        theta <- theta - s sign(g)
        h <- g

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: what the step sizes start with, a number or a function of the number of steps done, counted from 0
            (default: 1e-2).
        etas: by what a step size shrinks and grows (default: (0.5, 1.2)).
        step_sizes: the smallest and the largest step size (default: (1e-6, 50)).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        prev: h, in the parameter's shape and dtype.
        step_size: s, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import Rprop
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = Rprop([x], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [ 0. -0.]

    Reference:
        Riedmiller, Braun, `A direct adaptive method for faster backpropagation learning: the RPROP algorithm
        <https://doi.org/10.1109/ICNN.1993.298623>`_, 1993.
    """

    _oxistep_rule = "rprop"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "etas": _two_etas,
        "step_sizes": two("step_sizes", "step size"),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "prev", "step_size")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
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
                "etas": etas,
                "step_sizes": step_sizes,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            "step": new_step(),
            "prev": np.zeros_like(array, subok=False),
            "step_size": np.full_like(array, self._oxistep_rate(group), subok=False),
        }

    def _oxistep_begun(self, new: Array, group: Group, state: State, old: Array) -> State:
        k = next(k for k, other in enumerate(self.param_groups) if other is group)
        rate = self._oxistep_learning_rate(group["lr"], k)
        begun = super()._oxistep_begun(new, group, state, old)
        return {**begun, "step_size": np.full_like(new, rate, subok=False)}
