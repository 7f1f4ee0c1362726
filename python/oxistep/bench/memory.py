"""Does a step take memory beyond its states?

    oxistep bench memory

For every optimizer: parameters and gradients are made, then the largest resident size of the process during two steps
is taken, and what was there before and the states are subtracted. The rest, as a share of parameters, gradients and
states, must stay below one per cent for oxistep. torch's implementations stand beside it. Needs Linux, which keeps
account of the largest resident size and lets it be reset.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .._options import count
from . import results
from .implementations import IMPLEMENTATIONS, OURS, Task
from .optimizer_table import OPTIMIZERS, Optimizer
from .tables import plain, show
from .workloads import Workload

NAMES = [OURS, "for-loop", "fused"]
FLOOR = 0.01
TENSORS = 2  # large ones: what is below 32 MiB may come from memory that was had before
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes(field: str) -> int:
    """`VmRSS`, now, or `VmHWM`, the largest since the last reset."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} tells no {field}")


def extra_bytes(name: str, optimizer: Optimizer, elements: int) -> tuple[int, int]:
    """What two steps took at their peak beyond the states, and what the states take."""
    parameters = [torch.nn.Parameter(torch.ones(elements // TENSORS)) for _ in range(TENSORS)]
    for parameter in parameters:
        parameter.grad = torch.ones(elements // TENSORS)
    gc.collect()
    _RESET.write_text("5")
    before = resident_bytes("VmRSS")
    built = IMPLEMENTATIONS[name].build(optimizer, parameters)  # Adagrad makes its states here
    for _ in range(2):
        built.step()
    peak = resident_bytes("VmHWM")
    kept = [value for state in built.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    states = sum(value.numel() * value.element_size() for value in kept)
    return peak - before - states, states


def measure(name: str, optimizer: Optimizer, mebi: int) -> tuple[float, int] | None:
    """The extra as a share, and the states' bytes; None if there is no such implementation."""
    if IMPLEMENTATIONS[name].missing(Task(Workload([()]), optimizer, torch.float32)):
        return None
    extra_bytes(name, optimizer, 2**16)  # what is loaded at a first step is not the step's
    extra, states = extra_bytes(name, optimizer, mebi * 2**20)
    return extra / (2 * 4 * mebi * 2**20 + states), states


def row(title: str, optimizer: Optimizer, mebi: int) -> dict[str, Any]:
    measured = {name: measure(name, optimizer, mebi) for name in NAMES}
    ours = measured[OURS]
    return {
        "optimizer": title,
        "extra": {name: None if found is None else found[0] for name, found in measured.items()},
        "state_bytes": 0 if ours is None else ours[1],
        "met": ours is None or ours[0] <= FLOOR,
    }


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "memory")
    parser.add_argument("--mebi", type=count, default=32, help="Mi elements of the parameters (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if not _RESET.exists():
        print("skipped: this system keeps no account of the largest resident size that could be reset", file=sys.stderr)
        return 0
    elementwise = {title: o for title, o in OPTIMIZERS.items() if o.streams and title != "SparseAdam"}
    rows = [row(title, optimizer, options.mebi) for title, optimizer in elementwise.items()]

    table = plain("optimizer", *NAMES, title="memory beyond the states")
    for found in rows:
        shares = ("-" if share is None else f"{share:.1%}" for share in found["extra"].values())
        table.add_row(found["optimizer"] + ("" if found["met"] else " !"), *shares)
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "memory", rows)
    return 0 if all(found["met"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
