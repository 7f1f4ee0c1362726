"""Optimizers let loose on a function of two variables: where they go, step by step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxistep.numpy import Optimizer as ArrayOptimizer
from oxistep.viz._surface import Points, Surface

Make = Callable[[list[Any]], Any]


class Track(NamedTuple):
    """Where an optimizer went: `points` of shape (points, 2), all finite; `diverged` if the next would not be."""

    points: Points
    diverged: bool


def checked_start(start: ArrayLike) -> Points:
    """The point where all begin."""
    point = np.asarray(start, np.float64)
    with np.errstate(over="ignore"):
        fits = np.isfinite(point.astype(np.float32)).all()
    if point.shape != (2,) or not fits:
        raise ValueError(f"start must be two finite numbers that float32 can hold, got {start!r}")
    return point


def checked_steps(steps: int) -> int:
    """How many steps are taken."""
    if operator.index(steps) < 1:
        raise ValueError(f"steps must be positive, got {steps!r}")
    return operator.index(steps)


def track_of(name: str, what: Make | ArrayLike, surface: Surface, start: Points, steps: int) -> Track:
    """The path of an optimizer, or one that was recorded; it ends early where a coordinate is not finite."""
    if callable(what):
        path = _descend(name, what, surface, start, steps)
    else:
        path = recorded(name, what, "a path of shape (points, 2)")
        if path.ndim != 2 or path.shape[1] != 2 or not len(path):
            raise ValueError(f"the path {name!r} must have shape (points, 2), got {path.shape}")
    finite = np.isfinite(path[:, 0]) & np.isfinite(path[:, 1])
    if not finite[0]:
        raise ValueError(f"the path {name!r} must begin with a finite point, got {path[0]}")
    return Track(path, False) if finite.all() else Track(path[: int(finite.argmin())], True)


def recorded(name: str, what: Any, form: str) -> Points:
    """The numbers of what was recorded; an optimizer, or whatever holds none, is refused. `form`: what is wanted."""
    if hasattr(what, "step"):
        kind = type(what).__name__
        raise TypeError(
            f"{name!r} is an optimizer; expected a function that makes one: give lambda params: {kind}(params, ...)"
        )
    try:
        return np.asarray(what, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name!r} must be a function that makes an optimizer of a list of parameters, or {form}, "
            f"got {type(what).__name__}"
        ) from None


def by_name(optimizers: Any) -> Mapping[str, Any]:
    """The optimizers, refused if they have no names."""
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            "optimizers must be a dict from name to a function that makes an optimizer, such as "
            f"{{'Adam': lambda params: Adam(params, lr=0.1)}}, got {type(optimizers).__name__}"
        )
    return optimizers


def built(name: str, make: Make, arrays: list[Any], tensors: Callable[[], list[Any]]) -> tuple[Any, list[Any]]:
    """The optimizer that `make` makes of arrays, or else of tensors, and the parameters that it was given.

    Classes of torch.optim refuse arrays and those of oxistep.numpy tensors, both with a TypeError.
    """
    try:
        optimizer: Any = make(arrays)
        parameters = arrays
    except TypeError as refused:
        try:
            parameters = tensors()
        except ModuleNotFoundError:  # of torch: then it was no optimizer of torch that refused
            raise refused from None
        optimizer = make(parameters)
    if not hasattr(optimizer, "step"):
        raise TypeError(
            f"{name!r} must make an optimizer of a list of parameters, it made a {type(optimizer).__name__}"
        )
    set_to_train(optimizer)
    return optimizer, parameters


def set_to_train(optimizer: Any) -> None:
    """Sets a schedule-free optimizer to train; others have no such mode."""
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()


@contextmanager
def tested(optimizer: Any) -> Iterator[None]:
    """Where the parameters are what is to be tested: of a schedule-free optimizer the averages."""
    turns = callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
    if turns:
        optimizer.eval()
    try:
        yield
    finally:
        if turns:
            optimizer.train()


def takes_arrays(optimizer: Any) -> bool:
    """Whether it is one of oxistep.numpy."""
    return isinstance(optimizer, ArrayOptimizer)


def _descend(name: str, make: Make, surface: Surface, start: Points, steps: int) -> Points:
    def tensors() -> list[Any]:
        import torch

        return [torch.tensor(start.tolist(), requires_grad=True)]

    optimizer, [point] = built(name, make, [start.astype(np.float32)], tensors)
    advance = _with_arrays if takes_arrays(optimizer) else _with_tensors
    with np.errstate(all="ignore"):
        return advance(optimizer, point, surface, steps)


def _with_arrays(optimizer: Any, point: NDArray[np.float32], surface: Surface, steps: int) -> Points:
    path = [point.tolist()]
    for _ in range(steps):
        optimizer.step([surface.gradient(point).astype(point.dtype)])
        with tested(optimizer):
            path.append(point.tolist())
        if not np.isfinite(point).all():
            break
    return np.array(path, np.float64)


def _with_tensors(optimizer: Any, point: Any, surface: Surface, steps: int) -> Points:
    import torch

    def closure() -> Any:
        optimizer.zero_grad()
        if surface.takes_tensors and surface.given_gradient is None:
            loss = surface.function(*point)
            loss.backward()
            return loss
        here = point.detach().numpy()
        point.grad = torch.tensor(surface.gradient(here).tolist(), dtype=point.dtype)
        return torch.tensor(float(surface.values(*(np.array([x], np.float64) for x in here))[0]))

    path = [point.tolist()]
    for _ in range(steps):
        optimizer.step(closure)  # a closure, because LBFGS wants one; to the others it is the same
        with tested(optimizer):
            path.append(point.tolist())
        if not torch.isfinite(point).all():
            break
    return np.array(path, np.float64)
