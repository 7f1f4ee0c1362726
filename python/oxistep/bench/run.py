"""Measure oxistep against torch.optim and other peers, and print ratios.

    run             every cell that has a floor, and the sweeps over sizes and numbers of tensors
    run --quick     under two minutes
    run --brief     under half a minute

For every cell (workload x optimizer x dtype) all implementations are built, a few steps of each are checked against
torch's for-loop, and then all take turns; the figure is the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import results
from .cell import Cell
from .environment import environment
from .implementations import IMPLEMENTATIONS, OURS
from .optimizer_table import OPTIMIZERS
from .options import add_options
from .plan import Plan, brief, full, grid, quick, refused
from .report import print_report
from .workloads import DTYPES, WORKLOADS

PROGRAM = "python -m oxistep.bench run"


def arguments(argv: list[str] | None, program: str | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    return parser, parser.parse_args(argv)


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
        raise ValueError("no such cell in the chosen grid; leave out --quick or --brief, or name a --workload")
    if options.optimizer is None:
        cells = [cell for cell in cells if not refused(cell)]
    elif whys := list(dict.fromkeys(filter(None, map(refused, cells)))):
        raise ValueError("; ".join(whys))
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
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
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


def execute(plan: Plan, options: argparse.Namespace, command: str) -> int:
    """Measure, print, write; `command` is noted in the results."""
    where = environment()

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
    if options.json:
        print(json.dumps({"schema": results.SCHEMA} | content(), indent=1))
    else:
        print_report(plan.records, plan.left_out, where, command, options.markdown)
    if options.page:
        from . import page  # not above: it needs what nothing else here does

        page.write(options.page, content())
    wrong = [str(record.name) for record in plan.records if OURS in record.wrong]
    if wrong:
        print(f"oxistep differs from torch's for-loop in: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    parser, options = arguments(argv, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        plan = planned(options)
    except ValueError as error:
        parser.error(str(error))
    return execute(plan, options, f"{program or PROGRAM} {shlex.join(sys.argv[1:] if argv is None else argv)}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
