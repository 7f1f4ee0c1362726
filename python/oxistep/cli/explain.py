"""Look into a saved checkpoint: which optimizer its states belong to, and what oxistep would do with them.

    oxistep explain checkpoint.pt

The file is one that torch.save wrote: an optimizer's state_dict, or dicts and lists that hold some. It is loaded with
weights_only=True, so it cannot run code. Such a file has no parameters; tensors of the shape and dtype of their states
stand in for them, also for what training takes in memory, with these settings and with others.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from oxistep._memory import in_words
from oxistep._options import present_file
from oxistep.cli._checkpoint import Report, report_of, state_dicts
from oxistep.cli._terminal import RefusalError, console, need, print_json

SUMMARY = "say which optimizer a checkpoint belongs to, and what would run natively"
LISTED = 20  # parameters that are not native, unless --all


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `explain`."""
    parser.add_argument("checkpoint", type=present_file, metavar="CHECKPOINT", help="a file that torch.save wrote")
    parser.add_argument("--all", action="store_true", help="list every parameter, the native ones too")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(options: argparse.Namespace) -> int:
    """Load, recognize, print."""
    need("torch", *(() if options.json else ("rich",)))
    found = state_dicts(_loaded(options.checkpoint))
    if not found:
        raise RefusalError(
            f"{options.checkpoint} holds no optimizer's state_dict (a dict with 'state' and 'param_groups'); "
            "a model's has none"
        )
    reports = [report_of(where, state) for where, state in found]
    if options.json:
        print_json({"checkpoint": str(options.checkpoint), "optimizers": [report.to_json() for report in reports]})
    else:
        for report in reports:
            _print(report, options.all)
    return 0


def _loaded(path: Path) -> Any:
    import torch

    with path.open("rb") as file:
        mapped = file.read(2) == b"PK"  # only the zip format can be mapped: states are looked at, not read
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises whatever its reader does
        if names := re.findall(r"GLOBAL (\S+) was not an allowed", str(error)):
            why = f"it holds a {names[0]}; save state_dicts, of tensors and plain values alone"
        else:
            why = f"it is damaged, or torch.save did not write it ({type(error).__name__})"
        raise RefusalError(f"{path} cannot be loaded with torch.load(weights_only=True): {why}") from None


def _print(report: Report, everything: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from oxistep.bench.tables import show

    out = console()
    out.print(f"[bold]{escape(report.where)}[/]: states of {report.title}")
    for line in report.lines():
        out.print(f"  {escape(line)}")
    if report.memory is not None and len(report.memory.settings) > 1:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("with other settings", "states", "residuals", "in training"):
            table.add_column(heading, no_wrap=True, justify="left" if heading.startswith("with") else "right")
        for one in report.memory.settings:
            label = one.setting + (" (as it is)" if one.is_now else "")
            table.add_row(escape(label), *map(in_words, (one.states, one.residuals, one.total)))
        out.width = max(out.width, out.measure(table, options=out.options.update(width=1000)).maximum)
        out.print(table)
    rows = [row for row in report.parameters if everything or row.path != "native"]
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("group", "parameter", "shape", "dtype", "steps", "path", "why"):
            table.add_column(heading, no_wrap=heading not in ("parameter", "why"), overflow="fold")
        for row in rows if everything else rows[:LISTED]:
            table.add_row(*map(escape, row.cells()))
        show(out, table)
        if not everything and len(rows) > LISTED:
            out.print(f"  and {len(rows) - LISTED} more: --all lists them")
