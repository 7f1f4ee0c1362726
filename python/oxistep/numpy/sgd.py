"""Stochastic gradient descent, with momentum and Nesterov momentum."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._hyper import Check, LearningRate, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State


class SGD(Optimizer):
    r"""Stochastic gradient descent, optionally with (Nesterov) momentum.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, mu the momentum, tau the dampening
    and lambda the weight decay::

        g <- -g                  if maximize
        g <- g + lambda theta    if weight_decay
        b <- g                   first step of this parameter, if momentum
        b <- mu b + (1 - tau) g  every later one
        g <- g + mu b            if nesterov
        g <- b                   else, if momentum
        theta <- theta - gamma g

    As in torch, gamma multiplies the velocity b where it is used and is not part of it, so changing it changes the
    speed at once.

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 1e-3).
        momentum: mu (default: 0).
        dampening: tau, weakens what a gradient adds to the velocity (default: 0).
        weight_decay: lambda, L2 penalty (default: 0).
        nesterov: take Nesterov's momentum; needs momentum > 0 and dampening 0 (default: False).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        momentum_buffer: b, only if momentum is not 0; in the parameter's shape and dtype. No step counter, as
            in torch.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import SGD
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = SGD([x], lr=0.01, momentum=0.9)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [ 0.01691 -0.00855]

    Reference:
        Polyak, `Some methods of speeding up the convergence of iteration methods
        <https://doi.org/10.1016/0041-5553(64)90137-5>`_, 1964.
        Sutskever et al., `On the importance of initialization and momentum in deep learning
        <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.
    """

    _oxistep_rule = "sgd"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "momentum": number("momentum value", low=0.0),
        "dampening": number("dampening value"),
        "weight_decay": number("weight_decay value", low=0.0),
        "nesterov": flag("nesterov"),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("momentum_buffer",)
    _oxistep_added_later: ClassVar[Group] = {"nesterov": False, "maximize": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
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
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_checked(self, given: Group, where: str = "") -> Group:
        checked = super()._oxistep_checked(given, where)
        if checked["nesterov"] and (checked["momentum"] <= 0 or checked["dampening"] != 0):
            raise ValueError(f"Nesterov momentum requires a momentum and zero dampening{where}")
        return checked

    def _oxistep_required_state(self, group: Group) -> tuple[str, ...]:
        # Nothing is required of a loaded state: torch saves the buffer as None, or not at all, before the
        # first gradient, and the buffer is then born from that gradient.
        return ()

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        # Not zeros: on its first step the buffer is overwritten with the gradient.
        return {"momentum_buffer": np.empty_like(array, subok=False)}
