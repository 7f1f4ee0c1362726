"""Measure oxistep against torch.optim, and print ratios.

    python benches/run.py             the full grid (most of an hour; narrow it with --workload ...)
    python benches/run.py --quick     under two minutes
    python benches/run.py --brief     under half a minute

One pytest process does the work: for every cell it builds and checks all implementations, times
each with pytest-benchmark (the rows), then all of them in turns (the ratios).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from environment import environment
from implementations import IMPLEMENTATIONS, OPTIMIZERS
from plan import DTYPES, Plan, brief, full, grid, quick
from report import print_report
from workloads import WORKLOADS

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under two minutes")
    size.add_argument("--brief", action="store_true", help="a handful of cells")
    for option, table in (
        ("workload", list(WORKLOADS)),
        ("optimizer", list(OPTIMIZERS)),
        ("dtype", DTYPES),
    ):
        parser.add_argument(f"--{option}", action="append", choices=table, help="only this (repeatable)")
    parser.add_argument("--seconds", type=float, help="timing of one cell")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; default: torch's own")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (slow to start, needs a compiler)")
    parser.add_argument("--output", type=Path, help="write everything here, as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--pytest", action="store_true", help="only the rows; --output is pytest-benchmark's JSON")
    return parser.parse_args()


def planned(options: argparse.Namespace) -> Plan:
    cells = brief() if options.brief else quick() if options.quick else full()
    if options.workload or options.optimizer or options.dtype:
        if options.quick or options.brief or not options.workload:
            wanted = cells
        else:
            # Named workloads need not be in the full grid: flat_16 is not.
            wanted = grid(options.workload, list(OPTIMIZERS), DTYPES)
        cells = [
            cell
            for cell in wanted
            if cell.workload in (options.workload or WORKLOADS)
            and cell.optimizer in (options.optimizer or OPTIMIZERS)
            and cell.dtype in (options.dtype or DTYPES)
        ]
    if not cells:
        sys.exit("no such cell in the chosen grid; leave out --quick or --brief")
    return Plan(
        cells=cells,
        implementations=[name for name in IMPLEMENTATIONS if name != "compile" or options.compile],
        cell_seconds=options.seconds or (1.5 if options.brief or options.quick else 6.0),
        total_seconds=85.0 if options.quick else 20.0 if options.brief else None,
    )


@contextmanager
def progress(plan: Plan) -> Iterator[Callable[[str], None]]:
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,  # the timed code shares the processor with the bar
    )
    task = bar.add_task("", total=len(plan.cells), what="")
    done: dict[str, None] = {}

    def advance(test: str) -> None:
        cell = next((str(cell) for cell in plan.cells if test.startswith(str(cell))), test)
        bar.update(task, completed=len(done), what=test)
        done[cell] = None

    with bar:
        yield advance


def main() -> int:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = planned(options)
    where = environment()
    command = shlex.join(["python", "benches/run.py", *sys.argv[1:]])

    flags = ["-qq", f"--config-file={HERE / 'pytest.ini'}"]
    if options.pytest:
        flags.append("--benchmark-only")
    if options.output:
        options.output.unlink(missing_ok=True)  # an interrupted run must not leave older rows there
        flags.append(f"--benchmark-json={options.output}")
    with progress(plan) as plan.advance:
        status = pytest.main([*flags, str(HERE / "bench_step.py")], plugins=[plan])
    if options.pytest:
        return int(status)

    print_report(plan.records, plan.left_out, where, command, options.markdown)
    if options.output:
        rows = json.loads(options.output.read_text()) if options.output.exists() else None
        content = {
            "command": command,
            "environment": where,
            "cells": [record.to_json() for record in plan.records],
            "left_out": [str(name) for name in plan.left_out],
            "pytest_benchmark": rows,
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
