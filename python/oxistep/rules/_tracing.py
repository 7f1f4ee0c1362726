"""Running a rule's function, with errors that name the rule and the user's line."""

import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oxistep.rules._graph import LARGEST, Kind, TooLarge
from oxistep.rules._states import States
from oxistep.rules._trace import Facts, Trace, Undecided, is_ours
from oxistep.rules._values import RuleError, as_value

__all__ = ["run"]

NO_NUMBERS = frozenset(("params", "param_names", "maximize", "initial_lr", "name"))
"""Keys of param groups that are torch's, or everybody's."""


def run(
    function: Callable[..., Any], name: str, hyperparameters: Mapping[str, Any], facts: Facts, answers: Sequence[float]
) -> Trace:
    """Runs a rule with these answers.

    Args:
        function: the rule.
        name: what it is called in messages.
        hyperparameters: by name; numbers become values, all else reaches the function as it is.
        facts: of the parameter.
        answers: to the numbers that it asks for, in their order.

    Raises:
        Undecided: at the first number asked for beyond the answers.
        TypeError: for what cannot be traced; what the rule raises itself is raised with a note.
    """
    trace = Trace(name, facts, answers, taken=NO_NUMBERS.union(hyperparameters))
    p = trace.given("param", "p", Kind.ELEMENTS)
    g = trace.given("grad", "g", Kind.ELEMENTS)
    trace.param = p._node
    numbers = {key: _seen(trace, key, value) for key, value in hyperparameters.items()}
    try:
        result = function(p, g, States(trace), **numbers)
        if result is None:
            raise RuleError("it returns nothing; a rule returns the new parameter")
        value = as_value(trace, result)
        if not value._kind.has_elements:
            raise RuleError(
                "it returns a number; a rule returns the new parameter (full_like(p, x) is one of equal elements)"
            )
        trace.result = value._node
    except Undecided as undecided:
        undecided.trace = trace  # type: ignore[attr-defined]
        raise
    except TooLarge:
        raise _placed(
            RuleError(f"it has more than {LARGEST:,} operations (loops are written out: shorten them)"), function, name
        ) from None
    except RuleError as error:
        raise _placed(error, function, name) from None
    except Exception as error:
        error.add_note(
            f"in {_place(error, function, name)}, while it was traced: p, g and s stand for values, see docs/rules.md"
        )
        raise
    finally:
        trace.over = True
    return trace


def _seen(trace: Trace, key: str, value: Any) -> Any:
    """A hyperparameter as the rule sees it: numbers as values, all else as it is."""
    if isinstance(value, (tuple, list)):
        return tuple(_seen(trace, f"{key}[{i}]", one) for i, one in enumerate(value))
    if value is None or isinstance(value, (str, bool)):
        return value
    return trace.given("hyper", key, Kind.NUMBER)


def _placed(error: Exception, function: Callable[..., Any], name: str) -> TypeError:
    return TypeError(f"{_place(error, function, name)}: {error}")


def _place(error: Exception, function: Callable[..., Any], name: str) -> str:
    """The rule and the line of the user's that was at work."""
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__) if not is_ours(f.f_globals.get("__name__", ""))]
    code = getattr(function, "__code__", None)
    if not frames or code is None:
        line = code.co_firstlineno if code else 0
        return f"rule {name}" + (f" ({code.co_filename}, line {line})" if code else "")
    tb = [(f, n) for f, n in traceback.walk_tb(error.__traceback__) if f is frames[-1]]
    frame, number = tb[-1]
    source = linecache.getline(frame.f_code.co_filename, number).strip()
    return f"rule {name} ({frame.f_code.co_filename}, line {number}" + (f": {source})" if source else ")")
