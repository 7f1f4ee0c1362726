"""The learning rates that a scheduler will produce, asked of a copy of it with an optimizer that stands in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Metrics = Sequence[float] | Callable[[int], float]


class Rates(NamedTuple):
    """`values` of shape (steps, groups); `stopped` says why there are fewer steps than asked for."""

    values: NDArray[np.float64]
    stopped: str | None = None


def rates_of(scheduler: Any, steps: int, metrics: Metrics | None = None) -> Rates:
    """Of the next `steps` steps of a torch scheduler, of several that are stepped together, or of a function."""
    several = list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    if all(hasattr(one, "step") and hasattr(one, "optimizer") for one in several) and several:
        return _of_schedulers(several, steps, metrics)
    if len(several) == 1 and callable(scheduler):
        values = [scheduler(step) for step in range(steps)]
        for step, value in enumerate(values):
            if not isinstance(value, Real):
                raise TypeError(f"the learning rate of step {step} is a {type(value).__name__}, not a number")
        return Rates(np.array(values, np.float64)[:, None])
    raise TypeError(
        "expected a scheduler of torch.optim.lr_scheduler, a list of them, or a function of the step, "
        f"got {type(scheduler).__name__}"
    )


def _of_schedulers(schedulers: list[Any], steps: int, metrics: Metrics | None) -> Rates:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    optimizer = schedulers[0].optimizer
    if any(one.optimizer is not optimizer for one in schedulers):
        raise ValueError("schedulers that are stepped together must belong to one optimizer")
    stand_in = _stand_in(optimizer)
    # Whatever refers to the optimizer refers to the stand-in instead: parameters and states are not copied.
    copies = copy.deepcopy(schedulers, {id(optimizer): stand_in})
    if metrics is None and any(isinstance(one, ReduceLROnPlateau) for one in copies):
        raise ValueError("ReduceLROnPlateau lowers the rate by what it is told: give metrics=, one number a step")
    rates = []
    for step in range(steps):
        rates.append([float(group["lr"]) for group in stand_in.param_groups])
        if step + 1 == steps:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no optimizer has stepped
                for one in copies:
                    one.step(_metric(metrics, step)) if isinstance(one, ReduceLROnPlateau) else one.step()
        except ValueError as error:  # OneCycleLR refuses steps beyond its last
            return Rates(np.array(rates), str(error))
    return Rates(np.array(rates))


def _metric(metrics: Metrics | None, step: int) -> float:
    if metrics is None:
        raise ValueError("metrics= is missing")
    if callable(metrics):
        return float(metrics(step))
    if step >= len(metrics):
        raise IndexError(f"metrics= has {len(metrics)} numbers, step {step} wants one more")
    return float(metrics[step])


def _stand_in(optimizer: Any) -> Any:
    """An optimizer with the hyperparameters of another and one scalar in each group."""
    import torch

    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        | {"params": [torch.zeros(())]}
        for group in optimizer.param_groups
    ]
    made = torch.optim.SGD(groups, lr=0.0)
    made.defaults = dict(optimizer.defaults)

    def step() -> None:
        """Schedulers look whether the step is one that they have wrapped, and whether it was called."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    made.step = step  # type: ignore[method-assign,assignment]
    made._opt_called = True  # type: ignore[attr-defined]
    return made
