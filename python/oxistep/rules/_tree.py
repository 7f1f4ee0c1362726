"""What is remembered of a rule's runs: which program follows from which answers."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxistep.rules._program import Program
from oxistep.rules._trace import Facts, Trace, Undecided
from oxistep.rules._tracing import run

__all__ = ["Branch", "Fact", "Tree"]

Answer = Callable[[Program], float]
"""Computes the number that a program was left for."""


@dataclass
class Branch:
    """A number that the rule asked for, and what followed for each answer."""

    program: Program
    """Computes the number."""
    followed: dict[float, "Step"] = field(default_factory=dict)


@dataclass
class Fact:
    """Something known of a parameter that the rule asked for, and what followed."""

    name: str
    followed: dict[Any, "Step"] = field(default_factory=dict)


Step = Branch | Fact | Program


MOST = 256
"""So many programs are remembered. A rule whose conditions come out otherwise each time (`int(s.step)`) has no end of
them."""


class Tree:
    """All runs of one rule under the same words (hyperparameters that are no numbers)."""

    def __init__(self, function: Callable[..., Any], name: str, hyperparameters: Mapping[str, Any]) -> None:
        self._function, self._name, self._hyperparameters = function, name, dict(hyperparameters)
        self._root: dict[None, Step] = {}
        # two threads that meet a place at once must go on from the same one; a rule may lead to itself
        self._growing = threading.RLock()
        self.runs = 0
        """How often the function has been run."""
        self.programs: list[Program] = []
        """All that came of it, those that were left at a question too."""

    def program(self, facts: Facts, answer: Answer) -> Program:
        """The program for a parameter.

        Args:
            facts: what is known of it.
            answer: computes a number that the rule asks for.
        """
        answers: list[float] = []
        root = self._remembered()
        followed: dict[Any, Step] = root
        key: Any = None
        while True:
            step = self._grown(root, followed, key, facts, answers)
            if isinstance(step, Program):
                return step
            if isinstance(step, Fact):
                key = facts.get(step.name)
            else:
                key = answer(step.program)
                answers.append(key)
            followed = step.followed

    def after(self, facts: Facts, keys: Sequence[Any]) -> Step:
        """The place after some answers.

        Args:
            facts: what is known of the parameter.
            keys: the answers to all questions on the way there, about numbers and about the parameter.
        """
        answers: list[float] = []
        root = self._remembered()
        followed: dict[Any, Step] = root
        key: Any = None
        left = iter(keys)
        while True:
            step = self._grown(root, followed, key, facts, answers)
            try:
                key = next(left)
            except StopIteration:
                return step
            if isinstance(step, Program):
                raise ValueError("more answers than the rule has questions")
            if isinstance(step, Branch):
                answers.append(key)
            followed = step.followed

    def _remembered(self) -> dict[Any, Step]:
        """The beginning of the tree; where too much was remembered, of a new one."""
        with self._growing:
            if len(self.programs) >= MOST:
                self._root, self.programs = {}, []
            return self._root

    def _grown(
        self, root: dict[Any, Step], followed: dict[Any, Step], key: Any, facts: Facts, answers: list[float]
    ) -> Step:
        """The place that follows from an answer; the tree grows if it is a new one."""
        step = followed.get(key)
        if step is None:
            with self._growing:
                step = followed.get(key)
                if step is None:
                    step = followed[key] = self._run(root, facts, answers)
        return step

    def _run(self, root: dict[Any, Step], facts: Facts, answers: list[float]) -> Step:
        """What comes after these answers: the rule is run again, from its beginning."""
        self.runs += 1
        question: int | None = None
        try:
            trace = run(self._function, self._name, self._hyperparameters, facts, answers)
        except Undecided as undecided:
            trace, question = undecided.trace, undecided.node  # type: ignore[attr-defined]
        unseen = self._next_fact(root, trace, answers)
        if unseen is not None:
            return Fact(unseen)
        program = Program(trace, question)
        self.programs.append(program)
        return program if question is None else Branch(program)

    def _next_fact(self, root: dict[Any, Step], trace: Trace, answers: list[float]) -> str | None:
        """The first fact that this run asked for where the tree does not ask yet."""
        step: Step | None = root.get(None)
        left = list(answers)
        for what, told in trace.asked:
            if isinstance(what, str):
                if isinstance(step, Fact) and step.name == what:
                    step = step.followed.get(told)
                else:
                    return what
            elif isinstance(step, Branch):
                step = step.followed.get(left.pop(0))
        return None
