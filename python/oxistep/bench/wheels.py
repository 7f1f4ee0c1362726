"""What a change costs or gains: two wheels, each in a process of its own, that take turns.

    oxistep bench wheels before.whl after.whl

The figure is the time of the first wheel over that of the second within a round: below 1 the second is slower. Cells
are those of `run`, built several times anew, since where tensors happen to lie decides about some percent. Both wheels
judge their result by torch's for-loop before they are timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from .._options import count, positive, present_file
from ..cli._terminal import RefusalError, progress
from . import plan, results
from .paired import MIN_ROUNDS, Paired, Ratio
from .record import CellName
from .tables import plain, show

BEFORE, AFTER = "before", "after"
FLOOR = 0.97

# Uses the benchmark of the wheel itself: what a cell is belongs to it.
WORKER = """
import gc, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path.insert(0, sys.argv[1])
import torch
from oxistep.bench.cell import Cell
from oxistep.bench.implementations import OURS
from oxistep.bench.paired import block
from oxistep.bench.record import CellName
gc.disable()
cell = None
for line in sys.stdin:
    request, *told = json.loads(line)
    answer = None
    if request == "build":
        try:
            cell = Cell(CellName(*told), [OURS])
            ours = cell.contestants.get(OURS)
            why = cell.record.missing | cell.record.wrong
            answer = {"steps": ours.steps} if ours else {"why": "; ".join(why.values()) or "not built"}
        except Exception as error:
            answer = {"why": f"{type(error).__name__}: {error}"}
    elif request == "time":
        if cell.lead_in:
            ours.step()
        answer = block(ours.step, *told)
    else:
        ours = cell = None
        gc.collect()
    print(json.dumps(answer), file=answers, flush=True)
"""


class Worker:
    """A process that steps with one of the wheels."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *request: Any) -> Any:
        to, back = self._pipes()
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its missing answer tells
            print(json.dumps(request), file=to, flush=True)
        answer = back.readline()
        if not answer:
            raise RefusalError(f"a process ended with status {self._process.wait()} when asked to {request[0]}")
        return json.loads(answer)

    def end(self) -> None:
        to, back = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            to.close()
        self._process.wait()
        back.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def unpacked(wheel: Path, folder: Path) -> Path:
    """The package of a wheel, ready to be imported."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile:
        raise RefusalError(f"{wheel} is no wheel") from None
    if not (folder / "oxistep" / "bench").is_dir():
        raise RefusalError(f"{wheel} is no wheel of oxistep with its benchmark")
    return folder


def timed(workers: dict[str, Worker], cell: CellName, seconds: float, builds: int) -> Paired | str:
    """Rounds of one cell, or why there are none."""
    nanoseconds: dict[str, list[float]] = {name: [] for name in workers}
    steps = 1
    for build in range(builds):
        order = list(workers)[:: 1 if build % 2 else -1]
        built = {name: workers[name].ask("build", cell.workload, cell.optimizer, cell.dtype) for name in order}
        try:
            for name, answer in built.items():
                if "why" in answer:
                    return f"{name}: {answer['why']}"
            steps = max(answer["steps"] for answer in built.values())
            turn, deadline = 0, time.perf_counter() + seconds / builds
            while turn < MIN_ROUNDS or time.perf_counter() < deadline:
                for name in order[:: 1 if turn % 2 else -1]:
                    nanoseconds[name].append(workers[name].ask("time", steps))
                turn += 1
        finally:
            for worker in workers.values():
                worker.ask("close")
    return Paired(nanoseconds, dict.fromkeys(workers, steps))


def compared(before: Path, after: Path, cells: list[CellName], seconds: float, builds: int) -> dict[str, Ratio | str]:
    """For each cell what became of it, or why it was not timed."""
    found: dict[str, Ratio | str] = {}
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        of = {BEFORE: before, AFTER: after}
        workers = {name: Worker(unpacked(wheel, Path(folder, name))) for name, wheel in of.items()}
        try:
            for cell in bar.track(cells, description="cells"):
                paired = timed(workers, cell, seconds, builds)
                found[str(cell)] = paired if isinstance(paired, str) else paired.ratio(BEFORE, AFTER)
        finally:
            for worker in workers.values():
                worker.end()
    return found


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "wheels")
    parser.add_argument("before", type=present_file, help="a wheel")
    parser.add_argument("after", type=present_file, help="another wheel")
    parser.add_argument("--quick", action="store_true", help="the cells of `run --quick`")
    parser.add_argument("--only", metavar="TEXT", help="only cells whose names contain this")
    parser.add_argument("--builds", type=count, default=3, help="how often a cell is built (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=3, help="for each cell (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    cells = [
        cell
        for cell in (plan.quick() if options.quick else plan.full())
        if options.only is None or options.only in str(cell)
    ]
    if not cells:
        raise RefusalError(f"no cell has {options.only!r} in its name")
    found = compared(options.before, options.after, cells, options.seconds, options.builds)
    table = plain("cell", "before / after", "quartiles", title="above 1: the second wheel is faster")
    slower = []
    for cell, ratio in found.items():
        if isinstance(ratio, str):
            table.add_row(cell, "", ratio)
            continue
        if ratio.median < FLOOR:
            slower.append(cell)
        mark = " !" if ratio.median < FLOOR else ""
        table.add_row(cell, f"{ratio.median:.3f}{mark}", f"{ratio.q1:.3f} to {ratio.q3:.3f}")
    out = Console(highlight=False)
    show(out, table)
    out.print(f"{len(slower)} of {len(found)} cells below {FLOOR}")
    if options.into:
        told = {name: ratio if isinstance(ratio, str) else asdict(ratio) for name, ratio in found.items()}
        results.add(options.into, "wheels", told)
    return 1 if slower or any(isinstance(ratio, str) for ratio in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
