"""Printing tables that may be wider than the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def plain(*headings: str, left: int = 1, title: str | None = None, style: box.Box = box.SIMPLE_HEAD) -> Table:
    """A table whose first `left` columns are text and the others numbers."""
    table = Table(box=style, pad_edge=False, title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def show(out: Console, table: Table) -> None:
    """A table squeezed into the 80 columns of a pipe cannot be read: give it what it needs."""
    out.width = max(out.width, out.measure(table, options=out.options.update(width=1000)).maximum)
    out.print(table)
