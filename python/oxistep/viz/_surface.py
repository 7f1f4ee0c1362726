"""A function of two variables: its values on a grid, and its gradient wherever an optimizer stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Function = Callable[[Any, Any], Any]
Points = NDArray[np.float64]

_STEP = float(np.cbrt(np.finfo(np.float64).eps))  # of central differences: error of rounding and of the rule balance


class Surface:
    """`function(x1, x2)` of tensors, arrays or numbers; `gradient(x1, x2)`, a pair, is optional.

    Without a gradient it is torch's where the function takes tensors, else that of central differences in float64.
    """

    def __init__(self, function: Function, gradient: Function | None = None) -> None:
        _check("function", function)
        if gradient is not None:
            _check("gradient", gradient)
        self.function = function
        self.given_gradient = gradient
        self.takes_tensors = _takes_tensors(function)

    def values(self, x1: Points, x2: Points) -> Points:
        """On a grid, element by element; NaN where the function has no value."""
        with np.errstate(all="ignore"):
            if self.takes_tensors:
                import torch

                found = self.function(torch.from_numpy(x1), torch.from_numpy(x2)).detach().numpy()
            else:
                found = _elementwise(self.function, x1, x2)
            return np.broadcast_to(np.asarray(found, np.float64), x1.shape)

    def gradient(self, point: NDArray[Any]) -> Points:
        """At one point, in float64."""
        x1, x2 = (float(x) for x in point)
        if self.given_gradient is not None:
            return np.array([float(g) for g in self.given_gradient(x1, x2)])
        if self.takes_tensors:
            import torch

            at = torch.tensor([x1, x2], dtype=torch.float64, requires_grad=True)
            return np.asarray(torch.autograd.grad(self.function(*at), at)[0])
        with np.errstate(all="ignore"):
            return np.array([self._slope(x1, x2, 1.0, 0.0), self._slope(x1, x2, 0.0, 1.0)])

    def _slope(self, x1: float, x2: float, way1: float, way2: float) -> float:
        step = _STEP * max(1.0, abs(x1 * way1 + x2 * way2))
        up = float(self.function(x1 + step * way1, x2 + step * way2))
        down = float(self.function(x1 - step * way1, x2 - step * way2))
        return (up - down) / (2 * step)


def _check(what: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{what} must be callable with two variables, got {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C
        return
    try:
        signature.bind(0.0, 0.0)
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{what} must be callable with two variables, such as lambda x1, x2: ..., got {name}{signature}"
        ) from None


def _takes_tensors(function: Function) -> bool:
    """Whether torch can differentiate it; NumPy's functions refuse tensors, or lose the way back."""
    try:
        import torch
    except ModuleNotFoundError:
        return False
    at = torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True)
    try:
        value = function(*at)
    except Exception:
        return False  # the next call, with numbers, shows what is wrong with it
    return isinstance(value, torch.Tensor) and value.requires_grad and value.numel() == 1


def _elementwise(function: Function, x1: Points, x2: Points) -> Any:
    try:
        return function(x1, x2)
    except (TypeError, ValueError):  # a function of numbers alone: math.sin, an `if`
        return np.vectorize(function, otypes=[np.float64])(x1, x2)
