"""Learning rates as functions of the step.

Each function here makes a schedule: a function that is called with the number of steps done, 0 before the first, and
returns a learning rate. The optimizers of ``oxistep.numpy`` take one as ``lr``:

>>> import numpy as np
>>> from oxistep import schedules
>>> from oxistep.numpy import SGD
>>> w = np.zeros(1)
>>> optimizer = SGD([w], lr=schedules.cosine(0.1, steps=100))
>>> optimizer.step([np.ones(1)])
>>> w
array([-0.1])

torch's ``LambdaLR`` multiplies the optimizer's learning rate with what its function returns, so it takes a schedule
that begins at 1: ``LambdaLR(optimizer, schedules.cosine(1.0, steps=100))``.

Schedules can be copied, pickled, compared and printed. One schedule after another: `piecewise` and `warm_up`.
"""

import math as _math
from bisect import bisect_right as _bisect_right
from collections.abc import Callable as _Callable
from collections.abc import Mapping as _Mapping
from dataclasses import dataclass as _dataclass
from inspect import signature as _signature
from numbers import Integral as _Integral
from numbers import Real as _Real
from typing import Any as _Any

__all__ = ["constant", "cosine", "exponential", "one_cycle", "piecewise", "step", "warm_up"]

_Schedule = _Callable[[int], float]


def constant(value: float) -> _Schedule:
    """The same learning rate at every step.

    Args:
        value: the learning rate.

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if `value` is no number.
        ValueError: if it is negative or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedules.constant(0.1)(1000)
        0.1
    """
    return _Constant(_rate(value, "value"))


def step(value: float, every: int, factor: float = 0.1) -> _Schedule:
    """A learning rate that is multiplied by `factor` after every so many steps: ``value * factor ** (t // every)``.

    Args:
        value: the learning rate of the first step.
        every: after how many steps it falls.
        factor: what it is multiplied with (default: 0.1).

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if one is out of range or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.step(0.5, every=10, factor=0.5)
        >>> schedule(0), schedule(9), schedule(10), schedule(25)
        (0.5, 0.5, 0.25, 0.125)
    """
    return _Step(_rate(value, "value"), _steps(every, "every"), _rate(factor, "factor"))


def exponential(value: float, factor: float) -> _Schedule:
    """A learning rate that is multiplied by `factor` after every step: ``value * factor ** t``.

    Args:
        value: the learning rate of the first step.
        factor: what it is multiplied with.

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if one is negative or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.exponential(1.0, factor=0.5)
        >>> schedule(0), schedule(1), schedule(3)
        (1.0, 0.5, 0.125)
    """
    return _Exponential(_rate(value, "value"), _rate(factor, "factor"))


def cosine(value: float, steps: int, end: float = 0.0) -> _Schedule:
    """A learning rate that falls from `value` to `end` along half a cosine, in so many steps, and stays there.

    ``end + (value - end) * (1 + cos(pi * t / steps)) / 2``, as ``torch.optim.lr_scheduler.CosineAnnealingLR`` up to
    ``T_max``.

    Args:
        value: the learning rate of the first step.
        steps: after how many steps `end` is reached.
        end: the learning rate from then on (default: 0.0).

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if one is out of range or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.cosine(1.0, steps=4)
        >>> [round(schedule(t), 3) for t in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Reference:
        Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2016 (without the restarts).
    """
    return _Cosine(_rate(value, "value"), _steps(steps, "steps"), _rate(end, "end"))


def one_cycle(value: float, steps: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4) -> _Schedule:
    """A learning rate that rises to `value` and falls far below where it began, both along half a cosine.

    As ``torch.optim.lr_scheduler.OneCycleLR`` with ``max_lr=value, total_steps=steps``: from ``value / start`` to
    `value` in the first part, then to ``value / start / end`` at the last step, and there it stays.

    Args:
        value: the largest learning rate.
        steps: how many steps there are.
        rise: the share of steps in which it rises, torch's ``pct_start`` (default: 0.3).
        start: `value` over the learning rate of the first step, torch's ``div_factor`` (default: 25.0).
        end: the first learning rate over the last, torch's ``final_div_factor`` (default: 1e4).

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if an argument is no number.
        ValueError: if one is out of range or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.one_cycle(1.0, steps=11, rise=0.5, start=10.0)
        >>> [round(schedule(t), 3) for t in (0, 2, 4, 5, 10)]
        [0.1, 0.472, 0.973, 0.98, 0.0]

    Reference:
        Smith, Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2017.
    """
    rise = _rate(rise, "rise")
    if rise > 1:
        raise ValueError(f"rise: expected a share of the steps, from 0 to 1, got {rise}")
    divisors = [_rate(start, "start"), _rate(end, "end")]
    if 0.0 in divisors:
        raise ValueError("start and end: expected numbers above zero, which learning rates are divided by")
    return _OneCycle(_rate(value, "value"), _steps(steps, "steps"), rise, *divisors)


def warm_up(steps: int, then: float | _Schedule, start: float = 0.0) -> _Schedule:
    """A learning rate that rises along a line for some steps, and then is that of another schedule.

    At step t below `steps` it is ``start + (peak - start) * t / steps``, where `peak` is what `then` begins with; later
    it is ``then(t - steps)``. With `start` at zero the first step moves nothing.

    Args:
        steps: how many steps it rises.
        then: the schedule that follows, called with the number of steps since, or a number.
        start: the learning rate of the first step (default: 0.0).

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if an argument is no number, or `then` neither number nor function.
        ValueError: if a number is out of range or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.warm_up(4, then=schedules.exponential(1.0, factor=0.5))
        >>> [schedule(t) for t in range(7)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    """
    return _WarmUp(_steps(steps, "steps"), _schedule(then, "then"), _rate(start, "start"))


def piecewise(pieces: _Mapping[int, float | _Schedule]) -> _Schedule:
    """One learning rate, or one schedule, after another.

    Args:
        pieces: from the step at which each begins, the first of them 0, to a number, or to a schedule, which is called
            with the number of steps since then.

    Returns:
        Callable[[int], float]: the schedule.

    Raises:
        TypeError: if `pieces` is no dict of such.
        ValueError: if there is none for step 0, or a number is out of range or NaN.

    Example:
        >>> from oxistep import schedules
        >>> schedule = schedules.piecewise({0: 0.1, 100: 0.01, 200: schedules.exponential(0.01, factor=0.5)})
        >>> schedule(99), schedule(100), schedule(201)
        (0.1, 0.01, 0.005)
    """
    if not isinstance(pieces, _Mapping):
        raise TypeError(f"pieces: expected a dict from steps to learning rates, got {type(pieces).__name__}")
    if 0 not in pieces:
        raise ValueError("pieces: expected one that begins at step 0")
    begins = sorted(0 if begin == 0 else _steps(begin, "a step of pieces") for begin in pieces)
    return _Piecewise(tuple((begin, _schedule(pieces[begin], f"pieces[{begin}]")) for begin in begins))


def _rate(value: _Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, _Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 <= float(value) < _math.inf:
        raise ValueError(f"{name}: expected a number that is not negative, got {value}")
    return float(value)


def _steps(value: _Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, _Integral):
        raise TypeError(f"{name}: expected a number of steps, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a number of steps above zero, got {value}")
    return int(value)


def _schedule(value: _Any, name: str) -> _Schedule:
    _refuse_uncalled(value, name)
    if callable(value):
        function: _Schedule = value
        return function
    return constant(_rate(value, name))


def _refuse_uncalled(value: _Any, name: str) -> None:
    """Refuses a function of this module, which makes schedules and is none."""
    if any(value is maker for maker in _MAKERS):
        arguments = ", ".join(_signature(value).parameters)
        raise TypeError(
            f"{name}: schedules.{value.__name__} makes a schedule and is none; call it: "
            f"{name}=schedules.{value.__name__}({arguments})"
        )


_MAKERS = [constant, cosine, exponential, one_cycle, piecewise, step, warm_up]


# Classes and no closures, so that schedules can be pickled with their optimizer.


def _arc(begin: float, end: float, share: float) -> float:
    """Half a cosine between two numbers."""
    return end + (begin - end) * (1 + _math.cos(_math.pi * share)) / 2


@_dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, step: int) -> float:
        return self.value


@_dataclass(frozen=True)
class _Step:
    value: float
    every: int
    factor: float

    def __call__(self, step: int) -> float:
        return float(self.value * self.factor ** (step // self.every))


@_dataclass(frozen=True)
class _Exponential:
    value: float
    factor: float

    def __call__(self, step: int) -> float:
        return float(self.value * self.factor**step)


@_dataclass(frozen=True)
class _Cosine:
    value: float
    steps: int
    end: float

    def __call__(self, step: int) -> float:
        return _arc(self.value, self.end, min(step / self.steps, 1.0))


@_dataclass(frozen=True)
class _OneCycle:
    value: float
    steps: int
    rise: float
    start: float
    end: float

    def __call__(self, step: int) -> float:
        first = self.value / self.start
        top, last = self.rise * self.steps - 1, self.steps - 1
        if step <= top:
            return _arc(first, self.value, step / top if top > 0 else 1.0)
        return _arc(self.value, first / self.end, min((step - top) / (last - top), 1.0) if last > top else 1.0)


@_dataclass(frozen=True)
class _WarmUp:
    steps: int
    then: _Schedule
    start: float

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return float(self.then(step - self.steps))
        return self.start + (float(self.then(0)) - self.start) * step / self.steps


@_dataclass(frozen=True)
class _Piecewise:
    pieces: tuple[tuple[int, _Schedule], ...]

    def __call__(self, step: int) -> float:
        begin, schedule = self.pieces[_bisect_right(self.pieces, step, key=lambda piece: piece[0]) - 1]
        return float(schedule(step - begin))
