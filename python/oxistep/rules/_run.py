"""Programs run operation by operation over whole arrays: NumPy's, or torch's tensors on any device.

This is what a program means; the kernels do the same over small tiles. Arrays are of the arithmetic type, numbers are
float64 and rounded to it where they meet.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oxistep.rules._code import Instruction, instruction
from oxistep.rules._program import Program

__all__ = ["Given", "Lazily", "Run", "Totals"]


@dataclass
class Given:
    """What one parameter's run starts from."""

    streams: Mapping[str, Any]
    """Arrays: ``"p"``, ``"g"``, and states by name; all of one type."""
    numbers: Mapping[str, float]
    """Hyperparameters by name; ``betas[0]`` is the first of several."""
    step: float
    numel: float
    of_group: Mapping[str, float] = field(default_factory=dict)
    of_param: Mapping[str, float] = field(default_factory=dict)
    """States of one number, by name."""
    like: Any = None
    """An array like the parameter, of any type; None: the parameter."""
    dtype: Any = None
    """The arithmetic type; None: that of the parameter."""

    def full(self, torch: Any, number: float) -> Any:
        """An array of equal elements."""
        like = self.streams["p"] if self.like is None else self.like
        if torch is None:
            return np.full_like(like, number, dtype=self.dtype, subok=False)
        return torch.full_like(like, number, dtype=self.dtype)

    def type_of_arithmetic(self) -> Any:
        """The type that numbers are rounded to where they meet elements."""
        return self.streams["p"].dtype if self.dtype is None else self.dtype


class Lazily(Mapping[str, Any]):
    """What is looked up when it is asked for, and not kept."""

    def __init__(self, look_up: Callable[[str], Any]) -> None:
        self._look_up = look_up

    def __getitem__(self, name: str) -> Any:
        return self._look_up(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


Totals = Mapping[tuple[Any, ...], float]


def code_of(program: Program, torch: Any) -> list[Instruction]:
    """What computes each node of a program; made once."""
    code = program.code.get(torch is not None)
    if code is None:
        nodes = range(len(program.graph.nodes))
        code = program.code[torch is not None] = [instruction(program.graph, i, torch) for i in nodes]
    return code


class Run:
    """One program over one parameter: values are computed when they are asked for, each once."""

    def __init__(self, program: Program, given: Given, totals: Totals | None = None, torch: Any = None) -> None:
        """Args:
        program: the program.
        given: what it starts from.
        totals: the sums over all parameters, by where in the rule they stand.
        torch: the module, if the arrays are its tensors.
        """
        self.program, self.given, self.totals = program, given, {} if totals is None else totals
        self._code = code_of(program, torch)
        self._values: dict[int, Any] = {}

    def values(self, nodes: Iterable[int]) -> list[Any]:
        """The values of some nodes."""
        with np.errstate(all="ignore"):
            return [self.value(i) for i in nodes]

    def numbers(self) -> None:
        """Computes all numbers that the program needs, and keeps nothing of the size of a parameter."""
        self.values(self.program.needed_numbers)
        self.numbers_only()

    def numbers_only(self) -> None:
        """Forgets what has the size of the parameter."""
        has_elements = self.program.has_elements
        self._values = {i: value for i, value in self._values.items() if not has_elements[i]}

    def value(self, node: int) -> Any:
        """The value of a node; arithmetic errors are as NumPy is set up."""
        values, code = self._values, self._code
        if node not in values:
            for i in self.program.missing(node, values):
                values[i] = code[i](values, self)
        return values[node]
