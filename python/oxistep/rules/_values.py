"""What a rule sees in place of tensors and numbers: values whose operators note what is done to them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from oxistep.rules._graph import Kind, finite_or_not, is_number

if TYPE_CHECKING:
    from oxistep.rules._trace import Trace

__all__ = ["RuleError", "Value", "apply", "as_value", "is_symbolic"]

WORDS = {
    "__float__": "float() and math need a number that is known: leave float() out, use rules.sqrt for math.sqrt",
    "__complex__": "rules have no complex numbers",
    "__iter__": "a rule says what becomes of each element; it cannot go through the elements",
    "__len__": "a rule says what becomes of each element; p.numel() is how many there are",
    "__getitem__": "a rule says what becomes of each element; it cannot pick some of them: use rules.where",
    "__setitem__": "a rule says what becomes of each element; it cannot set some of them: use rules.where",
    "__matmul__": "rules work element by element, and have no matrix products",
    "__array__": "a rule is traced, not run on data: use the functions of oxistep.rules",
}


class RuleError(TypeError):
    """What a rule does cannot be made a program. Its place in the user's function is added where it is caught."""


class Value:
    """Something that a rule computes: for each element of the parameter, or one number.

    Its operators, methods, and the functions of ``oxistep.rules``, NumPy and torch make new values.
    """

    __slots__ = ("_node", "_trace")
    _node: int
    _trace: "Trace"
    __array_priority__ = 1000.0

    def __init__(self, trace: "Trace", node: int) -> None:
        object.__setattr__(self, "_trace", trace)
        object.__setattr__(self, "_node", node)

    @property
    def _kind(self) -> Kind:
        kind: Kind = self._trace.graph.nodes[self._node].kind
        return kind

    def __repr__(self) -> str:
        return f"<{self._kind.value}: {self._trace.graph.formula(self._node)}>"

    def __format__(self, form: str) -> str:
        if form:
            raise RuleError(f"{self!r} has no number while the rule is traced: leave :{form} out to see its formula")
        return repr(self)

    # Arithmetic.

    def __add__(self, other: Any) -> "Value":
        return apply("add", self, other)

    def __radd__(self, other: Any) -> "Value":
        return apply("add", other, self)

    def __sub__(self, other: Any) -> "Value":
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> "Value":
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> "Value":
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> "Value":
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return apply("div", other, self)

    def __pow__(self, other: Any) -> "Value":
        return power(self, other)

    def __rpow__(self, other: Any) -> "Value":
        return power(other, self)

    def __neg__(self) -> "Value":
        return apply("neg", self)

    def __pos__(self) -> "Value":
        return self

    def __abs__(self) -> "Value":
        return apply("abs", self)

    def __floordiv__(self, other: Any) -> "Value":
        return apply("floor", apply("div", self, other))

    def __rfloordiv__(self, other: Any) -> "Value":
        return apply("floor", apply("div", other, self))

    def __mod__(self, other: Any) -> "Value":
        return apply("mod", self, other)

    def __rmod__(self, other: Any) -> "Value":
        return apply("mod", other, self)

    # Comparisons.

    def __lt__(self, other: Any) -> "Value":
        return apply("lt", self, other)

    def __le__(self, other: Any) -> "Value":
        return apply("le", self, other)

    def __gt__(self, other: Any) -> "Value":
        return apply("lt", other, self)

    def __ge__(self, other: Any) -> "Value":
        return apply("le", other, self)

    def __eq__(self, other: object) -> "Value":  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: object) -> "Value":  # type: ignore[override]
        return apply("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> "Value":
        return apply("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> "Value":
        return apply("or", self, other)

    __ror__ = __or__

    def __invert__(self) -> "Value":
        return apply("not", self)

    # What Python asks of a value that is not known yet.

    def __bool__(self) -> bool:
        if self._kind.has_elements:
            raise RuleError(
                "`if`, `and`, `or` and `not` need one answer, and this has one for each element: "
                "use rules.where(condition, a, b), and & | ~ between conditions"
            )
        flag = self if self._kind is Kind.FLAG else self != 0
        return bool(self._trace.ask(flag._node))

    def __index__(self) -> int:
        if self._kind.has_elements:
            raise RuleError("a whole number is needed here, and this has a value for each element")
        value = self._trace.ask(self._node)
        if value != int(value):
            raise RuleError(f"a whole number is needed here, and this is {value}")
        return int(value)

    __int__ = __index__

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise RuleError(f"values have no attributes to be set; keep it as a state: s.{name} = ...")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_") and hasattr(type(self), name[:-1]):
            raise RuleError(f".{name}() would change its tensor in place; write x = x.{name[:-1]}(...)")
        raise RuleError(f"rules know no .{name}; the functions they may use are those of oxistep.rules")


def _refusing(words: str) -> Any:
    def refuse(self: Value, *args: Any) -> NoReturn:
        raise RuleError(words)

    return refuse


for _name, _words in WORDS.items():
    setattr(Value, _name, _refusing(_words))


def is_symbolic(*values: Any) -> bool:
    """Whether any of these is a value of a trace."""
    return any(isinstance(value, Value) for value in values)


def as_value(trace: "Trace", value: Any) -> Value:
    """A value of this trace: itself, or a constant."""
    if isinstance(value, Value):
        if value._trace is not trace:
            raise RuleError("a value of an earlier call of the rule was kept; keep it as a state: s.name = ...")
        return value
    if is_number(value):
        return Value(trace, trace.graph.constant(finite_or_not(value)))
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of NumPy or torch, without dimensions
        return as_value(trace, value.item())
    if hasattr(value, "shape"):
        raise RuleError(
            f"an array of shape {tuple(value.shape)} from outside the rule: rules take numbers from outside, and "
            "keep arrays as states: s.get(name, initial)"
        )
    raise RuleError(f"expected a number or a value of the rule, got {type(value).__name__} {value!r}")


def apply(op: str, *operands: Any) -> Value:
    """An operation of the table on operands of which one at least is a value."""
    trace = next(x._trace for x in operands if isinstance(x, Value))
    trace.refuse_if_over()
    values = [as_value(trace, x) for x in operands]
    return Value(trace, trace.apply(op, tuple(v._node for v in values)))


def power(base: Any, exponent: Any) -> Value:
    """``**``; the whole and half exponents that torch computes by products and roots are computed so."""
    known = finite_or_not(exponent) if is_number(exponent) else None
    if known is None or not isinstance(base, Value) or not base._kind.has_elements:
        return apply("pow", base, exponent)
    simple: dict[float, Callable[[Any], Any]] = {
        1.0: lambda x: x,
        2.0: lambda x: x * x,
        3.0: lambda x: x * x * x,
        0.5: lambda x: apply("sqrt", x),
        -0.5: lambda x: 1 / apply("sqrt", x),
        -1.0: lambda x: 1 / x,
        -2.0: lambda x: 1 / (x * x),
    }
    return simple[known](base) if known in simple else apply("pow", base, exponent)
