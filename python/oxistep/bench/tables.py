"""Printing tables: they fit a terminal of 100 columns."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

COLUMNS = 100
"""What tables are laid out for."""
LONG = 20
"""As long as the longest heading of a column may be."""


def plain(*headings: str, left: int = 1, title: str | None = None, style: box.Box = box.SIMPLE_HEAD) -> Table:
    """A table whose first `left` columns are text, which may be folded, and the others numbers."""
    table = Table(box=style, pad_edge=False, title=title, title_justify="left")
    for index, heading in enumerate(headings):
        text = index < left
        table.add_column(heading, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def show(out: Console, table: Table) -> None:
    """In the columns of the terminal; in those that tables are laid out for where there is none, as in a pipe.

    Text is folded between words only, names of more than LONG characters excepted: in a terminal that is too narrow
    for that, the table is wider.
    """
    for column in table.columns:
        if not column.no_wrap:
            cells = (str(cell) for cell in (column.header, *column.cells))
            lengths = [cell_len(word) for cell in cells for word in cell.split()]
            column.min_width = min(LONG, max(lengths, default=0))
    needed = out.measure(table, options=out.options.update(width=1000))
    most = needed.maximum if table.box is box.MARKDOWN else min(needed.maximum, COLUMNS)
    out.width = max(out.width if out.is_terminal else most, needed.minimum)
    out.print(table)
