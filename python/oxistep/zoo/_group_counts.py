"""Numbers of a group that count every step, also where no parameter of the group has a gradient."""

from typing import TYPE_CHECKING, Any

from oxistep.rules._run import Run
from oxistep.rules._source import numbers_alone

if TYPE_CHECKING:
    from oxistep.zoo._base import Optimizer as _Base
else:
    _Base = object

__all__ = ["GroupCounts"]


class GroupCounts(_Base):
    """Stands before the base class of an optimizer whose groups count steps, as the original packages' do."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """As every optimizer's; the numbers of groups without gradients go on as well."""
        result = super().step(*args, **kwargs)
        for group, source, reading in self._zoo_idle(*args):
            group.update(_next(group, source, reading))
        return result

    # torch must not wrap it for hooks: the step that it calls has them called.
    step.hooked = True  # type: ignore[attr-defined]


def _next(group: dict[str, Any], source: Any, reading: Any) -> dict[str, float]:
    """What the numbers of a group become in one step, by name; they need no look at a parameter."""
    program = source.early_program(reading, (), 0)
    now = {name: float(group.get(name, state.initial)) for name, state in program.of_group.items()}
    values = Run(program, numbers_alone(reading.numbers, 1.0, 0.0, now)(program)).values(
        state.value for state in program.of_group.values()
    )
    return {name: float(value) for name, value in zip(now, values, strict=True)}
