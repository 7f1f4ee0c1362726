"""What a step over arrays by NumPy's own operations takes: the same as the native step, with the same words."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from oxistep.numpy._types import Array

__all__ = ["accepted", "gradient_of", "overlaps_itself", "refuse_overlaps", "span_overlaps"]


def gradient_of(gradient: Any, param: Array, name: str) -> Array:
    """A gradient as an array.

    Raises:
        TypeError: if it is none, or of another dtype.
        ValueError: if it is of another shape.
    """
    if isinstance(gradient, np.generic):
        gradient = np.asarray(gradient)
    return accepted(gradient, f"the gradient of {name}", param, name)


def accepted(array: Any, what: str, param: Array, name: str, *, write: bool = False) -> Array:
    """A gradient, a state or the parameter itself, if a step can take it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a numpy.ndarray, got {type(array).__name__}: convert it with np.asarray")
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{what} is a masked array, whose mask a step would ignore: pass its .data, or .filled(0) for a gradient"
        )
    if array.dtype != param.dtype:
        is_complex = array.dtype.kind == "c"
        remedy = "give its real part, .real" if is_complex else f"convert it with .astype(np.{param.dtype})"
        raise TypeError(f"{what} has dtype {array.dtype}, expected {param.dtype} like {name}: {remedy}")
    if array.shape != param.shape:
        raise ValueError(f"{what} has shape {array.shape}, expected {param.shape} like {name}")
    # what is wrong with a parameter, `explained` says
    remedy = "replace it in optimizer.state by its .copy()" if write else "pass a copy, .copy()"
    if write and not array.flags.writeable:
        raise ValueError(f"{what} is read-only, but a step changes it in place: {remedy}")
    if not array.flags.aligned:
        raise ValueError(f"{what} is not aligned to its element size of {array.dtype.itemsize} bytes: {remedy}")
    if write and overlaps_itself(array):
        raise ValueError(f"several elements of {what} share memory (a broadcast or window view): {remedy}")
    return array


def refuse_overlaps(written: Iterable[tuple[str, Array]], read: Iterable[tuple[str, Array]]) -> None:
    """Refuses arrays of which one is written and shares memory with another.

    Raises:
        ValueError: naming one of them.
    """
    if (pair := span_overlaps(written, read)) is not None:
        raise ValueError(
            f"{pair[1]} shares memory with another array of this step, or lies between its rows: pass a copy, "
            ".copy(), of one of them"
        )


def span_overlaps(
    written: Iterable[tuple[str, Array]], read: Iterable[tuple[str, Array]] = (), *, rows_too: bool = False
) -> tuple[str, str] | None:
    """The names of two arrays that share memory and of which one is written, if there are such.

    With `rows_too` also of two that lie between each other's rows.
    """
    spans = [(*_span(array), True, name, array) for name, array in written]
    spans += [(*_span(array), False, name, array) for name, array in read]
    spans = sorted((one for one in spans if one[4].size), key=lambda one: one[0])
    reach: list[Any] = []  # those that reach beyond where the next one begins
    for one in spans:
        reach = [other for other in reach if other[1] > one[0]]
        for other in reach:
            if (one[2] or other[2]) and (rows_too or _share(one[4], other[4])):
                return other[3], one[3]
        reach.append(one)
    return None


def _span(array: Array) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(array)


def _share(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]  # the stub knows two values
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: Array) -> bool:
    """Whether two indices may name the same element."""
    if not array.size:
        return False
    covered = 1
    dims = zip(map(abs, array.strides), array.shape, strict=True)
    for stride, n in sorted((stride, n) for stride, n in dims if n > 1):
        if stride < covered:
            return True
        covered += stride * (n - 1)
    return False
