"""SparseAdam."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_step
from oxistep.numpy._hyper import Check, LearningRate, betas, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State

# The argument's name hides the checker's inside __init__.
_betas = betas


class SparseAdam(Optimizer):
    r"""Adam on the rows that a gradient names; the moments of other rows stand still.

    In these lines theta are the rows that are named, g their gradients, gamma the learning rate and t = 1, 2, ... the
    step::

        g <- -g  if maximize
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        theta <- theta - gamma sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

    A gradient is a pair ``(indices, rows)``: integers of shape (k,), each the index of a row of the parameter, in any
    order, and an array of shape (k, ...) with a row for each. Rows named several times are summed. A sparse matrix of
    ``scipy.sparse`` will do as well: its rows that hold something are those that are named.

    Args:
        params: what to update, in place: a list of arrays, a dict from name to array, or a list of group
            dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of one dimension or more that lie in one piece, row after row.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0 (default: 1e-3).
        betas: beta1 and beta2, how slowly the averages of gradient and square forget (default: (0.9, 0.999)).
        eps: epsilon, added to the denominator, outside the root (default: 1e-8).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32. (torch's is a Python integer.)
        exp_avg: m, in the parameter's shape and dtype.
        exp_avg_sq: v, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.
        RuntimeError: in ``step``, for a gradient of all rows, an array: use Adam for these.
        IndexError: in ``step``, for the index of a row that the parameter does not have.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import SparseAdam
        >>> table = np.zeros((1000, 2))
        >>> optimizer = SparseAdam([table], lr=0.1)
        >>> optimizer.step([(np.array([3, 7, 3]), np.ones((3, 2)))])
        >>> np.flatnonzero(table.any(axis=1))
        array([3, 7])

    Reference:
        Kingma, Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
    """

    _oxistep_rule = "sparse_adam"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "betas": _betas,
        "eps": number("epsilon value", low=0.0),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "exp_avg", "exp_avg_sq")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        follow: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            key: new_step() if key == "step" else np.zeros_like(array, subok=False) for key in self._oxistep_state_keys
        }
