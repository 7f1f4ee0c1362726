"""The functions a rule may use. On anything but a rule's values they do what NumPy's or torch's do."""

import sys
from typing import Any

import numpy as np

from oxistep.rules._graph import Kind, is_number
from oxistep.rules._operations import OPERATIONS
from oxistep.rules._trace import ALONE, caller
from oxistep.rules._values import RuleError, Value, apply, as_value, is_symbolic

__all__ = [
    "addcdiv",
    "addcmul",
    "atan2",
    "cbrt",
    "clip",
    "cos",
    "dot",
    "exp",
    "fma",
    "full_like",
    "lerp",
    "log",
    "max_abs",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "rms",
    "sign",
    "sqrt",
    "sum",
    "tanh",
    "total",
    "where",
    "zeros_like",
]


def _on(name: str, *operands: Any) -> Any:
    """An operation on values of a rule, or on what is known."""
    if is_symbolic(*operands):
        return apply(name, *operands)
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(x, torch.Tensor) for x in operands):
        return OPERATIONS[name].torch(torch, *operands)
    result = OPERATIONS[name].numpy(*operands)
    return float(result) if all(map(is_number, operands)) else result


def sqrt(x: Any) -> Any:
    """The square root.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.sqrt(4.0)
        2.0
    """
    return _on("sqrt", x)


def exp(x: Any) -> Any:
    """e to the power of x.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.exp(0.0)
        1.0
    """
    return _on("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.log(1.0)
        0.0
    """
    return _on("log", x)


def cos(x: Any) -> Any:
    """The cosine of an angle in radians.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.cos(0.0)
        1.0
    """
    return _on("cos", x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.tanh(0.0)
        0.0
    """
    return _on("tanh", x)


def cbrt(x: Any) -> Any:
    """The cube root, also of what is below zero.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.cbrt(-8.0)
        -2.0
    """
    return _on("cbrt", x)


def atan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y), in radians.

    Args:
        y: a value of the rule, a number or an array.
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.atan2(0.0, 1.0)
        0.0
    """
    return _on("atan2", y, x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; of NaN 0, as torch has it.

    Args:
        x: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.sign(-3.0)
        -1.0
    """
    return _on("sign", x)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; NaN if either is.

    Args:
        a: a value of the rule, a number or an array.
        b: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.minimum(1.0, 2.0)
        1.0
    """
    return _on("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; NaN if either is.

    Args:
        a: a value of the rule, a number or an array.
        b: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.maximum(1.0, 2.0)
        2.0
    """
    return _on("maximum", a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """One value where a condition holds, another elsewhere.

    Args:
        condition: a comparison; or a value, which holds where it is not zero.
        a: the value where it holds.
        b: the value elsewhere.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.where(True, 1.0, 2.0)
        1.0
    """
    return _on("where", condition, a, b)


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """x, but no less than ``low`` and no more than ``high``.

    Args:
        x: a value of the rule, a number or an array.
        low: the lower bound (default: None, there is none).
        high: the upper bound (default: None, there is none).

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.clip(5.0, high=1.0)
        1.0
    """
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where kernels take the step.

    Args:
        a: a value of the rule, a number or an array.
        b: a value of the rule, a number or an array.
        c: a value of the rule, a number or an array.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.fma(2.0, 3.0, 1.0)
        7.0
    """
    return _on("fma", a, b, c)


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """start + weight * (end - start), as torch rounds it.

    Args:
        start: a value of the rule, a number or an array.
        end: a value of the rule, a number or an array.
        weight: 0 for the start, 1 for the end.

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.lerp(1.0, 3.0, 0.25)
        1.5
    """
    return _on("lerp", start, end, weight)


def addcmul(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    """x + value * a * b, as torch rounds it.

    Args:
        x: a value of the rule, a number or an array.
        a: a value of the rule, a number or an array.
        b: a value of the rule, a number or an array.
        value: a number (default: 1).

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.addcmul(1.0, 2.0, 3.0, value=0.5)
        4.0
    """
    return _on("addcmul", x, a, b, value)


def addcdiv(x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    """x + value * a / b, as torch rounds it.

    Args:
        x: a value of the rule, a number or an array.
        a: a value of the rule, a number or an array.
        b: a value of the rule, a number or an array.
        value: a number (default: 1).

    Returns:
        the same kind of thing as what it is given.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> from oxistep import rules
        >>> rules.addcdiv(1.0, 6.0, 3.0, value=0.5)
        2.0
    """
    return _on("addcdiv", x, a, b, value)


def full_like(x: Any, value: Any) -> Any:
    """The same value for each element.

    Args:
        x: what has elements: the parameter, say.
        value: a number.

    Returns:
        a value for each element, or an array.

    Raises:
        TypeError: for a value that is none of one number.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> rules.full_like(np.zeros(2), 3.0)
        array([3., 3.])
    """
    if not is_symbolic(x, value):
        return np.full_like(x, value)
    trace = (x if isinstance(x, Value) else value)._trace
    number = as_value(trace, value)
    if number._kind.has_elements:
        raise RuleError("full_like(p, value) takes a number, and this has a value for each element")
    return Value(trace, trace.graph.add("fill", (number._node,), "full_like", Kind.ELEMENTS))


def zeros_like(x: Any) -> Any:
    """Zero for each element.

    Args:
        x: what has elements: the parameter, say.

    Returns:
        a value for each element, or an array.

    Raises:
        TypeError: for what is no number, value or array.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> rules.zeros_like(np.ones(2))
        array([0., 0.])
    """
    return full_like(x, 0.0)


def _reduced(name: str, *operands: Any) -> Value:
    trace = next(x._trace for x in operands if isinstance(x, Value))
    trace.refuse_if_over()
    nodes = [as_value(trace, x) for x in operands]
    if not any(v._kind.has_elements for v in nodes):
        raise RuleError(f"{name}(x) is over the elements of a tensor, and this is a number: {nodes[0]!r}")
    return Value(trace, trace.graph.add("reduce", tuple(v._node for v in nodes), name, Kind.NUMBER))


def _numel(trace: Any) -> Value:
    return trace.given("numel", "p.numel()", Kind.NUMBER)  # type: ignore[no-any-return]


def sum(x: Any) -> Any:
    """The sum over the elements of a tensor.

    Args:
        x: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.sum(np.array([1.0, 2.0])))
        3.0
    """
    return _reduced("sum", x) if is_symbolic(x) else np.sum(x)


def mean(x: Any) -> Any:
    """The mean over the elements of a tensor.

    Args:
        x: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.mean(np.array([1.0, 2.0])))
        1.5
    """
    return sum(x) / _numel(x._trace) if is_symbolic(x) else np.mean(x)


def dot(x: Any, y: Any) -> Any:
    """The sum of the products of two tensors' elements.

    Args:
        x: a value for each element; or an array.
        y: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.dot(np.array([1.0, 2.0]), np.array([3.0, 4.0])))
        11.0
    """
    return _reduced("dot", x, y) if is_symbolic(x, y) else np.vdot(x, y)


def norm(x: Any) -> Any:
    """The 2-norm of a tensor.

    Args:
        x: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.norm(np.array([3.0, 4.0])))
        5.0
    """
    return sqrt(_reduced("dot", x, x)) if is_symbolic(x) else np.linalg.norm(np.ravel(x))


def rms(x: Any) -> Any:
    """The root of the mean of the squares of a tensor's elements.

    Args:
        x: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.rms(np.array([1.0, -1.0])))
        1.0
    """
    return sqrt(_reduced("dot", x, x) / _numel(x._trace)) if is_symbolic(x) else np.sqrt(np.mean(np.square(x)))


def max_abs(x: Any) -> Any:
    """The largest magnitude in a tensor.

    Args:
        x: a value for each element; or an array.

    Returns:
        one number.

    Raises:
        TypeError: for one number of the rule, which has no elements.

    Example:
        >>> import numpy as np
        >>> from oxistep import rules
        >>> float(rules.max_abs(np.array([1.0, -2.0])))
        2.0
    """
    return _reduced("max_abs", x) if is_symbolic(x) else np.max(np.abs(x))


def total(x: Any) -> Value:
    """The sum over all parameters that take this step, in all groups.

    Each contributes with the numbers of its own group; where a parameter's rule does not come to this call it
    contributes zero.

    Args:
        x: one number of the rule; or a value for each element, of which the sum counts.

    Returns:
        one number, the same for all parameters.

    Raises:
        TypeError: for what is no value of a rule.

    Example:
        >>> import numpy as np
        >>> import oxistep
        >>> from oxistep import rules
        >>> @oxistep.rule
        ... def bounded(p, g, s, lr=1.0):
        ...     length = rules.sqrt(rules.total(g * g))
        ...     return p - lr * g / rules.maximum(length, 1.0)
        >>> a, b = np.zeros(1), np.zeros(1)
        >>> bounded([a, b]).step([np.array([3.0]), np.array([4.0])])
        >>> print(a, b)
        [-0.6] [-0.8]
    """
    if not is_symbolic(x):
        raise RuleError("total(x) is over what a rule computes; of a constant, total(full_like(p, x)) counts elements")
    if ALONE.get():
        raise RuleError(
            "total(x) is over all parameters, and step_in_backward steps each by itself, as soon as its gradient is "
            "there: call step() after backward instead"
        )
    trace = x._trace
    number = sum(x) if x._kind.has_elements else x
    place = caller()
    n = trace.totals[place] = trace.totals.get(place, -1) + 1
    return Value(trace, trace.graph.add("total", (number._node,), (*place, n), Kind.NUMBER))
