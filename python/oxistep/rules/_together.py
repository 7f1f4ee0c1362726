"""The parameters of one step together: the program of each, and the sums over all of them.

Conditions may hang on totals, and totals on what the conditions choose. So programs and totals are found in turns: each
parameter goes on until it asks for a total that is not known; when all have come so far, it is summed.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from oxistep.rules._program import Program
from oxistep.rules._run import Run
from oxistep.rules._trace import Facts
from oxistep.rules._tree import Tree

__all__ = ["Member", "group_numbers", "settle"]

Totals = dict[Any, float]
NewRun = Callable[[Program, Totals], Run]


class Waiting(Exception):  # noqa: N818 (no error: it goes on when the total is known)
    """A condition asks for a total that is not known yet."""

    def __init__(self, program: Program) -> None:
        self.program = program


class Member:
    """One parameter of a step.

    Attributes:
        program: what it will do, or, until that is known, what asks for the total that it waits for.
        run: the run of its program.
    """

    program: Program
    run: Run

    def __init__(self, facts: Facts, tree: Tree, new_run: NewRun) -> None:
        """Args:
        facts: what is known of the parameter.
        tree: what was traced for its words.
        new_run: makes a run of a program over this parameter.
        """
        self._facts, self._tree, self._new_run = facts, tree, new_run
        self._answers: dict[Program, float] = {}

    def go_on(self, totals: Totals) -> bool:
        """Finds the program, as far as the totals are known. Returns whether it is found."""

        def answer(program: Program) -> float:
            if program not in self._answers:
                assert program.question is not None
                if not program.totals_of(program.question) <= totals.keys():
                    raise Waiting(program)
                (value,) = self._new_run(program, totals).values([program.question])
                self._answers[program] = float(value)
            return self._answers[program]

        try:
            found, waits = self._tree.program(self._facts, answer), False
        except Waiting as waiting:
            found, waits = waiting.program, True
        if getattr(self, "program", None) is not found:
            self.program, self.run = found, self._new_run(found, totals)
        return not waits

    def adds(self, key: Any) -> float:
        """What it adds to a total."""
        nodes = self.program.graph.nodes
        (value,) = self.run.values(nodes[self.program.totals[key]].args)
        self.run.numbers_only()
        return float(value)

    def can_add(self, key: Any, totals: Totals) -> bool:
        """Whether all is known of what it adds to a total."""
        return self.program.totals_of(self.program.totals[key]) - {key} <= totals.keys()


def settle(members: list[Member], rule: str) -> None:
    """Finds the programs of all members, computes all totals, and of each member all numbers. Writes nothing.

    Args:
        members: the parameters of the step.
        rule: what the rule is called in messages.

    Raises:
        TypeError: for what cannot be traced, or totals that wait for each other.
    """
    totals: Totals = {}
    added: dict[Any, set[int]] = {}
    while True:
        waiting = [m for m in members if not m.go_on(totals)]
        if waiting:
            wanted = {key for m in waiting for key in m.program.totals_of(_question(m.program))}
        else:
            wanted = {key for m in members for key in m.program.totals}
        wanted -= totals.keys()
        if not wanted:
            break
        ready = [key for key in wanted if all(m.can_add(key, totals) for m in members if key in m.program.totals)]
        if not ready:
            raise TypeError(f"rule {rule}: its totals wait for each other")
        # of several those first that all who wait have come to
        known_to_all = [key for key in ready if all(key in m.program.totals for m in waiting)]
        for key in known_to_all or ready:
            who = [m for m in members if key in m.program.totals]
            added[key] = set(map(id, who))
            totals[key] = _sum([m.adds(key) for m in who])
    for m in members:
        if late := [key for key in m.program.totals if id(m) not in added[key]]:
            file, line, *_ = late[0]
            raise TypeError(
                f"rule {rule} ({file}, line {line}): some parameters come to this total only after a condition on "
                "another one, and others were summed before: compute it before the condition"
            )
    for m in members:
        m.run.numbers()


def group_numbers(rule: str, members: Iterable[tuple[int, Member]]) -> dict[int, dict[str, float]]:
    """What the numbers of each group become, by group and name.

    Args:
        rule: what the rule is called in messages.
        members: the parameters of the step, settled, each with the index of its group.

    Raises:
        TypeError: if two parameters of a group give a number two values.
    """
    shared: dict[int, dict[str, float]] = {}
    assigned: dict[tuple[int, str], float] = {}
    for g, member in members:
        for name, state in member.program.of_group.items():
            value = float(member.run.value(state.value))
            if state.value == state.given:
                shared.setdefault(g, {}).setdefault(name, value)
                continue
            before = assigned.setdefault((g, name), value)
            if before != value and not (math.isnan(before) and math.isnan(value)):
                raise TypeError(
                    f"rule {rule}: s.group.{name} of param_groups[{g}] becomes {before} by one parameter and {value} "
                    "by another; set it where all parameters of a group come"
                )
            shared.setdefault(g, {})[name] = value
    return shared


def _question(program: Program) -> int:
    assert program.question is not None
    return program.question


def _sum(values: list[float]) -> float:
    """The sum, rounded once, so that the order of parameters does not matter."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities, or a sum beyond all numbers
        return float(sum(values))
