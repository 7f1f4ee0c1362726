"""Gradient release: parameters stepped in backward, beside backward followed by a step, in time and peak memory.

    oxistep bench release

An MLP of 12 layers and 25 million parameters, and 192 LoRA matrices, under AdamW. Contestants take turns, an iteration
each, and are compared within each round: oxistep's `step_in_backward`, its ordinary loop, and torch's pattern of one
optimizer for each parameter in `register_post_accumulate_grad_hook`. Before the clock runs release and ordinary loop
must have come to the same bits. Peak memory is that of a process of its own for each loop: the largest resident size
during three iterations, beyond parameters and states. Needs Linux, which keeps account of it. glibc is told to give
blocks of 128 KiB and more back when they are freed (as it always does with those of more than 32 MiB): else it would be
measured what it holds on to.

The floors: the MLP's iteration takes no longer than in the ordinary loop, and its peak lies lower by at least 0.8 of
the gradients; the LoRA matrices' is at least 3 times as fast as torch's pattern.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from torch import nn

import oxistep

from .._options import count, positive
from . import results
from .beside import spread
from .memory import _RESET, resident_bytes
from .paired import Step, contestant, measure
from .tables import plain, show
from .wording import duration
from .workloads import WORKLOADS

RELEASE, ORDINARY, PATTERN = "step in backward", "backward, then step", "torch, an optimizer for each parameter"
LAYERS, BATCH = 12, 64
SAVED, TIME, LORA = 0.8, 1.0, 3.0
"""The floors."""

_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

Loss = Callable[[], torch.Tensor]
Task = tuple[list[nn.Parameter], Loss]


def mlp(width: int) -> Task:
    """The parameters of an MLP, and its loss on one batch."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model, batch = nn.Sequential(*layers), torch.randn(BATCH, width)
    return list(model.parameters()), lambda: model(batch).square().mean()


def lora() -> Task:
    """LoRA's matrices, under a loss that costs next to nothing."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape) * 0.01) for shape in WORKLOADS["lora"].shapes]
    return parameters, lambda: torch.stack([p.sum() for p in parameters]).sum()


def released(task: Task) -> Step:
    parameters, loss = task
    optimizer = oxistep.AdamW(parameters, lr=1e-4)
    oxistep.step_in_backward(optimizer)

    def iterate() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return iterate


def ordinary(task: Task) -> Step:
    parameters, loss = task
    optimizer = oxistep.AdamW(parameters, lr=1e-4)

    def iterate() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return iterate


def pattern(task: Task) -> Step:
    """As torch's tutorial "How to save memory by fusing the optimizer step into the backward pass" has it."""
    parameters, loss = task
    optimizers = {p: torch.optim.AdamW([p], lr=1e-4) for p in parameters}

    def step(p: nn.Parameter) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in parameters:
        p.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    return lambda: loss().backward()  # type: ignore[no-untyped-call]


LOOPS: dict[str, Callable[[Task], Step]] = {RELEASE: released, ORDINARY: ordinary, PATTERN: pattern}


def check(make: Callable[[], Task]) -> None:
    """Refuses to time what is wrong."""
    tasks = [make(), make()]
    for loop, task in zip((released, ordinary), tasks, strict=True):
        iterate = loop(task)
        for _ in range(3):
            iterate()
    if not all(map(torch.equal, tasks[0][0], tasks[1][0])):
        raise SystemExit("step_in_backward came to other parameters than the ordinary loop")


def timed(workload: str, make: Callable[[], Task], seconds: float) -> list[dict[str, Any]]:
    check(make)
    paired = measure({name: contestant(loop(make())) for name, loop in LOOPS.items()}, seconds, lead_in=False)
    return [
        {"workload": workload, "loop": name, "ns": paired.median(name), **asdict(paired.ratio(name, RELEASE))}
        for name in LOOPS
    ]


def peak(name: str, width: int) -> int:
    """Bytes at the peak of three iterations, beyond what is there between them. For a fresh process."""
    iterate = LOOPS[name](mlp(width))
    iterate()  # makes the states
    gc.collect()
    _RESET.write_text("5")
    before = resident_bytes("VmRSS")
    for _ in range(3):
        iterate()
    return resident_bytes("VmHWM") - before


def peaks(width: int) -> dict[str, int]:
    """Of each loop, in a process of its own: memory that one has freed would be there for the next."""
    found = {}
    for name in LOOPS:
        command = [sys.executable, "-m", "oxistep.bench.release", "--peak-of", name, "--width", str(width)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **_GIVE_BACK})
        found[name] = int(done.stdout)
    return found


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "release")
    parser.add_argument("--seconds", type=positive, default=20, help="for each workload (default: %(default)s)")
    parser.add_argument("--width", type=count, default=1440, help="of the MLP's layers (default: %(default)s)")
    parser.add_argument("--peak-of", choices=LOOPS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if options.peak_of:
        print(peak(options.peak_of, options.width))
        return 0
    gradients = 4 * sum(p.numel() for p in mlp(options.width)[0])
    rows = timed("MLP", lambda: mlp(options.width), options.seconds) + timed("LoRA", lora, options.seconds)
    high = peaks(options.width) if _RESET.exists() else None
    table = plain("workload", "loop", "iteration", "iteration / ours", "peak, MiB", left=2)
    for row in rows:
        mebi = "-" if high is None or row["workload"] != "MLP" else f"{high[row['loop']] / 2**20:.0f}"
        table.add_row(row["workload"], row["loop"], duration(row["ns"]), spread(row), mebi)
    show(Console(highlight=False), table)
    ratio = {(row["workload"], row["loop"]): row["median"] for row in rows}
    met = {
        f"MLP, time against the ordinary loop: {TIME} x": ratio["MLP", ORDINARY] >= TIME,
        f"LoRA, time against torch's pattern: {LORA} x": ratio["LoRA", PATTERN] >= LORA,
    }
    if high is not None:
        saved = (high[ORDINARY] - high[RELEASE]) / gradients
        print(f"peak lower by {saved:.2f} of the gradients")
        met[f"MLP, peak lower by {SAVED} of the gradients"] = saved >= SAVED
    for floor, is_met in met.items():
        print(f"{'met' if is_met else 'missed'}: {floor}")
    if options.into:
        results.add(options.into, "release", {"rows": rows, "peaks": high, "gradient_bytes": gradients})
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
