"""Printing tables: they fit a terminal of 100 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = 100
"""What tables are laid out for."""


def plain(*headings: str, left: int = 1, title: str | None = None, style: box.Box = box.SIMPLE_HEAD) -> Table:
    """A table whose first `left` columns are text, which may be folded, and the others numbers."""
    table = Table(box=style, pad_edge=False, title=title, title_justify="left")
    for index, heading in enumerate(headings):
        text = index < left
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def show(out: Console, table: Table) -> None:
    """In the columns of the terminal; in those that tables are laid out for where there is none, as in a pipe."""
    needed = out.measure(table, options=out.options.update(width=1000))
    most = needed.maximum if table.box is box.MARKDOWN else min(needed.maximum, COLUMNS)
    out.width = max(out.width if out.is_terminal else most, needed.minimum)
    out.print(table)
