"""What is remembered of a rule's runs: which program follows from which answers."""

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


class Tree:
    """All runs of one rule under the same words (hyperparameters that are no numbers)."""

    def __init__(self, function: Callable[..., Any], name: str, hyperparameters: Mapping[str, Any]) -> None:
        self._function, self._name, self._hyperparameters = function, name, dict(hyperparameters)
        self._root: dict[None, Step] = {}
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
        followed: dict[Any, Step] = self._root
        key: Any = None
        while True:
            step = followed.get(key)
            if step is None:
                step = followed[key] = self._run(facts, answers)
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
        followed: dict[Any, Step] = self._root
        key: Any = None
        left = iter(keys)
        while True:
            step = followed.get(key)
            if step is None:
                step = followed[key] = self._run(facts, answers)
            try:
                key = next(left)
            except StopIteration:
                return step
            if isinstance(step, Program):
                raise ValueError("more answers than the rule has questions")
            if isinstance(step, Branch):
                answers.append(key)
            followed = step.followed

    def _run(self, facts: Facts, answers: list[float]) -> Step:
        """What comes after these answers: the rule is run again, from its beginning."""
        self.runs += 1
        question: int | None = None
        try:
            trace = run(self._function, self._name, self._hyperparameters, facts, answers)
        except Undecided as undecided:
            trace, question = undecided.trace, undecided.node  # type: ignore[attr-defined]
        unseen = self._next_fact(trace, facts, answers)
        if unseen is not None:
            return Fact(unseen)
        program = Program(trace, question)
        self.programs.append(program)
        return program if question is None else Branch(program)

    def _next_fact(self, trace: Trace, facts: Facts, answers: list[float]) -> str | None:
        """The first fact that this run asked for where the tree does not ask yet."""
        step: Step | None = self._root.get(None)
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
