"""``OXISTEP_EXPLAIN=1``: one line to stderr at the first step of each optimizer. Off, a step knows nothing of it."""

import os
import sys
from collections.abc import Callable
from typing import Any

from oxistep._names import name_of
from oxistep.optim._definition import definition_of
from oxistep.optim._kept import kept_of

__all__ = ["TELLS", "tell", "told_at_first"]

TELLS = os.environ.get("OXISTEP_EXPLAIN") == "1"


def told_at_first(update: Callable[..., None]) -> Callable[..., None]:
    """The update of a step, before the first of which an optimizer is told of."""

    def update_and_tell(optimizer: Any, *args: Any) -> None:
        kept = kept_of(optimizer)
        cls = type(optimizer)
        if kept.told is not cls:
            kept.told = cls
            tell(optimizer, definition_of(cls).explain)
        update(optimizer, *args)

    return update_and_tell


def tell(optimizer: Any, rows: Callable[[Any], list[tuple[int, int, str, str]]]) -> None:
    """Writes how many parameters are native and, if not all are, the first that is not, with the reason."""
    name = type(optimizer).__name__
    try:
        line = f"{name}: {_text(optimizer, rows(optimizer))}"
    except Exception as error:  # the step, which comes next, is to raise it
        line = f"{name}: nothing to tell, {type(error).__name__}: {error}"
    if sys.stderr is not None:
        print(line, file=sys.stderr)


def _text(optimizer: Any, rows: list[tuple[int, int, str, str]]) -> str:
    native = sum(path == "native" for _, _, path, _ in rows)
    text = f"{native} of {len(rows)} native"
    others = [row for row in rows if row[2] == "torch"] or [row for row in rows if row[2] == "skipped"]
    if others:
        g, i, path, reason = others[0]
        whose = "torch's" if path == "torch" else path
        text += f"; {name_of(optimizer.param_groups, g, i)} is {whose}: {reason}"
    return text
