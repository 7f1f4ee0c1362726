"""What a rule sees as ``s`` and ``s.group``: states begun, read and assigned."""

from typing import Any, NoReturn

from oxistep.rules._graph import Kind
from oxistep.rules._trace import Trace
from oxistep.rules._values import RuleError, Value, as_value

__all__ = ["States"]


class _Begun:
    """What states and numbers of a group share: they are attributes and nothing else."""

    __slots__ = ("_trace",)
    _what = "state"
    _where = "s"
    _trace: Trace

    def __init__(self, trace: Trace) -> None:
        object.__setattr__(self, "_trace", trace)

    def __getitem__(self, name: Any) -> NoReturn:
        raise RuleError(f"a {self._what} is an attribute: write {self._where}.{name}")

    def __setitem__(self, name: Any, value: Any) -> NoReturn:
        raise RuleError(f"a {self._what} is an attribute: write {self._where}.{name} = ...")

    def __delattr__(self, name: str) -> NoReturn:
        raise RuleError(f"a {self._what} cannot be taken away: write {self._where}.{name} = ...")

    def __contains__(self, name: Any) -> NoReturn:
        raise RuleError(
            f"every {self._what} is there: {self._where}.{name}, or {self._where}.get({name!r}, what it starts as)"
        )

    def __repr__(self) -> str:
        return f"<{self._where}, while the rule is traced>"


class States(_Begun):
    """``s``: what is kept of a parameter from step to step.

    ``s.name`` starts as zeros; ``s.get(name, initial)`` as the parameter, as ``full_like(p, number)``, or as a number.
    """

    __slots__ = ()

    @property
    def step(self) -> Value:
        """How many steps this parameter has taken, with this one."""
        return self._trace.given("step", "step", Kind.NUMBER)

    @property
    def group(self) -> "GroupNumbers":
        """Numbers that the parameters of a group share."""
        return GroupNumbers(self._trace)

    def get(self, name: str, initial: Any = None) -> Value:
        """A state, and what it starts as."""
        trace = self._trace
        if name in trace.states:
            return trace.value(trace.states[name].value)
        kind: Kind = Kind.ELEMENTS
        start: float | str = 0.0
        if initial is not None:
            kind, start = _initial(trace, name, initial)
        return trace.value(trace.begin(trace.states, _checked(name), kind, start).value)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        trace = self._trace
        if name in ("step", "group", "get"):
            raise RuleError(f"s.{name} is not a state that can be set")
        try:
            value = as_value(trace, value)
        except RuleError as error:
            raise RuleError(f"s.{name}: {error}") from None
        state = trace.states.get(name)
        if state is None:
            kind = Kind.ELEMENTS if value._kind.has_elements else Kind.NUMBER
            state = trace.begin(trace.states, _checked(name), kind, 0.0)
        if value._kind.has_elements and not state.kind.has_elements:
            raise RuleError(
                f"s.{name} is one number, and this is a value for each element: begin it with s.get({name!r}) "
                "where it starts as zeros"
            )
        state.value = value._node
        if state.kind.has_elements and not value._kind.has_elements:
            state.value = trace.graph.add("fill", (value._node,), "full_like", Kind.ELEMENTS)


class GroupNumbers(_Begun):
    """``s.group``: numbers that the parameters of a group share; keys of the param group, written once a step."""

    __slots__ = ()
    _what = "number of the group"
    _where = "s.group"

    def get(self, name: str, initial: Any = 0) -> Value:
        trace = self._trace
        if name not in trace.of_group:
            if name in trace.taken:
                raise RuleError(f"s.group.get({name!r}, ...): the param group has another entry of that name")
            start = as_value(trace, initial)
            known = trace.graph.value_of(start._node)
            if known is None:
                raise RuleError(f"s.group.get({name!r}, ...) starts as a number that is known, not {start!r}")
            trace.begin(trace.of_group, _checked(name, ("get",)), Kind.NUMBER, known)
        return trace.value(trace.of_group[name].value)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._trace.of_group:
            raise RuleError(f"the group has no number {name} yet: begin it with s.group.get({name!r}, initial)")
        return self._trace.value(self._trace.of_group[name].value)

    def __setattr__(self, name: str, value: Any) -> None:
        trace = self._trace
        if name not in trace.of_group:
            raise RuleError(f"the group has no number {name} yet: begin it with s.group.get({name!r}, initial)")
        new = as_value(trace, value)
        apart = _own(trace, new._node)
        if apart is not None:
            raise RuleError(
                f"s.group.{name} is shared by the parameters of a group, and this differs between them ({apart}): "
                f"use rules.total(x), or keep it as s.{name}"
            )
        trace.of_group[name].value = new._node


def _own(trace: Trace, node: int) -> str | None:
    """What in a value belongs to one parameter alone, if anything does."""
    n = trace.graph.nodes[node]
    if n.op == "total":
        return None
    if n.op in ("param", "grad", "state", "step", "numel"):
        return trace.graph.formula(node)
    return next((found for i in n.args if (found := _own(trace, i)) is not None), None)


def _checked(name: Any, taken: tuple[str, ...] = ("step", "group", "get")) -> str:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise RuleError(f"expected the name of a state, got {name!r}")
    if name in taken:
        raise RuleError(f"a state cannot be called {name!r}")
    return name


def _initial(trace: Trace, name: str, initial: Any) -> tuple[Kind, float | str]:
    value = as_value(trace, initial)
    node = trace.graph.nodes[value._node]
    if node.op == "param":
        return Kind.ELEMENTS, "p"
    number = trace.graph.value_of(node.args[0] if node.op == "fill" else value._node)
    if number is None:
        raise RuleError(
            f"s.get({name!r}, ...) starts as the parameter (p), as full_like(p, number) or as a number that is known, "
            f"not {value!r}"
        )
    return (Kind.ELEMENTS if node.op == "fill" else Kind.NUMBER), number
