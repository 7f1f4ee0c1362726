"""``rule.program()``: every branch of a rule, as text."""

import math
from typing import Any

from oxistep.rules._program import Program
from oxistep.rules._source import Reading, Source, Unknown, numbers_alone, told
from oxistep.rules._trace import Facts

__all__ = ["Listing"]

MOST = 64
"""So many branches are listed."""

SHAPE = (64, 64)


class Listing(list[Program]):
    """What a rule does, a program for each branch; prints as passes, operations, streams and bytes a parameter.

    Attributes:
        conditions: for each program what decides for it, as text; empty where there is one program alone.
    """

    conditions: list[str]

    @classmethod
    def of(cls, source: Source, given: dict[str, Any]) -> "Listing":
        """Lists a rule.

        Args:
            source: the rule.
            given: hyperparameters, ``step``, ``shape``.
        """
        given = dict(given)
        step, shape = (None if name in source.hyperparameters else given.pop(name, None) for name in ("step", "shape"))
        if unknown := given.keys() - source.hyperparameters.keys():
            raise TypeError(
                f"rule {source.name} has no {', '.join(sorted(unknown))}; its hyperparameters are "
                f"{', '.join(source.hyperparameters) or 'none'}"
            )
        source.checked(given)
        values = {name: one.default for name, one in source.hyperparameters.items()} | given
        shape = SHAPE if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        found = cls()
        found.conditions = []
        found._go_on(source, source.read(values, ""), step, shape, [])
        return found

    def _go_on(
        self,
        source: Source,
        reading: Reading,
        step: float | None,
        shape: tuple[int, ...],
        chosen: list[tuple[str, float]],
    ) -> None:
        """Follows the rule with these answers to what numbers do not tell; goes both ways at the next such question."""
        given = numbers_alone(reading.numbers, math.nan if step is None else float(step), float(math.prod(shape)))
        left = list(chosen)

        def answer(program: Program) -> float:
            assert program.question is not None
            if not _is_open(program, step):
                return told(program, given(program))
            if not left:
                raise Unknown(program)
            return left.pop(0)[1]

        try:
            program = source.tree(reading).program(Facts(shape), answer)
        except Unknown as unknown:
            question = unknown.program
            assert question.question is not None
            text = question.graph.formula(question.question)
            if not question.graph.nodes[question.question].kind.name == "FLAG":
                raise TypeError(f"rule {source.name}: the whole number {text} is known in a step alone") from None
            for holds in (1.0, 0.0):
                if len(self) < MOST:
                    self._go_on(source, reading, step, shape, [*chosen, (text, holds)])
            return
        self.append(program)
        self.conditions.append(" and ".join(text if holds else f"not {text}" for text, holds in chosen))

    def __str__(self) -> str:
        return "\n\n".join(
            f"if {condition}:\n{program}" if condition else str(program)
            for condition, program in zip(self.conditions, self, strict=True)
        )


def _is_open(program: Program, step: float | None) -> bool:
    """Whether a question hangs on more than hyperparameters, the shape, and the step if that was given."""
    assert program.question is not None
    unknown = {"reduce", "total", "group", "state"} | ({"step"} if step is None else set())
    return any(program.graph.nodes[i].op in unknown for i in program.graph.cone([program.question]))
