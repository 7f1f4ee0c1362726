"""What a program may do with numbers and elements: one table for tracing, printing, NumPy and torch.

Each operation rounds once, in the arithmetic type; ``lerp``, ``addcmul`` and ``addcdiv`` round where torch's do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OPERATIONS", "REDUCTIONS", "Operation"]


@dataclass(frozen=True)
class Operation:
    """One operation on elements, or on numbers."""

    name: str
    arity: int
    numpy: Callable[..., Any]
    """On float64 numbers and arrays; what it means."""
    torch: Callable[..., Any]
    """The same, given the module ``torch`` and tensors or numbers, of which one at least is a tensor."""
    form: str
    """How it is printed, with a place for each operand."""
    is_flag: bool = False
    """Whether its result is true or false."""
    takes_elements: bool = True
    """Whether it is for elements too, or for numbers alone."""


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    """torch's two forms: from the nearer end."""
    return np.where(np.abs(weight) < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


def _sign(x: Any) -> Any:
    """torch's: the sign of NaN is zero."""
    return np.sign(np.where(np.isnan(x), 0.0, x))


def _tensors(torch: Any, *operands: Any) -> list[Any]:
    """Numbers as tensors of no dimension beside tensors, for what takes no numbers."""
    like = next(x for x in operands if isinstance(x, torch.Tensor))
    return [
        x if isinstance(x, torch.Tensor) else torch.full((), x, dtype=like.dtype, device=like.device) for x in operands
    ]


def _of_tensors(name: str) -> Callable[..., Any]:
    return lambda torch, *operands: getattr(torch, name)(*_tensors(torch, *operands))


def _operator(name: str) -> Callable[..., Any]:
    return lambda torch, *operands: getattr(torch, name)(*operands)


def _reversible(operate: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda torch, a, b: operate(a, b)


def _flag(name: str) -> Callable[..., Any]:
    return lambda torch, a, b: getattr(torch, name)(*_tensors(torch, a, b))


def _cbrt(torch: Any, x: Any) -> Any:
    # torch has none: by the power of a third, with the sign put back
    return torch.copysign(x.abs() ** (1 / 3), x)


def _value_times(operate: str) -> Callable[..., Any]:
    def call(torch: Any, a: Any, b: Any, c: Any, value: Any) -> Any:
        if isinstance(value, torch.Tensor):  # torch takes one number
            b, value = value * b, 1.0
        return getattr(torch, operate)(*_tensors(torch, a, b, c), value=float(value))

    return call


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("add", 2, np.add, _reversible(lambda a, b: a + b), "{} + {}"),
        Operation("sub", 2, np.subtract, _reversible(lambda a, b: a - b), "{} - {}"),
        Operation("mul", 2, np.multiply, _reversible(lambda a, b: a * b), "{} * {}"),
        Operation("div", 2, np.divide, _reversible(lambda a, b: a / b), "{} / {}"),
        Operation("pow", 2, np.power, _reversible(lambda a, b: a**b), "{} ** {}"),
        Operation("neg", 1, np.negative, _operator("neg"), "-{}"),
        Operation("abs", 1, np.abs, _operator("abs"), "abs({})"),
        Operation("sqrt", 1, np.sqrt, _operator("sqrt"), "sqrt({})"),
        Operation("exp", 1, np.exp, _operator("exp"), "exp({})"),
        Operation("log", 1, np.log, _operator("log"), "log({})"),
        Operation("cos", 1, np.cos, _operator("cos"), "cos({})"),
        Operation("tanh", 1, np.tanh, _operator("tanh"), "tanh({})"),
        Operation("cbrt", 1, np.cbrt, _cbrt, "cbrt({})"),
        Operation("sign", 1, _sign, _operator("sign"), "sign({})"),
        Operation("atan2", 2, np.arctan2, _of_tensors("atan2"), "atan2({}, {})"),
        Operation("minimum", 2, np.minimum, _of_tensors("minimum"), "minimum({}, {})"),
        Operation("maximum", 2, np.maximum, _of_tensors("maximum"), "maximum({}, {})"),
        Operation("fma", 3, lambda a, b, c: a * b + c, lambda torch, a, b, c: a * b + c, "fma({}, {}, {})"),
        Operation("lerp", 3, _lerp, _of_tensors("lerp"), "lerp({}, {}, {})"),
        Operation(
            "addcmul", 4, lambda a, b, c, v: a + v * b * c, _value_times("addcmul"), "addcmul({}, {}, {}, value={})"
        ),
        Operation(
            "addcdiv", 4, lambda a, b, c, v: a + v * b / c, _value_times("addcdiv"), "addcdiv({}, {}, {}, value={})"
        ),
        Operation("where", 3, np.where, _of_tensors("where"), "where({}, {}, {})"),
        Operation("lt", 2, np.less, _flag("lt"), "{} < {}", is_flag=True),
        Operation("le", 2, np.less_equal, _flag("le"), "{} <= {}", is_flag=True),
        Operation("eq", 2, np.equal, _flag("eq"), "{} == {}", is_flag=True),
        Operation("ne", 2, np.not_equal, _flag("ne"), "{} != {}", is_flag=True),
        Operation("and", 2, np.logical_and, _flag("logical_and"), "{} & {}", is_flag=True),
        Operation("or", 2, np.logical_or, _flag("logical_or"), "{} | {}", is_flag=True),
        Operation("not", 1, np.logical_not, _operator("logical_not"), "~{}", is_flag=True),
        Operation("floor", 1, np.floor, _operator("floor"), "floor({})", takes_elements=False),
        Operation("mod", 2, np.mod, _operator("remainder"), "{} % {}", takes_elements=False),
    )
}

# Over all elements of a tensor, in float64; what a number of each is.
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda x: np.sum(x, dtype=np.float64),
    "dot": lambda x, y: np.sum(np.multiply(x, y, dtype=np.float64)),
    "max_abs": lambda x: np.max(np.abs(x), initial=0.0),
}
