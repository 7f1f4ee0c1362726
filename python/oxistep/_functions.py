"""Functions of two variables that pictures know by name: a start, limits and minima for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from oxistep._bowl import START, bowl

Box = tuple[tuple[float, float], tuple[float, float]]


class Known(NamedTuple):
    """A function, and what a picture of it should show."""

    function: Callable[[Any, Any], Any]
    start: tuple[float, float]
    text: str
    """What it is, in a terminal."""
    title: str
    """What it is, above a picture."""
    limits: Box | None = None
    """((left, right), (bottom, top)); None: what the paths span."""
    minima: tuple[tuple[float, float], ...] = ()


# From plain operators alone, so that tensors, arrays and numbers will do; with where one commonly starts.
FUNCTIONS: dict[str, Known] = {
    "bowl": Known(bowl, START, "x1^2 + 10 x2^2", r"$f(x_1, x_2) = x_1^2 + 10\,x_2^2$", None, ((0, 0),)),
    "rosenbrock": Known(
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        (-1.5, 2),
        "a narrow bent valley, (1 - x1)^2 + 100 (x2 - x1^2)^2",
        "Rosenbrock's function",
        ((-2.2, 2.2), (-1, 3.2)),
        ((1, 1),),
    ),
    "himmelblau": Known(
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        (-0.5, -1),
        "four minima, (x1^2 + x2 - 11)^2 + (x1 + x2^2 - 7)^2",
        "Himmelblau's function",
        ((-5.5, 5.5), (-5.5, 5.5)),
        ((3, 2), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)),
    ),
    "beale": Known(
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        (1, 1.5),
        "a flat valley to (3, 0.5)",
        "Beale's function",
        ((-0.6, 4.4), (-1.6, 2.4)),
        ((3, 0.5),),
    ),
    "saddle": Known(
        lambda x, y: x**2 - y**2,
        (2, 0.01),
        "no minimum, x1^2 - x2^2",
        r"$f(x_1, x_2) = x_1^2 - x_2^2$",
        ((-2.5, 2.5), (-2.5, 2.5)),
    ),
}


def known(function: Callable[[Any, Any], Any]) -> Known | None:
    """What is known of a function, if it is one of these."""
    return next((one for one in FUNCTIONS.values() if one.function is function), None)
