"""What was measured beside rivals, as a table: a line for each measurement, and a column for each rival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from .tables import plain, show
from .wording import duration

Row = dict[str, Any]

LEGEND = (
    "oxistep: the time of one step. Other columns: their time over oxistep's, above 1 oxistep is faster.",
    "Medians of rounds in which all take turns, ± half the distance between the quartiles.",
)


def show_beside(
    out: Console,
    rows: list[Row],
    labels: dict[str, Callable[[Row], str]],
    own_time: str,
    *,
    rival: Callable[[Row], str] = lambda row: str(row["against"]),
    title: str | None = None,
) -> None:
    """Print a table.

    Args:
        out: where to.
        rows: one for each measurement and rival, with ``median``, ``q1`` and ``q3`` of its ratio, and ``floor``.
        labels: what a line is called, by the heading of the column.
        own_time: the key of the time that rivals are compared with.
        rival: the heading of the rival's column.
        title: above the table.
    """
    columns = list(dict.fromkeys(map(rival, rows)))
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(tuple(label(row) for label in labels.values()), {})[rival(row)] = row
    table = plain(*labels, "oxistep", *columns, left=len(labels), title=title)
    above = ""
    for names, found in lines.items():
        first, *others = names
        cells = (f"{spread(found[c])}{_mark(found[c])}" if c in found else "" for c in columns)
        time = duration(next(iter(found.values()))[own_time])
        table.add_row("" if others and first == above else first, *others, time, *cells)
        above = first
    show(out, table)


def show_floors(out: Console, rows: list[Row], names: Callable[[Row], str]) -> None:
    """Print what the columns mean, how many floors are met, and those that are missed one by one."""
    for line in LEGEND:
        out.print(line)
    asked = [row for row in rows if row["floor"] is not None]
    missed = [row for row in asked if not is_met(row)]
    if asked:
        more = "; missed (marked !):" if missed else ""
        out.print(f"The project's own floors: {len(asked) - len(missed)} of {len(asked)} met{more}")
    for row in missed:
        out.print(f"  {names(row)}, against {row['against']}: {row['median']:.2f}, the floor is {row['floor']:g}")


def is_met(row: Row) -> bool:
    return bool(row["median"] >= row["floor"])


def spread(row: Row) -> str:
    """A ratio and half the distance between its quartiles, with as many digits as mean something."""
    median = row["median"]
    digits = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{digits}f} ±{(row['q3'] - row['q1']) / 2:.{digits}f}"


def _mark(row: Row) -> str:
    return "" if row["floor"] is None or is_met(row) else " !"
