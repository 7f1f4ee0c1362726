"""Steps on DTensors: two processes under FSDP2, each with a thread of its own.

    oxistep bench distributed

Each process holds its shards of every parameter and steps on them with AdamW: oxistep and torch's paths take turns. The
figures are the first process's, while the other one does the same. Nothing is communicated in these steps. Results are
compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed
from torch.multiprocessing.spawn import spawn

import oxistep.optim

from .._options import positive
from . import results
from .implementations import OURS
from .paired import contestant, measure
from .probe import NAME as PROBE
from .probe import native_probe
from .tables import plain, show
from .wording import duration

PROCESSES = 2
# torch's paths, by the flags that ask for them.
PATHS = {
    "for-loop": {"foreach": False, "fused": False},
    "fused": {"fused": True},
}


@dataclass(frozen=True)
class Cell:
    title: str
    shapes: list[tuple[int, ...]]
    floors: dict[str, float]
    """By how much each of torch's paths is to be slower."""
    lr: Callable[[], Any] = lambda: 1e-3
    dtype: torch.dtype = torch.float32
    left: bool = False
    """Whether ours leaves the step to torch: then each of torch's paths is compared with ours under the same flags."""

    def ours(self, path: str) -> str:
        """The name of what is compared with a path of torch's."""
        return f"{OURS}, {path}" if self.left else OURS


SMALL = [(25, 25), (25,)]
CELLS = [
    Cell("26 small parameters", SMALL * 13, {"fused": 3.0, "for-loop": 10.0}),
    Cell("98 small parameters", SMALL * 49, {"fused": 3.0, "for-loop": 10.0}),
    Cell("26 of 20 k elements in each process", [(200, 200)] * 26, {"fused": 2.2, "for-loop": 10.0}),
    Cell("one of 32 Mi elements in each process", [(PROCESSES * 4096, 8192)], {"fused": 0.97}),
    Cell(
        "26 small that are left to torch: float64, lr a float32 tensor",
        SMALL * 13,
        {"for-loop": 0.95, "fused": 0.95},  # torch refuses foreach here
        lr=lambda: torch.tensor(1e-3),
        dtype=torch.float64,
        left=True,
    ),
]


def sharded(cell: Cell) -> list[Any]:
    """The parameters of a model under FSDP2, with gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model = torch.nn.Module()
    for i, shape in enumerate(cell.shapes):
        model.register_parameter(f"p{i}", torch.nn.Parameter(torch.randn(shape, dtype=cell.dtype)))
    fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))
    params: list[Any] = list(model.parameters())
    for p in params:
        p.grad = DTensor(torch.randn_like(p._local_tensor), p._spec, requires_grad=False)
    return params


def optimizers(cell: Cell) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path in cell.floors:
        if cell.ours(path) not in made:
            flags = PATHS[path] if cell.left else {}
            made[cell.ours(path)] = oxistep.optim.AdamW(sharded(cell), lr=cell.lr(), **flags)  # type: ignore[arg-type]
        made[path] = torch.optim.AdamW(sharded(cell), lr=cell.lr(), **PATHS[path])  # type: ignore[arg-type]
    return made


def check(made: dict[str, Any]) -> None:
    """After three steps all have come to the same parameters."""
    found = {}
    for name, optimizer in made.items():
        for _ in range(3):
            optimizer.step()
        found[name] = [p._local_tensor for group in optimizer.param_groups for p in group["params"]]
    expected = next(reversed(found.values()))
    for parameters in found.values():
        torch.testing.assert_close(parameters, expected)


def timed(cell: Cell, seconds: float) -> dict[str, Any]:
    """The row of a cell, in one of the processes."""
    made = optimizers(cell)
    check(made)
    steps = {name: optimizer.step for name, optimizer in made.items()}
    p = next(iter(made.values())).param_groups[0]["params"][0]
    probe = native_probe(4 * p._local_tensor.numel(), 2) if len(cell.shapes) == 1 else None
    if probe is not None:
        steps[PROBE] = probe[0]
    distributed.barrier()
    paired = measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=False)
    distributed.barrier()
    ratios = {}
    for path, floor in cell.floors.items():
        ratio = paired.ratio(path, cell.ours(path))
        ratios[path] = {**asdict(ratio), "floor": floor, "met": ratio.median >= floor}
    return {
        "cell": cell.title,
        "native": all(row.path == "native" for row in oxistep.explain(next(iter(made.values())))),
        "medians_ns": {name: paired.median(name) for name in steps},
        "ratios": ratios,
    }


def process(rank: int, folder: str, titles: list[str], seconds: float) -> None:
    torch.set_num_threads(1)
    store = torch._C._distributed_c10d.FileStore(str(Path(folder) / "store"), PROCESSES)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        rows = [timed(cell, seconds) for cell in CELLS if cell.title in titles]
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        torch.save(rows, Path(folder) / "rows")


def rows(titles: list[str], seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        run: Callable[..., Any] = partial(spawn, process, nprocs=PROCESSES)
        run(args=(folder, titles, seconds))
        found: list[dict[str, Any]] = torch.load(Path(folder) / "rows")
    return found


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "distributed")
    titles = [cell.title for cell in CELLS]
    parser.add_argument("--cell", action="append", choices=titles, help="only this (repeatable)")
    parser.add_argument("--seconds", type=positive, default=10, help="for each cell (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    found = rows(options.cell or [cell.title for cell in CELLS], options.seconds)
    table = plain("parameters", "path", "oxistep", "torch", "torch / oxistep", "floor", left=2)
    for row in found:
        for path, ratio in row["ratios"].items():
            medians = row["medians_ns"]
            table.add_row(
                row["cell"],
                path + ("" if ratio["met"] else " !"),
                duration(medians.get(OURS) or medians[f"{OURS}, {path}"]),
                duration(medians[path]),
                f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})",
                f"{ratio['floor']:g}",
            )
        if PROBE in row["medians_ns"]:
            table.add_row(row["cell"], PROBE, "", duration(row["medians_ns"][PROBE]), "", "")
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "distributed", found)
    return 0 if all(ratio["met"] for row in found for ratio in row["ratios"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
