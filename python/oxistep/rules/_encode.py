"""Programs as flat lists of numbers: what the kernels are handed, who check them before they believe them."""

from dataclasses import dataclass
from typing import Any

from oxistep.rules._graph import Node
from oxistep.rules._program import Program

__all__ = ["MOST_STATES", "OPS", "Encoded", "encode"]

# The kernels' numbers of operations; `oxistep_kernels::program::ops::NAMES` has the same.
OPS = {
    name: number
    for number, name in enumerate(
        (
            *("add", "sub", "mul", "div", "pow"),
            *("neg", "abs", "sqrt", "exp", "log", "cos", "tanh", "cbrt", "sign"),
            *("atan2", "minimum", "maximum", "fma", "lerp", "addcmul", "addcdiv", "where"),
            *("lt", "le", "eq", "ne", "and", "or", "not", "floor", "mod"),
            *("sum", "dot", "max_abs"),
            *("param", "grad", "state", "input", "constant", "fill", "total", "numel"),
        )
    )
}

MOST_STATES = 14
"""So many states of the parameter's shape a program may have."""

Input = tuple[str, str]


@dataclass(frozen=True)
class Encoded:
    """A program for the kernels."""

    nodes: list[int]
    """Of each node its operation and its operands, which are earlier nodes."""
    constants: list[float]
    states: tuple[str, ...]
    """The states of the parameter's shape, in the order in which they are handed over."""
    inputs: tuple[Input, ...]
    """The numbers that each parameter hands over: ``("hyper", name)``, ``("step", "step")``, ``("group", name)`` and
    ``("param", name)``, a state of one number."""
    writes: list[int]
    """Pairs: a stream (0 the parameter, 1 + k the state k), and the node that is written there."""
    wanted: list[int]
    """The numbers to be told: those of ``kept``, or the question; then what was taken for granted, and sums over all
    parameters: each adds to them, whether or not it needs them."""
    kept: tuple[Input, ...]
    """What the first of the wanted numbers become: ``("param", name)`` or ``("group", name)``; empty for a question."""
    asked: tuple[tuple[int, float], ...]
    """Numbers that the program took for granted, as nodes: conditions on norms, and what they came to."""


class _Encoder:
    def __init__(self, program: Program, calls: dict[Any, int]) -> None:
        self._calls = calls
        self._nodes = program.graph.nodes
        self.states = tuple(name for name, state in program.states.items() if state.kind.has_elements)
        self.flat: list[int] = []
        self.constants: list[float] = []
        self.inputs: dict[Input, int] = {}
        self.place: dict[int, int] = {}
        for i in sorted(program.needed | program.graph.cone(node for node, _ in program.conditions)):
            self.place[i] = len(self.place)
            self.flat += self._of(self._nodes[i])

    def _of(self, node: Node) -> list[int]:
        args = [self.place[i] for i in node.args]
        match node.op:
            case "constant":
                self.constants.append(float.fromhex(node.what))
                return [OPS["constant"], len(self.constants) - 1]
            case "state" if node.kind.has_elements:
                return [OPS["state"], self.states.index(node.what)]
            case "state":
                return self._input("param", node.what)
            case "hyper" | "step" | "group":
                return self._input(node.op, node.what)
            case "reduce":
                return [OPS[node.what], *args]
            case "total":
                return [OPS["total"], *args, self._calls.setdefault(node.what, len(self._calls))]
            case _:
                return [OPS[node.op], *args]

    def _input(self, kind: str, name: str) -> list[int]:
        return [OPS["input"], self.inputs.setdefault((kind, name), len(self.inputs))]


def encode(program: Program, calls: dict[Any, int]) -> Encoded:
    """A program as the kernels take it.

    Args:
        program: the program, or what was traced up to a question.
        calls: numbers the calls of ``total`` in all programs of a rule; new ones are added.

    Raises:
        TypeError: if it has more states than the kernels take.
    """
    encoder = _Encoder(program, calls)
    states, place = encoder.states, encoder.place
    if len(states) > MOST_STATES:
        raise TypeError(
            f"rule {program.name}: it has {len(states)} states of the parameter's shape, and no more than "
            f"{MOST_STATES} are allowed"
        )
    writes = [(0 if name == "p" else 1 + states.index(name), place[i]) for name, i in program.writes.items()]
    kept = {("param" if name in program.states else "group", name): i for name, i in program.numbers.items()}
    wanted = [*kept.values()] if program.question is None else [program.question]
    asked = tuple((place[i], answer) for i, answer in program.conditions)
    totals = [place[i] for i in program.totals.values() if i in place]
    return Encoded(
        nodes=encoder.flat,
        constants=encoder.constants,
        states=states,
        inputs=tuple(encoder.inputs),
        writes=[number for pair in writes for number in pair],
        wanted=[*(place[i] for i in wanted), *(node for node, _ in asked), *totals],
        kept=tuple(kept),
        asked=asked,
    )
