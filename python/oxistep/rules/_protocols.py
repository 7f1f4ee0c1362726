"""NumPy's and torch's names for what a rule may do: their functions, their tensors' methods, ours.

`np.sqrt(s.v)`, `torch.sqrt(s.v)` and `s.v.sqrt()` mean `rules.sqrt(s.v)`.
"""

import math
from collections.abc import Callable
from typing import Any

from oxistep.rules import _functions as f
from oxistep.rules._values import RuleError, Value, apply, power

__all__: list[str] = []


def _scaled(other: Any, alpha: Any) -> Any:
    return other if isinstance(alpha, (int, float)) and alpha == 1 else other * alpha


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False, p: Any = None, dim: Any = None) -> Any:
    which = ord if p is None else p
    if axis is not None or dim is not None or keepdims:
        raise RuleError("norms are over all elements of a tensor: rules have no dimensions")
    if which in (None, 2, "fro"):
        return f.norm(x)
    if which in (math.inf, "inf"):
        return f.max_abs(x)
    if which == 1:
        return f.sum(abs(x))
    raise RuleError(f"norms are the 2-norm, the 1-norm and the largest magnitude; this asks for {which!r}")


def _whole(name: str, function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A reduction that knows no dimensions."""

    def reduce(x: Any, axis: Any = None, dim: Any = None, **others: Any) -> Any:
        if axis is not None or dim is not None or others.get("keepdims") or others.get("keepdim"):
            raise RuleError(f"{name} is over all elements of a tensor: rules have no dimensions")
        return function(x)

    return reduce


def _clip(x: Any, *bounds: Any, min: Any = None, max: Any = None, a_min: Any = None, a_max: Any = None) -> Any:
    low, high = (*bounds, None, None)[:2]
    given = (low, min, a_min), (high, max, a_max)
    low, high = (next((bound for bound in all_of if bound is not None), None) for all_of in given)
    return f.clip(x, low, high)


def _where(condition: Any, *branches: Any) -> Any:
    if len(branches) != 2:
        raise RuleError("where(condition, a, b) takes two values to choose from")
    return f.where(condition, *branches)


COMMON: dict[str, Callable[..., Any]] = {
    "sqrt": f.sqrt,
    "exp": f.exp,
    "log": f.log,
    "cos": f.cos,
    "tanh": f.tanh,
    "sign": f.sign,
    "minimum": f.minimum,
    "maximum": f.maximum,
    "where": _where,
    "clip": _clip,
    "abs": lambda x: abs(x),
    "absolute": lambda x: abs(x),
    "negative": lambda x: -x,
    "positive": lambda x: x,
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1 / x,
    "add": lambda a, b, alpha=1: apply("add", a, _scaled(b, alpha)),
    "subtract": lambda a, b, alpha=1: apply("sub", a, _scaled(b, alpha)),
    "multiply": lambda a, b: apply("mul", a, b),
    "divide": lambda a, b: apply("div", a, b),
    "true_divide": lambda a, b: apply("div", a, b),
    "greater": lambda a, b: apply("lt", b, a),
    "greater_equal": lambda a, b: apply("le", b, a),
    "less": lambda a, b: apply("lt", a, b),
    "less_equal": lambda a, b: apply("le", a, b),
    "equal": lambda a, b: apply("eq", a, b),
    "not_equal": lambda a, b: apply("ne", a, b),
    "logical_and": lambda a, b: apply("and", a, b),
    "logical_or": lambda a, b: apply("or", a, b),
    "logical_not": lambda a: apply("not", a),
    "full_like": lambda x, fill_value, **_: f.full_like(x, fill_value),
    "zeros_like": lambda x, **_: f.zeros_like(x),
    "ones_like": lambda x, **_: f.full_like(x, 1.0),
    "sum": _whole("sum", f.sum),
    "mean": _whole("mean", f.mean),
    "dot": f.dot,
    "vdot": f.dot,
}
NUMPY = COMMON | {
    "arctan2": f.atan2,
    "cbrt": f.cbrt,
    "power": power,
    "float_power": power,
    "fabs": lambda x: abs(x),
    "norm": _norm,
    "bitwise_and": lambda a, b: apply("and", a, b),
    "bitwise_or": lambda a, b: apply("or", a, b),
    "invert": lambda a: apply("not", a),
    "floor": lambda x: apply("floor", x),
    "remainder": lambda a, b: apply("mod", a, b),
    "floor_divide": lambda a, b: apply("floor", apply("div", a, b)),
}
TORCH = COMMON | {
    "atan2": f.atan2,
    "arctan2": f.atan2,
    "pow": power,
    "neg": lambda x: -x,
    "rsqrt": lambda x: 1 / f.sqrt(x),
    "sub": COMMON["subtract"],
    "mul": COMMON["multiply"],
    "div": COMMON["divide"],
    "clamp": _clip,
    "clamp_min": lambda x, min: f.maximum(x, min),
    "clamp_max": lambda x, max: f.minimum(x, max),
    "lerp": f.lerp,
    "addcmul": f.addcmul,
    "addcdiv": f.addcdiv,
    "norm": _norm,
    "vector_norm": _norm,
    "linalg_norm": _norm,
    "linalg_vector_norm": _norm,
    "lt": COMMON["less"],
    "le": COMMON["less_equal"],
    "gt": COMMON["greater"],
    "ge": COMMON["greater_equal"],
    "eq": COMMON["equal"],
    "ne": COMMON["not_equal"],
}
# What torch's tensors have as methods.
METHODS = {name: function for name, function in TORCH.items() if not name.endswith("_like")} | {
    "where": lambda x, condition, other: f.where(condition, x, other),
    "rms": f.rms,
    "dim": lambda x: x.ndim,
    "numel": lambda x: f._numel(x._trace),
    "size": lambda x: x.shape,
    "clone": lambda x: x,
    "detach": lambda x: x,
    "item": lambda x: x,
}


def _array_ufunc(self: Value, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    if method != "__call__" or {key for key, value in options.items() if value is not None}:
        raise RuleError(f"np.{ufunc.__name__} can be called on values of a rule, without further arguments")
    return _named(NUMPY, "np", ufunc.__name__)(*inputs)


def _array_function(self: Value, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return _named(NUMPY, "np", function.__name__)(*args, **kwargs)


def _torch_function(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return _named(TORCH, "torch", getattr(function, "__name__", str(function)))(*args, **(kwargs or {}))


def _named(table: dict[str, Callable[..., Any]], module: str, name: str) -> Callable[..., Any]:
    if name in table:
        return table[name]
    raise RuleError(f"a rule cannot use {module}.{name}; the functions it may use are those of oxistep.rules")


def _ndim(x: Value) -> Any:
    return x._trace.fact("ndim") if x._kind.has_elements else 0


def _shape(x: Value) -> Any:
    return x._trace.fact("shape") if x._kind.has_elements else ()


for _name, _function in METHODS.items():
    setattr(Value, _name, _function)
for _name, _getter in (("ndim", _ndim), ("shape", _shape)):
    setattr(Value, _name, property(_getter))
Value.__array_ufunc__ = _array_ufunc  # type: ignore[attr-defined]
Value.__array_function__ = _array_function  # type: ignore[attr-defined]
Value.__torch_function__ = classmethod(_torch_function)  # type: ignore[attr-defined]
