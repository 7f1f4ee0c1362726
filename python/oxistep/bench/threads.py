"""Does a step gain from threads as much as torch's fused?

    oxistep bench threads

Adam on one large tensor, with one thread, two, and so on, oxistep and torch's fused taking turns; the native probe
shows what memory gives. The figure is the ratio to fused within a round: where it falls with more threads, oxistep
gains less from them.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from .._options import count, positive
from . import results
from .implementations import IMPLEMENTATIONS, OURS
from .optimizer_table import OPTIMIZERS
from .paired import Paired, contestant, measure
from .probe import NAME as PROBE
from .probe import native_probe
from .tables import plain, show
from .tensors import fill_normal, fill_uniform

PEER = "fused"
FLOOR = 0.97  # as good as fused, but for the noise


def counts(largest: int) -> list[int]:
    """One, two, four, and so on, and the largest."""
    doubled = [2**k for k in range(largest.bit_length()) if 2**k < largest]
    return [*doubled, largest]


def rows(timed: dict[int, Paired]) -> list[dict[str, Any]]:
    """Speed-ups over one thread (the least timed), and the ratio to fused relative to its value there."""
    least = timed[min(timed)]
    alone = least.ratio(PEER, OURS).median
    found = []
    for n, paired in timed.items():
        ratio = paired.ratio(PEER, OURS)
        found.append(
            {
                "threads": n,
                "speedup": {name: least.median(name) / paired.median(name) for name in paired.nanoseconds},
                "ratio": asdict(ratio),
                "scaling": ratio.median / alone,
                "met": ratio.median / alone >= FLOOR,
            }
        )
    return found


def timed(elements: int, largest: int, seconds: float) -> dict[int, Paired]:
    parameter = torch.nn.Parameter(fill_normal(torch.empty(elements)))
    parameter.grad = fill_uniform(torch.empty(elements))
    optimizer = OPTIMIZERS["Adam"]
    steps = {name: IMPLEMENTATIONS[name].build(optimizer, [parameter]).step for name in (OURS, PEER)}
    if made := native_probe(4 * elements, optimizer.states):
        steps[PROBE] = made[0]
    before, found = torch.get_num_threads(), {}
    try:
        for n in counts(largest):
            torch.set_num_threads(n)
            found[n] = measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=False)
    finally:
        torch.set_num_threads(before)
    return found


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "threads")
    parser.add_argument("--most", type=count, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    parser.add_argument("--mebi", type=count, default=64, help="Mi elements of the parameter (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=10, help="for each number of threads (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    found = rows(timed(options.mebi * 2**20, options.most, options.seconds))
    headings = ("threads", *found[0]["speedup"], "fused / oxistep", "of one thread's")
    table = plain(*headings, left=0, title="times as fast as one thread")
    for row in found:
        of = row["ratio"]
        table.add_row(
            str(row["threads"]) + ("" if row["met"] else " !"),
            *(f"{speedup:.2f}" for speedup in row["speedup"].values()),
            f"{of['median']:.2f} ({of['q1']:.2f} to {of['q3']:.2f})",
            f"{row['scaling']:.2f}",
        )
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "threads", found)
    return 0 if all(row["met"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
