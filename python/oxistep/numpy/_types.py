"""The words in which the modules of this package speak of arrays, groups and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Group = dict[str, Any]
State = dict[str, Array]
# Arrays may lie in containers of any depth, which no type that mypy infers of a literal would fit.
Params = Iterable[Any] | Mapping[Any, Any]
Grad = Any
Grads = Iterable[Any] | Mapping[Any, Any]


def kind(value: object) -> str:
    """What an error calls something that is of a wrong kind: its class, with the library if that is not Python's."""
    cls = type(value)
    library = cls.__module__.partition(".")[0]
    return cls.__name__ if library in ("builtins", "numpy", "collections") else f"{library}.{cls.__name__}"


def short(names: Iterable[Any]) -> str:
    """The names for an error text, the first few of many."""
    listed = [repr(name) for name in names]
    return ", ".join(listed if len(listed) <= 8 else [*listed[:8], f"... ({len(listed)} in all)"])
