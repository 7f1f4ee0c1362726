"""The structures that arrays lie in: containers of any depth, flattened by path, and gradients read in the same one.

A container is a mapping, a list or a tuple; everything else is where a parameter should be. The name of a parameter is
its path: ``layers.0.W``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import copy
from typing import Any

import numpy as np

from oxistep.numpy._types import Array, Grad, kind, short

Path = tuple[Any, ...]


class Branch:
    """A container: its keys (none for a sequence) and what is below each of them, `None` where an array is."""

    __slots__ = ("children", "expression", "flat", "keys", "size")

    def __init__(self, keys: tuple[Any, ...] | None, children: list[Branch | None], expression: str) -> None:
        self.keys, self.children, self.expression = keys, children, expression
        self.flat = all(child is None for child in children)
        self.size: int = sum(1 if child is None else child.size for child in children)

    def read(self, grads: Any, what: str, into: list[Grad]) -> None:
        """Appends the gradients that lie in this structure, in the order of the parameters.

        Args:
            grads: the gradients; in place of a container `None` stands for no gradient below it.
            what: what errors call them.
            into: what they are appended to.

        Raises:
            TypeError: for another kind of container.
            ValueError: for other keys, or another number of entries.
        """
        where = what + self.expression
        listed = in_order(grads, len(self.children), where) if self.keys is None else by_key(grads, self.keys, where)
        if self.flat:
            into += listed
            return
        for child, grad in zip(self.children, listed, strict=True):
            if child is None:
                into.append(grad)
            elif grad is None:
                into += [None] * child.size
            else:
                child.read(grad, what, into)


def in_order(grads: Any, n: int, what: str) -> list[Grad]:
    """The gradients of a sequence of `n` parameters, or containers of them, as a list."""
    if not isinstance(grads, list | tuple):
        if not isinstance(grads, Sequence | Iterator | ValuesView) or isinstance(grads, str | bytes | memoryview):
            raise TypeError(
                f"{what} must be a list of {n} gradient{'s' * (n != 1)}, as the parameters are, got {kind(grads)}"
                + ("; put a single one into a list" if n == 1 and isinstance(grads, np.ndarray) else "")
            )
        grads = list(grads)
    if len(grads) != n:
        raise ValueError(
            f"{what} must have {n} entr{'ies' if n != 1 else 'y'}, one for each parameter, got {len(grads)}"
            + _instead(grads, n)
        )
    return grads if type(grads) is list else list(grads)


def _instead(grads: Sequence[Any], n: int) -> str:
    """What is told to those who gave another number of gradients."""
    if n == 1 and grads and all(isinstance(grad, int | float | np.generic) for grad in grads):
        return "; the gradient of an array is one array: step([np.array([...])])"
    if len(grads) == 2 and isinstance(grads[0], int | float | np.generic):
        return "; of a pair (value, gradients) give the second, in the structure of the parameters"
    return "; None stands for no gradient"


def by_key(grads: Any, keys: Sequence[Any], what: str) -> list[Grad]:
    """The gradients of a mapping with these keys, in their order."""
    if isinstance(grads, ValuesView) and hasattr(grads, "mapping"):  # its order need not be that of the keys
        grads = grads.mapping
    if not isinstance(grads, Mapping):
        raise TypeError(f"{what} must be a dict, as the parameters are, with the keys {short(keys)}; got {kind(grads)}")
    try:
        listed = [grads[key] for key in keys]
    except KeyError:
        missing = [key for key in keys if key not in grads]
        others = [key for key in grads if key not in keys]
        has = f", but has {short(others)}" if others else ""
        raise ValueError(f"{what} lacks {short(missing)}{has}; None stands for no gradient") from None
    if len(grads) != len(keys):
        unknown = [key for key in grads if key not in keys]
        raise ValueError(f"{what} has {short(unknown)}, but the parameters are {short(keys)}")
    return listed


def is_container(value: object) -> bool:
    """Whether parameters may lie in it. A list of numbers is none: somebody took it for an array."""
    if isinstance(value, list | tuple):
        return not _are_numbers(value)
    return isinstance(value, Mapping)


def _are_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_are_numbers, value))
    return isinstance(value, int | float | complex)


class Flat:
    """A structure laid out flat.

    Attributes:
        arrays: what lies in it, in order.
        paths: the keys that lead to each.
        branch: its outermost container.
        containers: those that can be changed, each with the path that leads to it.
    """

    def __init__(self, root: Any) -> None:
        self.arrays: list[Any] = []
        self.paths: list[Path] = []
        self.containers: list[Any] = []
        self.branch = self._walk(root, (), ())

    @property
    def names(self) -> list[str]:
        """A name for each array: its path."""
        names = [".".join(map(str, path)) for path in self.paths]
        if len(set(names)) == len(names):
            return names
        # such as 1 and "1" in one dict
        times = {name: names.count(name) for name in names}
        return [name if times[name] == 1 else expression_of(path) for name, path in zip(names, self.paths, strict=True)]

    def _walk(self, node: Any, path: Path, above: tuple[int, ...]) -> Branch:
        if id(node) in above:
            raise ValueError(f"params{expression_of(path)} holds itself")
        keys: tuple[Any, ...] | None = None
        if isinstance(node, Mapping):
            keys = tuple(node)
            values = [node[key] for key in keys]
            if any(node[key] is not value for key, value in zip(keys, values, strict=True)):
                raise TypeError(
                    f"params{expression_of(path)} is a {kind(node)}, which makes new arrays whenever it is asked, so "
                    "nobody would see them change; make a dict of it first: params = dict(params)"
                )
            steps: Iterable[Any] = keys
        else:
            values = list(node)
            steps = getattr(node, "_fields", range(len(values)))
        if isinstance(node, Mapping | list | ValuesView):
            self.containers.append(node)
        children: list[Branch | None] = []
        for step, value in zip(steps, values, strict=True):
            if is_container(value):
                children.append(self._walk(value, (*path, step), (*above, id(node))))
            else:
                self.arrays.append(value)
                self.paths.append((*path, step))
                children.append(None)
        return Branch(keys, children, expression_of(path))


def expression_of(path: Path) -> str:
    """What Python code has behind the name of the outermost container."""
    return "".join(f"[{step!r}]" for step in path)


def listed_throughout(grads: Any) -> Any:
    """The same gradients in containers that can be looked at more than once."""
    if isinstance(grads, Iterator):
        grads = list(grads)
    if isinstance(grads, Mapping):
        return {key: listed_throughout(value) for key, value in grads.items()}
    if type(grads) is list or type(grads) is tuple:
        return type(grads)(map(listed_throughout, grads))
    return grads


def rebuilt(root: Any, change: Callable[[Array], Array]) -> Any:
    """The same structure of other arrays. What is no container is an array.

    Args:
        root: the structure, which stays as it is.
        change: makes of each array another.
    """
    if not is_container(root):
        return change(root)
    if isinstance(root, Mapping):
        values = {key: rebuilt(value, change) for key, value in root.items()}
        if type(root) is dict:
            return values
        other: Any = copy(root)  # a defaultdict, say
        for key, value in values.items():
            other[key] = value
        return other
    listed = [rebuilt(value, change) for value in root]
    if hasattr(root, "_make"):
        return root._make(listed)
    return tuple(listed) if isinstance(root, tuple) else listed
