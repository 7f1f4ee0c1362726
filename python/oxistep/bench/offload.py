"""Inside DeepSpeed: ZeRO 1 with the optimizer's states on the CPU, oxistep beside DeepSpeedCPUAdam.

    oxistep bench offload

One process trains a model of two matrices with each of them in turn. `engine.step()` is timed, which is what DeepSpeed
does around the optimizer's step and that step; the gradients before it are not. Needs DeepSpeed (`make bench-offload`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
from dataclasses import asdict
from itertools import count
from typing import Any

import torch
from rich.console import Console

import oxistep
import oxistep.optim

from .._options import positive
from ..cli._terminal import RefusalError
from . import results
from .implementations import OURS
from .paired import Paired
from .tables import plain, show
from .wording import duration

PEER = "DeepSpeedCPUAdam"
FLOOR = 1.1
WIDTH = 1448  # two matrices of 4 Mi elements together
WARM_UP, FEWEST = 3, 8
CONFIGURATION = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
}


def engines() -> dict[str, Any]:
    deepspeed: Any = importlib.import_module("deepspeed")
    peer: Any = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    made = {}
    for name, cls in ((OURS, oxistep.optim.AdamW), (PEER, peer)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in "ab"))
        optimizer = cls(model.parameters(), lr=1e-3)
        made[name], *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(CONFIGURATION))
    return made


def timed(seconds: float) -> Paired:
    made = engines()
    x = torch.randn(1, WIDTH)
    nanoseconds: dict[str, list[float]] = {name: [] for name in made}
    deadline = time.perf_counter() + seconds
    for turn in count():
        if turn >= WARM_UP + FEWEST and time.perf_counter() > deadline:
            break
        for name in list(made)[:: 1 if turn % 2 else -1]:
            engine = made[name]
            engine.backward(engine(x).square().mean())
            start = time.perf_counter_ns()
            engine.step()
            if turn >= WARM_UP:
                nanoseconds[name].append(time.perf_counter_ns() - start)
        if turn == WARM_UP:  # before anything counts: they have come to the same
            ours, theirs = (list(engine.module.parameters()) for engine in made.values())
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return Paired(nanoseconds, dict.fromkeys(made, 1))


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "offload")
    parser.add_argument(
        "--seconds", type=positive, default=20, help="for each number of threads (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if importlib.util.find_spec("deepspeed") is None:
        raise RefusalError("this needs deepspeed, not installed here: make bench-offload has an environment for it")
    # one process, as DeepSpeed's launcher would start it
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    operations: Any = importlib.import_module("deepspeed.ops").__compatible_ops__
    operations["deepspeed_shm_comm"] = False  # compiled for minutes, for nobody to talk to
    store = torch._C._distributed_c10d.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    found: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    for threads in sorted({1, min(2, os.cpu_count() or 1)}):
        torch.set_num_threads(threads)
        paired = timed(options.seconds)
        ratio = paired.ratio(PEER, OURS)
        found.append(
            {
                "threads": threads,
                "medians_ns": {name: paired.median(name) for name in paired.nanoseconds},
                "ratio": {**asdict(ratio), "floor": FLOOR, "met": ratio.median >= FLOOR},
            }
        )
    torch.set_num_threads(before)
    torch.distributed.destroy_process_group()
    table = plain("threads", OURS, PEER, f"{PEER} / {OURS}", "floor", left=0)
    for row in found:
        of = row["ratio"]
        table.add_row(
            str(row["threads"]) + ("" if of["met"] else " !"),
            *(duration(median) for median in row["medians_ns"].values()),
            f"{of['median']:.2f} ({of['q1']:.2f} to {of['q3']:.2f})",
            f"{FLOOR:g}",
        )
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "offload", found)
    return 0 if all(row["ratio"]["met"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
