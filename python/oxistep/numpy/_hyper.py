"""What a hyperparameter may be: each checker takes the value given and returns the one kept, or raises.

Ranges and wording are torch's. Stricter than torch in two ways: NaN is refused everywhere, and a switch must
be a bool (``Adam(params, 1e-3, betas, 1e-8, 0, 1)`` is a mistake more often than a wish for AMSGrad).
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from oxistep import schedules

LearningRate = float | Callable[[int], float]
Check = Callable[[Any], Any]


def real(value: Any, what: str) -> float:
    """`value` as a plain int or float; TypeError for everything that is not one real number."""
    if isinstance(value, np.bool_ | bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}: {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def number(name: str, *, low: float = -np.inf, high: float = np.inf, below: float | None = None) -> Check:
    """A checker for numbers with ``low <= value <= high`` and, where given, ``value < below``."""

    def check(value: Any) -> float:
        checked = real(value, name)
        # Written so that NaN fails: every comparison with it is false.
        if not (low <= checked <= high and (below is None or checked < below)):
            raise ValueError(f"Invalid {name}: {checked}")
        return checked

    return check


def flag(name: str) -> Check:
    """A checker for switches."""

    def check(value: Any) -> bool:
        if not isinstance(value, np.bool_ | bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return bool(value)

    return check


def learning_rate(value: Any) -> LearningRate:
    """A number that is not negative, also in an array without dimensions, or a function of the number of steps done."""
    if callable(value):
        schedules._refuse_uncalled(value, "lr")
        function: Callable[[int], float] = value
        return function
    if isinstance(value, np.ndarray) and value.ndim == 0:
        number("learning rate", low=0.0)(value[()])
        kept: Any = value  # and read in every step: it may be changed in place
        return kept  # type: ignore[no-any-return]
    if isinstance(value, np.bool_ | bool) or not isinstance(value, Real):
        raise TypeError(
            f"lr must be a number or a function of the number of steps done, got {type(value).__name__}: {value!r}"
        )
    return float(number("learning rate", low=0.0)(value))


def max_norm(value: Any) -> float | None:
    """The setting ``max_grad_norm``: a number above zero, or None."""
    if value is None:
        return None
    checked = float(real(value, "max_grad_norm"))
    if not checked > 0:
        raise ValueError(f"max_grad_norm: expected a positive number or None, got {checked}")
    return checked


def two(name: str, what: str, *, low: float = -np.inf, below: float | None = None) -> Check:
    """A checker for the two numbers of argument `name`, each with ``low <= value < below``; errors call one `what`."""

    def check(value: Any) -> tuple[float, float]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{name} must be a tuple of two numbers, got {value!r}")
        first, second = (
            float(number(f"{what} at index {i}", low=low, below=below)(one)) for i, one in enumerate(value)
        )
        return first, second

    return check


betas = two("betas", "beta parameter", low=0.0, below=1.0)
