"""Programs as graphs: every value is a node that says how it comes of earlier ones.

The same operation on the same operands is one node. Numbers whose operands are all known are computed at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from oxistep.rules._operations import OPERATIONS

__all__ = ["LARGEST", "Graph", "Kind", "Node", "TooLarge", "finite_or_not", "is_number"]

LARGEST = 2000
"""So many operations a program may have. (Loops are unrolled, so one that does not end meets this.)"""


class Kind(Enum):
    """What a value is."""

    ELEMENTS = "a value for each element"
    MASK = "true or false for each element"
    NUMBER = "a number"
    FLAG = "true or false"

    @property
    def has_elements(self) -> bool:
        return self in (Kind.ELEMENTS, Kind.MASK)


class TooLarge(Exception):  # noqa: N818 (it becomes a TypeError that names the rule)
    """A program would have more operations than are allowed."""


@dataclass(frozen=True)
class Node:
    """An operation on earlier nodes, or something that is given (``what`` says which)."""

    op: str
    args: tuple[int, ...]
    what: Any
    kind: Kind


class Graph:
    """The nodes of one program, each after its operands."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._places: dict[tuple[Any, ...], int] = {}

    def add(self, op: str, args: tuple[int, ...], what: Any, kind: Kind) -> int:
        """A node, found again if there is one like it."""
        key = (op, args, what, kind)
        if key in self._places:
            return self._places[key]
        if len(self.nodes) >= LARGEST:
            raise TooLarge
        self.nodes.append(Node(op, args, what, kind))
        return self._places.setdefault(key, len(self.nodes) - 1)

    def constant(self, value: float) -> int:
        """A number that is known. (Compared by its bits: -0.0 is not 0.0, and NaN is itself.)"""
        return self.add("constant", (), float(value).hex(), Kind.NUMBER)

    def value_of(self, node: int) -> float | None:
        """A constant's value."""
        n = self.nodes[node]
        return float.fromhex(n.what) if n.op == "constant" else None

    def apply(self, name: str, args: tuple[int, ...]) -> int:
        """An operation of the table."""
        operation = OPERATIONS[name]
        kinds = [self.nodes[i].kind for i in args]
        if any(kind.has_elements for kind in kinds):
            kind = Kind.MASK if operation.is_flag else Kind.ELEMENTS
        else:
            kind = Kind.FLAG if operation.is_flag else Kind.NUMBER
            values = [self.value_of(i) for i in args]
            if kind is Kind.NUMBER and all(v is not None for v in values):
                with np.errstate(all="ignore"):
                    return self.constant(float(operation.numpy(*map(np.float64, values))))
        return self.add(name, args, None, kind)

    def formula(self, node: int, depth: int = 6) -> str:
        """How a value is computed, as Python would say it."""
        n = self.nodes[node]
        if n.op == "constant":
            return f"{float.fromhex(n.what):g}"
        if not n.args:
            return {"state": "s.{}", "group": "s.group.{}", "step": "s.step"}.get(n.op, "{}").format(n.what)
        if depth == 0:
            return "..."
        form = OPERATIONS[n.op].form if n.op in OPERATIONS else None
        args = [self.formula(i, depth - 1) for i in n.args]
        if form is None:
            return f"{n.what if n.op == 'reduce' else n.op}({', '.join(args)})"
        if _is_operator(n.op):
            args = [f"({arg})" if _is_operator(self.nodes[i].op) else arg for i, arg in zip(n.args, args, strict=True)]
        return form.format(*args)

    def cone(self, wanted: Iterable[int], *, elements: bool = False) -> set[int]:
        """What these values need, themselves included; ``elements``: of that what each element needs."""
        found: set[int] = set()
        left = list(wanted)
        while left:
            i = left.pop()
            node = self.nodes[i]
            if i in found or (elements and not node.kind.has_elements):
                continue
            found.add(i)
            left.extend(node.args)
        return found

    def levels(self) -> list[int]:
        """Of each node, how many passes over memory must have ended before it can be computed."""
        levels: list[int] = []
        for node in self.nodes:
            level = max((levels[i] for i in node.args), default=0)
            levels.append(level + (node.op in ("reduce", "total")))
        return levels


def _is_operator(op: str) -> bool:
    """Whether an operation is written with a sign, and not as a call."""
    return op in OPERATIONS and not OPERATIONS[op].form.startswith(OPERATIONS[op].name)


def is_number(value: Any) -> bool:
    """Whether it is a plain number: Python's or NumPy's, no complex one."""
    return isinstance(value, (int, float, np.integer, np.floating, np.bool_)) and not isinstance(value, np.timedelta64)


def finite_or_not(value: Any) -> float:
    """A Python or NumPy number as float64; integers beyond its range are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
