"""Tables for the terminal: rich where it is installed, plain text otherwise."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from typing import Any


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> str:
    """Text of a table; the columns named in ``left`` are left-aligned, the others right."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return plain(title, columns, rows, left)
    drawn: Any = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        styles = ("bold red" if column == "anomaly" else "" for column in columns)
        # Text: names may have brackets, which rich would take for markup
        drawn.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    terminal = sys.stdout.isatty()
    # a file has no width: nothing is folded there
    width = shutil.get_terminal_size().columns if terminal else 1000
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, legacy_windows=False)
    console.print(Text(title, style="bold"))
    console.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> str:
    """The same without rich."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = (
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([title, line(columns), "  ".join("-" * width for width in widths), *map(line, rows)])


def number(x: float) -> str:
    """A number in little room."""
    return f"{x:.3g}"
