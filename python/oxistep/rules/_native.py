"""What native steps ask of Python about a rule: which program follows from what is known of a parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxistep import _core
from oxistep.rules._program import Program
from oxistep.rules._source import Reading, Source, is_word
from oxistep.rules._trace import Facts, State
from oxistep.rules._tree import Branch, Fact

__all__ = ["Told", "Tracer", "tree_of"]

ASKS_TOTAL = "its rule has an `if` on a sum over all parameters (rules.where in its place is native)"


@dataclass
class Told:
    """A place in the tree of a rule's runs, as `_core.Tree` wants it told."""

    kind: str
    """``"leaf"``: a program; ``"branch"``: a question, whose program has one number; ``"measured"``: a question that
    hangs on elements; ``"ndim"``, ``"shape"``: a question about the parameter; ``"left"``: kernels cannot do it."""
    nodes: list[int] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    """Pairs: 0 for the parameter or 1 + k for its k-th state, and the node that is written there."""
    wanted: list[int] = field(default_factory=list)
    """The numbers that are asked for, as nodes."""
    inputs: list[tuple[str, float, str]] = field(default_factory=list)
    """What each is: ``("hyper", its place, "")``, ``("step", 0, "")``, ``("number", what it begins as, its name)``, and
    ``("group", what it begins as, its name)``."""
    states: list[str] = field(default_factory=list)
    numbers: list[tuple[str, int]] = field(default_factory=list)
    """States of one number, with the node of what each becomes."""
    shared: list[tuple[str, int, bool]] = field(default_factory=list)
    """Numbers of the group, with the node of what each becomes, and whether the rule assigns it."""
    asked: list[tuple[int, float]] = field(default_factory=list)
    """What the program takes for granted: numbers that hang on elements, as nodes, with their values."""
    totals: bool = False
    """Whether it has sums over all parameters."""
    begins: dict[str, State] = field(default_factory=dict)
    """All its states: what they begin as."""
    whole: bool = False
    """Whether anything depends on all elements of a tensor, on its shape, or on how many elements there are."""
    rule: str = ""
    """What the rule is called in messages."""
    reason: str = ""


class Tracer:
    """Tells `_core.Tree` of a rule."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def check(self, group: Mapping[str, Any], index: int) -> None:
        """Raises for a hyperparameter of another kind than its default."""
        self._source.read(group, f" in param_groups[{index}]")

    def at(self, hyperparameters: dict[str, Any], shape: tuple[int, ...], answers: Sequence[Any]) -> Told:
        """A place in the tree of the rule's runs.

        Args:
            hyperparameters: by name: the place of a number among all numbers, a tuple of the places of several, or a
                list of one that is no number.
            shape: of a parameter.
            answers: to the questions on the way there.
        """
        words: list[Any] = []
        values: dict[str, Any] = {}
        places: dict[str, int] = {}
        for name, given in hyperparameters.items():
            if isinstance(given, tuple):
                words.append((name, len(given)))
                places.update((f"{name}[{i}]", place) for i, place in enumerate(given))
                values[name] = tuple(map(float, given))
            elif isinstance(given, list):
                (value,) = given
                if not is_word(value):
                    return Told("left", reason=f"{name} is {type(value).__name__}, no plain number")
                if value is not None and not isinstance(value, str):
                    value = bool(value)  # NumPy's, perhaps
                words.append((name, type(value), value))
                values[name] = value
            else:
                places[name] = given
                values[name] = float(given)
        reading = Reading(tuple(words), values, dict.fromkeys(places, 0.0))
        step = self._source.tree(reading).after(Facts(tuple(shape)), answers)
        if isinstance(step, Fact):
            return Told(step.name)
        program = step.program if isinstance(step, Branch) else step
        return _told(self._source, program, places, any(not isinstance(answer, float) for answer in answers))


def tree_of(source: Source) -> Any:
    """What finds the programs of a rule for kernels."""
    if source.native is None:
        source.native = _core.Tree(Tracer(source), list(source.hyperparameters))
    return source.native


def _told(source: Source, program: Program, places: dict[str, int], whole: bool) -> Told:
    """A program as the kernels take it.

    Args:
        source: its rule.
        program: the program.
        places: the places of the hyperparameters that are numbers.
        whole: whether something of the parameter as a whole was asked for on the way.
    """
    if any(program.totals_of(node) for node, _ in program.conditions) or (
        program.question is not None and program.totals_of(program.question)
    ):
        return Told("left", reason=ASKS_TOTAL)
    encoded = source.encoded(program)
    initial = {name: state.initial for name, state in program.states.items()}
    inputs: dict[str, Callable[[str], tuple[str, float, str]]] = {
        "hyper": lambda name: ("hyper", float(places[name]), ""),
        "step": lambda name: ("step", 0.0, ""),
        "param": lambda name: ("number", float(initial[name]), name),
        "group": lambda name: ("group", float(program.of_group[name].initial), name),
    }
    kind = "leaf"
    if program.question is not None:
        kind = "measured" if program.needs_elements(program.question) else "branch"
    becomes = dict(zip(encoded.kept, encoded.wanted, strict=False))
    return Told(
        kind,
        nodes=encoded.nodes,
        constants=encoded.constants,
        writes=encoded.writes,
        wanted=encoded.wanted,
        inputs=[inputs[what](name) for what, name in encoded.inputs],
        states=list(encoded.states),
        numbers=[(name, node) for (what, name), node in becomes.items() if what == "param"],
        shared=[
            (name, node, program.of_group[name].value != program.of_group[name].given)
            for (what, name), node in becomes.items()
            if what == "group"
        ],
        asked=list(encoded.asked),
        begins=dict(program.states),
        whole=whole or any(node.op in ("reduce", "numel", "total") for node in program.graph.nodes),
        totals=bool(program.totals),
        rule=source.name,
    )
