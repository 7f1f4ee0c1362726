"""The learning rates of a NumPy optimizer: numbers, arrays of one number, or functions of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from oxistep.numpy._hyper import Check, real
from oxistep.numpy._types import Group


class Rates:
    """What an optimizer has of learning rates."""

    _oxistep_checks: ClassVar[dict[str, Check]]

    _oxistep_rates: Sequence[float] = ()
    """The learning rates of the groups in the step under way, or the last one: some states begin as those."""

    param_groups: list[Group]
    step_count: int

    @property
    def lr(self) -> Any:
        """The learning rate of all groups: a number, or a function of the number of steps done.

        Where groups have several, an array with one for each of them (a list, if there are functions among them). It
        may be set to what the constructor takes, for all groups, or to a list or an array with one for each of them:
        ``optimizer.lr *= 0.9`` slows down all groups.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> optimizer = SGD([{"params": [np.zeros(2)]}, {"params": [np.zeros(3)], "lr": 1.0}], lr=0.5)
            >>> optimizer.lr *= 0.5
            >>> optimizer.lr
            array([0.25, 0.5 ])
            >>> optimizer.lr = 0.125
            >>> optimizer.lr
            0.125
        """
        self._oxistep_has_rate()
        return one_or_all([group["lr"] for group in self.param_groups])

    @lr.setter
    def lr(self, value: Any) -> None:
        self._oxistep_has_rate()
        groups = self.param_groups
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0):
            if len(value) != len(groups):
                raise ValueError(
                    f"lr must be one learning rate, or one for each of the {len(groups)} groups, got {len(value)}"
                )
            values = list(value)
        else:
            values = [value] * len(groups)
        check = self._oxistep_checks["lr"]
        for group, checked in zip(groups, [check(one) for one in values], strict=True):
            group["lr"] = checked

    @property
    def last_lr(self) -> Any:
        """The learning rate with which ``step`` was called last, as a number, also where ``lr`` is a function.

        Where groups have several, an array with one for each of them. None before the first step.

        Example:
            >>> import numpy as np
            >>> from oxistep import schedules
            >>> from oxistep.numpy import SGD
            >>> optimizer = SGD([np.zeros(2)], lr=schedules.exponential(0.5, factor=0.5))
            >>> for _ in range(3):
            ...     optimizer.step([np.ones(2)])
            >>> optimizer.last_lr
            0.125
        """
        self._oxistep_has_rate()
        return one_or_all(list(self._oxistep_rates)) if self._oxistep_rates else None

    def _oxistep_has_rate(self) -> None:
        if "lr" not in self._oxistep_checks:
            raise AttributeError(f"{type(self).__name__} has no learning rate among its hyperparameters")
        if "param_groups" not in self.__dict__:
            raise AttributeError(
                "lr is the learning rate of param_groups, which this optimizer does not have yet: call "
                "super().__init__ first, or choose another name"
            )

    def _oxistep_learning_rate(self, lr: Any, k: int) -> float:
        where = f" in param_groups[{k}]"
        if lr is None:
            raise ValueError(
                f"no learning rate{where}: the loaded one was a function, which is not saved; "
                f"set optimizer.param_groups[{k}]['lr']"
            )
        if callable(lr):
            lr = lr(self.step_count)
            where += f", returned by its function for step {self.step_count}"
        if isinstance(lr, np.ndarray) and lr.ndim == 0:
            lr = lr[()]
        try:
            lr = real(lr, "lr")
        except TypeError as error:
            raise TypeError(f"{error}{where}") from None
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}{where}")
        return float(lr)

    def _oxistep_rate(self, group: Group) -> float:
        """The learning rate of a group in the step under way."""
        k = next(k for k, other in enumerate(self.param_groups) if other is group)
        return self._oxistep_rates[k]


def one_or_all(rates: list[Any]) -> Any:
    """One learning rate, if all are the same; else all of them."""
    first = rates[0]
    if all(rate is first or (not callable(rate) and not callable(first) and rate == first) for rate in rates):
        return first
    return rates if any(callable(rate) or rate is None for rate in rates) else np.array(rates, np.float64)
