"""One run of a rule's function, as far as it has come: its graph, its states, and what it asked.

The function is run with the answers so far to what it asked (`if` on a number). At the first question without an answer
it is left, and the question handed to whoever can tell; then it is run again.
"""

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from oxistep.rules._graph import Graph, Kind
from oxistep.rules._operations import OPERATIONS
from oxistep.rules._values import RuleError, Value

__all__ = ["ALONE", "Facts", "State", "Trace", "Undecided", "caller", "is_ours"]

PACKAGE = __name__.rpartition(".")[0]

ALONE = ContextVar("ALONE", default=False)
"""Whether a parameter is being stepped without the others, of which its rule cannot ask anything then."""


class Undecided(BaseException):
    """The rule asks for a number that is not known yet. (No `Exception`: the rule's own `except` must not catch it.)"""

    def __init__(self, node: int) -> None:
        self.node = node


@dataclass(frozen=True)
class Facts:
    """What is plain knowledge about a parameter; a trace holds for all that have the same of what it asked."""

    shape: tuple[int, ...]

    def get(self, name: str) -> Any:
        return len(self.shape) if name == "ndim" else self.shape


@dataclass
class State:
    """A state of a parameter, or a number of its group."""

    kind: Kind
    initial: float | str
    """What it starts as: a number (for each element, if it has elements), or ``"p"``, the parameter."""
    given: int
    """The node of what it was before this step."""
    value: int
    """The node of what it is now."""


@dataclass
class Trace:
    """The graph of one run, what was asked in it, and what it ends with."""

    name: str
    """What the rule is called in messages."""
    facts: Facts
    answers: Sequence[float]
    graph: Graph = field(default_factory=Graph)
    asked: list[tuple[int | str, Any]] = field(default_factory=list)
    """Numbers (their nodes) and facts (their names) in the order they were asked for, with the answers."""
    states: dict[str, State] = field(default_factory=dict)
    of_group: dict[str, State] = field(default_factory=dict)
    param: int = -1
    result: int = -1
    totals: dict[tuple[Any, ...], int] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    """Keys of the param group that are no numbers of the rule's."""
    over: bool = False

    def refuse_if_over(self) -> None:
        if self.over:
            raise RuleError("a value of an earlier call of the rule was kept; keep it as a state: s.name = ...")

    def apply(self, op: str, args: tuple[int, ...]) -> int:
        if not OPERATIONS[op].takes_elements and any(self.graph.nodes[i].kind.has_elements for i in args):
            raise RuleError(
                f"{OPERATIONS[op].form.format('x', 'y')} is for numbers, and this has a value for each element"
            )
        return self.graph.apply(op, args)

    def value(self, node: int) -> Value:
        return Value(self, node)

    def given(self, op: str, what: Any, kind: Kind) -> Value:
        """A value that comes from outside."""
        return Value(self, self.graph.add(op, (), what, kind))

    def ask(self, node: int) -> float:
        """The value of a number, for a condition."""
        self.refuse_if_over()
        known = self.graph.value_of(node)
        if known is not None:
            return known
        n = sum(1 for what, _ in self.asked if isinstance(what, int))
        for what, answer in self.asked:
            if what == node and isinstance(what, int):
                return float(answer)  # asked before in this run
        if n >= len(self.answers):
            raise Undecided(node)
        self.asked.append((node, self.answers[n]))
        return self.answers[n]

    def fact(self, name: str) -> Any:
        """Something known of the parameter."""
        answer = self.facts.get(name)
        if (name, answer) not in self.asked:
            self.asked.append((name, answer))
        return answer

    def begin(self, table: dict[str, State], name: str, kind: Kind, initial: float | str) -> State:
        op = "state" if table is self.states else "group"
        node = self.graph.add(op, (), name, kind)
        table[name] = State(kind, initial, node, node)
        return table[name]


def is_ours(module: str) -> bool:
    """Whether a module is one of those that trace, and no user's."""
    return module == PACKAGE or module.startswith(PACKAGE + ".")


def caller() -> tuple[Any, ...]:
    """Where in the user's code the function of ours that is running was called from."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    # the code itself: two functions may stand in one line
    return frame.f_code.co_filename, frame.f_lineno, frame.f_lasti, frame.f_code
