"""`pytest --brief`: of every test function, parametrisations that hold each of its values at least once.

Many functions are tried with a whole product: every class with every dtype, and so on. The whole suite runs all of it.
The brief run takes, of each function, as few as cover each value of each parameter once: every class, every dtype,
though not every class with every dtype. Where that is too little, the function says what belongs together:

    @pytest.mark.covers("name", ("name", "dtype"))

means every name, and every pair of name and dtype. Tests marked `whole` are left out. The rule looks at names and
values alone, so the same tests are taken each time. Among those that cover as much the checksum of the test's name
decides, so that functions with the same product take different parts of it.

A test that repeats itself in a loop (seeds, lines to fail at) says how often in either run: ``brief.number``. Programs
that need an interpreter of their own share the imports of torch: see ``fresh``.
"""

import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")

ASKED = False
"""Whether this is a brief run; known when the files of tests are imported."""


def some(values: Iterable[T], every: int) -> list[T]:
    """All of them in the whole run, one of so many in the brief one."""
    return list(values)[:: every if ASKED else 1]


def number(*, whole: int, brief: int) -> int:
    """How often, or how many: in the whole run and in the brief one."""
    return brief if ASKED else whole


def _token(value: object) -> Hashable:
    """Equal for values that are the same value of a parameter. What cannot be compared is a value of its own."""
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *map(_token, value)
    if isinstance(value, dict):
        return "dict", *((key, _token(v)) for key, v in value.items())
    if isinstance(value, (int, float, complex, str, bytes)) or value is None:
        return type(value).__name__, repr(value)  # 1, 1.0 and True are different values, NaN is one
    return id(value)


def _covers(item: pytest.Item) -> set[Hashable]:
    """What this parametrisation would cover."""
    params = item.callspec.params
    marker = item.get_closest_marker("covers")
    wanted = marker.args if marker else tuple(params)
    covered = set()
    for names in wanted:
        names = (names,) if isinstance(names, str) else names
        covered.add((names, *(_token(params[name]) for name in names)))
    return covered


def _selected(items: list[pytest.Item]) -> set[pytest.Item]:
    """The items of one function to be run: again and again the one that covers most of what is not covered yet."""
    left = {item: _covers(item) for item in items}
    missing: set[Hashable] = set().union(*left.values())
    taken = set()
    while missing:
        best = max(left, key=lambda item: (len(left[item] & missing), zlib.crc32(item.nodeid.encode())))
        missing -= left.pop(best)
        taken.add(best)
    return taken


def split(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those to be run, and those left out, each in their order."""
    functions = defaultdict(list)
    alone = {item for item in items if not hasattr(item, "callspec") and item.get_closest_marker("whole") is None}
    for item in items:
        if item.get_closest_marker("whole") is None and hasattr(item, "callspec"):
            functions[item.nodeid.split("[")[0]].append(item)
    chosen = alone | {item for group in functions.values() for item in _selected(group)}
    return [item for item in items if item in chosen], [item for item in items if item not in chosen]
