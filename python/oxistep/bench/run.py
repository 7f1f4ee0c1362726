"""Measure oxistep against torch.optim and other peers, and print ratios.

    run             every cell that has a floor, and the sweeps over sizes and numbers of tensors
    run --quick     under two minutes
    run --brief     under half a minute

For every cell (workload x optimizer x dtype) all implementations are built, a few steps of each are checked against
torch's for-loop, and then all take turns; the figure is the ratio within a round.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import page, results
from .cell import Cell
from .environment import environment
from .implementations import IMPLEMENTATIONS, OURS
from .optimizer_table import OPTIMIZERS
from .plan import DTYPES, Plan, brief, full, grid, quick
from .report import print_report
from .workloads import WORKLOADS

PROGRAM = "python -m oxistep.bench run"


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under two minutes")
    size.add_argument("--brief", action="store_true", help="a handful of cells")
    for option, table in (
        ("workload", list(WORKLOADS)),
        ("optimizer", list(OPTIMIZERS)),
        ("dtype", DTYPES),
    ):
        parser.add_argument(
            f"--{option}",
            action="append",
            choices=table,
            metavar=option.upper(),
            help=f"only this (repeatable); one of {', '.join(shown(table))}",
        )
    parser.add_argument("--seconds", type=float, help="timing of one cell; default: what suits its size")
    parser.add_argument("--minutes", type=float, help="stop when this is spent, and name the cells left out")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; default: torch's own")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile'd steps too; default: not with --quick and --brief, as compiling takes long",
    )
    parser.add_argument("--output", type=Path, help="write everything here, as JSON")
    parser.add_argument("--page", type=Path, help="write the page here, as one HTML file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args(argv)


def shown(names: list[str]) -> list[str]:
    """Families of names in short."""
    return list(
        dict.fromkeys(f"{family}_<n>" if (family := n.split("_")[0]) in ("size", "tensors") else n for n in names)
    )


def planned(options: argparse.Namespace) -> Plan:
    chosen = brief() if options.brief else quick() if options.quick else full()
    if options.workload and not (options.quick or options.brief):
        # Named workloads need not be in the full grid: flat_16 is not.
        chosen = grid(options.workload, options.optimizer or usual(options.workload), options.dtype or DTYPES)
    cells = [
        cell
        for cell in chosen
        if cell.workload in (options.workload or WORKLOADS)
        and cell.optimizer in (options.optimizer or OPTIMIZERS)
        and cell.dtype in (options.dtype or DTYPES)
    ]
    if not cells:
        sys.exit("no such cell in the chosen grid; leave out --quick or --brief, or name a --workload")
    small = options.brief or options.quick
    compiled = not small if options.compile is None else options.compile
    minutes = options.minutes or (1.5 if options.quick else 0.35 if options.brief else None)
    return Plan(
        cells=cells,
        implementations=[name for name in IMPLEMENTATIONS if name != "compile" or compiled],
        cell_seconds=options.seconds or (1.2 if small else None),
        total_seconds=minutes and 60 * minutes,
    )


def usual(workloads: list[str]) -> list[str]:
    """Optimizers that make sense on all of these: those of the full grid, or every element-wise one."""
    known = [cell.optimizer for cell in full() if cell.workload in workloads]
    return list(dict.fromkeys(known)) or [name for name, o in OPTIMIZERS.items() if o.streams and name != "SparseAdam"]


def progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,  # the timed code shares the processor with the bar
    )


def measure(plan: Plan, bar: Progress, save: Any) -> None:
    task = bar.add_task("", total=len(plan.cells), what="")
    for name in plan.cells:
        bar.update(task, what=str(name))
        if plan.seconds_left() <= 0:
            plan.left_out.append(name)
            continue
        cell = Cell(name, plan.implementations_of(name))
        if OURS in cell.contestants:
            cell.measure(plan.share(name))
        plan.records.append(cell.record)
        cell.close()
        save()
        bar.advance(task)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = planned(options)
    where = environment()
    command = f"{program or PROGRAM} {shlex.join(sys.argv[1:] if argv is None else argv)}".rstrip()

    def content() -> dict[str, Any]:
        return {
            "command": command,
            "environment": where,
            "cells": [record.to_json() for record in plan.records],
            "left_out": [str(name) for name in plan.left_out],
        }

    def save() -> None:
        if options.output:
            results.write(options.output, content())

    with progress() as bar:
        measure(plan, bar, save)
    save()
    print_report(plan.records, plan.left_out, where, command, options.markdown)
    if options.page:
        page.write(options.page, content())
    wrong = [str(record.name) for record in plan.records if OURS in record.wrong]
    if wrong:
        print(f"oxistep differs from torch's for-loop in: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
