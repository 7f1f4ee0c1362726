"""A traced rule as passes over memory: which operations, on which streams, in which order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from oxistep.rules._graph import Graph
from oxistep.rules._operations import OPERATIONS
from oxistep.rules._trace import State, Trace

__all__ = ["Pass", "Program"]


@dataclass(frozen=True)
class Pass:
    """One walk over the elements: what is computed for each, and what is summed up or written in the end."""

    nodes: tuple[int, ...]
    """The operations on elements, in order."""
    reductions: tuple[int, ...]
    """Sums and the like that it takes."""
    writes: tuple[tuple[str, int], ...]
    """Streams that it writes (``"p"`` or the name of a state), with the value of each."""
    reads: tuple[str, ...]
    """Streams that it reads."""


class Program:
    """What a rule does to one parameter, under the conditions of one trace.

    Attributes:
        graph: all values.
        passes: walks over memory; only the last one writes.
        states: the states, by name.
        of_group: numbers of the param group, by name.
        writes: the node of each stream that is written: ``"p"``, states.
        numbers: the node of each number that is kept: of the parameter, of the group.
        totals: the sums over all parameters that the rule calls for: key -> node.
        conditions: the numbers that were asked for and hang on elements (an `if` on a norm), with the answers.
        question: the number that the run was left for; None if it came to its end.
    """

    def __init__(self, trace: Trace, question: int | None = None) -> None:
        """Args:
        trace: a run of the rule.
        question: the number that the run was left for; None if it came to its end.
        """
        self.name = trace.name
        self.graph: Graph = trace.graph
        self.question = question
        self.states: dict[str, State] = dict(trace.states)
        self.of_group: dict[str, State] = dict(trace.of_group)
        self.levels = self.graph.levels()
        nodes = self.graph.nodes
        self.writes: dict[str, int] = {}
        if question is None:
            if trace.result != trace.param:
                self.writes["p"] = trace.result
            for name, state in self.states.items():
                if state.kind.has_elements and state.value != state.given:
                    self.writes[name] = state.value
        self.numbers = {
            name: state.value
            for table in (self.states, self.of_group)
            for name, state in table.items()
            if not state.kind.has_elements and question is None
        }
        self.totals: dict[Any, int] = {node.what: i for i, node in enumerate(nodes) if node.op == "total"}
        wanted = [*self.writes.values(), *self.numbers.values()] if question is None else [question]
        # others may need what this parameter adds to a total, whether or not it does itself
        wanted += self.totals.values() if question is None else ()
        self.needed = self.graph.cone(wanted)
        self.has_elements = [node.kind.has_elements for node in nodes]
        self.needed_numbers = [i for i in sorted(self.needed) if not self.has_elements[i]]
        self.code: dict[bool, list[Any]] = {}
        """What computes each node by NumPy (False) or torch (True); see ``_run``."""
        self._cones: dict[int, list[int]] = {}
        self.conditions = [
            (node, float(answer)) for node, answer in trace.asked if isinstance(node, int) and self.needs_elements(node)
        ]
        wanted += [node for node, _ in self.conditions]
        reductions = [i for i in sorted(self.graph.cone(wanted)) if nodes[i].op == "reduce"]
        last = max([self.levels[i] for i in wanted] + [0])
        self.passes: list[Pass] = []
        for level in range(last):
            found = tuple(i for i in reductions if self.levels[i] == level + 1)
            if found:
                self.passes.append(self._pass([a for i in found for a in nodes[i].args], found, ()))
        if self.writes:
            self.passes.append(self._pass(self.writes.values(), (), tuple(self.writes.items())))

    def _pass(self, wanted: Iterable[int], reductions: tuple[int, ...], writes: tuple[tuple[str, int], ...]) -> Pass:
        nodes = self.graph.nodes
        cone = sorted(self.graph.cone(wanted, elements=True))
        reads = tuple(_stream(nodes[i].op, nodes[i].what) for i in cone if nodes[i].op in ("param", "grad", "state"))
        return Pass(tuple(i for i in cone if nodes[i].args), reductions, writes, reads)

    def missing(self, node: int, values: Mapping[int, Any]) -> list[int]:
        """What is to be computed for a value, in order, where some values are there."""
        if all(i in values for i in self.graph.nodes[node].args):
            return [node]
        cone = self._cones.get(node)
        if cone is None:
            cone = self._cones[node] = sorted(self.graph.cone([node]))
        if not values:
            return cone
        wanted = {node}
        for i in reversed(cone):
            if i in wanted:
                if i in values:
                    wanted.discard(i)
                else:
                    wanted.update(self.graph.nodes[i].args)
        return [i for i in cone if i in wanted]

    def totals_of(self, node: int) -> set[Any]:
        """The totals that a value needs, by key."""
        return {self.graph.nodes[i].what for i in self.graph.cone([node]) if self.graph.nodes[i].op == "total"}

    def needs_elements(self, node: int) -> bool:
        """Whether a value needs a look at memory, or other parameters."""
        return any(self.graph.nodes[i].op in ("reduce", "total") for i in self.graph.cone([node]))

    @property
    def count(self) -> int:
        """How many operations on elements it has, over all passes."""
        return sum(len(walk.nodes) for walk in self.passes)

    def bytes(self, itemsize: int = 4) -> int:
        """Bytes read and written for each element."""
        return sum((len(walk.reads) + len(walk.writes)) * itemsize for walk in self.passes)

    def __str__(self) -> str:
        lines = [
            f"rule {self.name}: {_times(len(self.passes), 'pass', 'passes')}, "
            f"{_times(self.count, 'operation', 'operations')} for each element, "
            f"{self.bytes()} bytes a float32 parameter"
        ]
        names = self._names()
        told: set[int] = set()
        for k, walk in enumerate(self.passes, 1):
            lines.append(
                f"pass {k}: reads {', '.join(walk.reads) or 'nothing'}"
                + (f"; writes {', '.join(_written(name) for name, _ in walk.writes)}" if walk.writes else "")
            )
            for i in sorted(self.graph.cone([*walk.nodes, *walk.reductions])):
                node = self.graph.nodes[i]
                if node.args and not node.kind.has_elements and node.op != "reduce" and i not in told:
                    told.add(i)
                    lines.append(f"  number  {names[i]} = {self._formula(i, names)}")
            lines += [f"  element {names[i]} = {self._formula(i, names)}" for i in walk.nodes]
            lines += [f"  reduce  {names[i]} = {self._formula(i, names)}" for i in walk.reductions]
            lines += [f"  write   {_written(name)} = {names[i]}" for name, i in walk.writes]
        lines += [
            f"number {'s.' if name in self.states else 's.group.'}{name} = {names[i]}"
            for name, i in self.numbers.items()
        ]
        return "\n".join(lines)

    def _names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for i, node in enumerate(self.graph.nodes):
            if node.op == "constant":
                names[i] = f"{float.fromhex(node.what):g}"
            elif node.args:
                names[i] = f"t{i}"
            else:
                names[i] = _stream(node.op, node.what)
        return names

    def _formula(self, node: int, names: dict[int, str]) -> str:
        n = self.graph.nodes[node]
        args = [names[i] for i in n.args]
        if n.op in OPERATIONS:
            return OPERATIONS[n.op].form.format(*args)
        return f"{n.what if n.op == 'reduce' else n.op}({', '.join(args)})"


def _stream(op: str, what: Any) -> str:
    return {"state": f"s.{what}", "group": f"s.group.{what}", "step": "s.step"}.get(op, str(what))


def _written(name: str) -> str:
    return name if name == "p" else f"s.{name}"


def _times(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
