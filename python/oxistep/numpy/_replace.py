"""Another array takes a parameter's place in an optimizer, with its state: one that has grown, say."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from oxistep.numpy._types import Array, State


def carried(
    state: Mapping[str, Array],
    begun: Mapping[str, Array],
    arrays: tuple[Array, Array],
    name: str,
    numbers: Collection[str],
) -> State:
    """The state of a parameter, for another array in its place.

    Args:
        state: that of the old array; it stays as it is.
        begun: the state with which the new one would begin: what is kept of elements that the old one had not.
        arrays: the one that was the parameter, and the one that is to be.
        name: what errors call it.
        numbers: the states of one number: those of an array without dimensions look like them.

    Raises:
        ValueError: for arrays of another number of dimensions, if there are states of their shape.
    """
    carried: State = {}
    old, new = arrays
    for key, value in state.items():
        if key in numbers or value.shape != old.shape or key not in begun or begun[key].shape != new.shape:
            carried[key] = value.copy()  # one number
            continue
        if old.ndim != new.ndim:
            raise ValueError(
                f"{name} has {old.ndim} dimensions, the array in its place {new.ndim}: its state {key!r} cannot be "
                f"carried over; reshape the old array first, with replace(old, old.reshape(...))"
            )
        both = tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        carried[key] = begun[key]
        carried[key][both] = value[both]
    return carried


def blank(new: Array, state: Mapping[str, Array], old: Array, numbers: Collection[str]) -> State:
    """Zeros for every state of the old array's shape; `numbers` are states of one number."""
    return {
        key: np.zeros_like(new, subok=False) if value.shape == old.shape and key not in numbers else value.copy()
        for key, value in state.items()
    }
