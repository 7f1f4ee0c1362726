"""NAdam."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import new_scalar, new_step
from oxistep.numpy._hyper import Check, LearningRate, betas, flag, learning_rate, number
from oxistep.numpy._types import Array, Group, Params, State

# The argument's name hides the checker's inside __init__.
_betas = betas


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov's look ahead.

    In these lines theta is the parameter, g its gradient, gamma the learning rate, lambda the weight decay, psi the
    momentum decay and t = 1, 2, ... the step::

        g <- -g                              if maximize
        theta <- theta - gamma lambda theta  if weight_decay and decoupled_weight_decay
        g <- g + lambda theta                else, if weight_decay
        mu(t) = beta1 (1 - 0.96^(t psi) / 2);  P <- P mu(t)
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        d <- sqrt(v / (1 - beta2^t)) + epsilon
        theta <- theta - gamma (1 - mu(t)) / (1 - P) * g / d
                       - gamma mu(t + 1) / (1 - P mu(t + 1)) * m / d

    Args:
        params: what to update, in place: arrays in a list, a dict, or containers of these at any depth, or a list of
            group dicts ``{"params": ..., "lr": ...}`` whose other entries override the arguments below. float32,
            float64 or float16 arrays of any shape and any layout that does not overlap.
        lr: learning rate gamma, a number or a function of the number of steps done, counted from 0, such as those of
            `oxistep.schedules` (default: 2e-3).
        betas: beta1 and beta2, how slowly the averages of gradient and square forget (default: (0.9, 0.999)).
        eps: epsilon, added to the denominator, outside the root (default: 1e-8).
        weight_decay: lambda (default: 0).
        momentum_decay: psi (default: 4e-3).
        decoupled_weight_decay: shrink the parameter itself instead of adding to the gradient (default: False).
        maximize: ascend instead of descend (default: False).
        max_grad_norm: clip the norm of all gradients to this number as the step takes them; they stay as they are
            (default: None, no clipping).
        skip_nonfinite: leave out the whole step if a gradient holds NaN or infinity (default: False).
        follow: train an array that has been put in the place of another in the dict or list that was given, if it
            has the same shape and dtype (default: False, which raises).

    State:
        step: t, 0-dimensional float32, as in torch.
        mu_product: P, 0-dimensional float32, as in torch.
        exp_avg: m, in the parameter's shape and dtype.
        exp_avg_sq: v, in the parameter's shape and dtype.

    Native:
        Every step; what it cannot take it refuses, before anything is changed.

    Raises:
        TypeError: something in `params` is not an array of one of these types, or an argument has a wrong
            type.
        ValueError: an argument is out of range or NaN, an array cannot be written, or `params` is empty.

    Example:
        >>> import numpy as np
        >>> from oxistep.numpy import NAdam
        >>> x = np.array([4.0, 3.0])
        >>> optimizer = NAdam([x], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([np.array([2.0, 20.0]) * x])  # gradient of x1^2 + 10 x2^2
        >>> print(x.round(5))
        [-0.00017 -0.00473]

    Reference:
        Dozat, `Incorporating Nesterov Momentum into Adam <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_,
        2016.
    """

    _oxistep_rule = "nadam"
    _oxistep_checks: ClassVar[dict[str, Check]] = {
        "lr": learning_rate,
        "betas": _betas,
        "eps": number("epsilon value", low=0.0),
        "weight_decay": number("weight_decay value", low=0.0),
        "momentum_decay": number("momentum_decay value", low=0.0),
        "decoupled_weight_decay": flag("decoupled_weight_decay"),
        "maximize": flag("maximize"),
    }
    _oxistep_state_keys = ("step", "mu_product", "exp_avg", "exp_avg_sq")
    _oxistep_scalars = ("step", "mu_product")
    _oxistep_added_later: ClassVar[Group] = {"maximize": False, "decoupled_weight_decay": False}

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
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
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
            },
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            follow=follow,
        )

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        return {
            "step": new_step(),
            "mu_product": new_scalar(1.0),
            "exp_avg": np.zeros_like(array, subok=False),
            "exp_avg_sq": np.zeros_like(array, subok=False),
        }
