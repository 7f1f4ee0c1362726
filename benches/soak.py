"""A long run: does memory stay where it is, and do the results? Nothing here is timed.

small    very many steps on a few small parameters, settings changed and gradients replaced on the way
large    many steps on parameters large enough for all threads
made     optimizers made, stepped and dropped, of every native class
numpy    the same on arrays

After a warm-up the resident memory of the process is looked at from time to time: it may not grow by more than
--tolerance MiB. At the end the small run is compared, to the bit, with one that was saved and resumed half-way.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import oxistep.numpy
import oxistep.optim

# As the tests set them, so that every state is used.
NATIVE = {
    "SGD": {"lr": 0.01, "momentum": 0.9},
    "Adagrad": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 1e-2},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "Adadelta": {"lr": 1.0},
    "Adamax": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "ASGD": {"lr": 0.01},
    "Rprop": {"lr": 0.01},
    "Adafactor": {"lr": 0.01},
}


@dataclass
class Part:
    """One kind of load: `run(n)` yields after each of its n rounds."""

    name: str
    rounds: int
    run: Callable[[int], Iterator[None]]


def resident() -> float:
    """MiB of memory that the process holds now; -1 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return -1.0
    return pages * 4096 / 2**20


def small(rounds: int) -> Iterator[None]:
    """A round is one step."""
    params = [torch.zeros(n, requires_grad=True) for n in (2, 30, 300)]
    optimizer = oxistep.optim.Adam([{"params": params[:2]}, {"params": params[2:]}], lr=1e-3, max_grad_norm=None)
    gradients = [torch.full_like(p, 0.1) for p in params]
    for k in range(rounds):
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        if k % 7 == 0:
            params[1].grad = None  # not like the last step
        if k % 11 == 0:
            params[0].grad = gradients[0].clone()
        if k % 1000 == 0:
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + k // 1000 % 10)
        if k % 5000 == 0:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        yield


def large(rounds: int) -> Iterator[None]:
    """A round is one step on two million elements."""
    params = [torch.zeros(n, requires_grad=True) for n in (1_500_000, 500_000, 10)]
    optimizer = oxistep.optim.AdamW(params, lr=1e-3)
    for k in range(rounds):
        for p in params:
            p.grad = torch.full_like(p, 0.1 * (k % 3 - 1))
        optimizer.step()
        yield


def made(rounds: int) -> Iterator[None]:
    """A round is one optimizer, made, stepped three times, dropped; every hundredth in a cycle with its parameter."""
    names = list(NATIVE)
    for k in range(rounds):
        name = names[k % len(names)]
        params = [torch.zeros(shape, requires_grad=True) for shape in ((40, 30), (5,))]
        optimizer = getattr(oxistep.optim, name)(params, **NATIVE[name])
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        if k % 100 == 0:
            params[0].owner = optimizer  # type: ignore[attr-defined]
        yield


def numpy(rounds: int) -> Iterator[None]:
    """A round is one step; every hundredth with new arrays."""
    for k in range(rounds):
        if k % 100 == 0:
            params = [np.zeros(300, np.float32), np.zeros((4, 5), np.float64)]
            optimizer = oxistep.numpy.Adam(params, lr=1e-3)
        optimizer.step([np.ones_like(p) for p in params])
        yield


def parts(scale: float) -> list[Part]:
    """The whole load, or a part of it."""
    return [
        Part("small steps", int(1_000_000 * scale), small),
        Part("large steps", int(20_000 * scale), large),
        Part("optimizers made and dropped", int(20_000 * scale), made),
        Part("steps of NumPy's", int(200_000 * scale), numpy),
    ]


def soak(part: Part, looks: int, on_round: Callable[[int], None] = lambda _: None) -> list[float]:
    """Runs a part; the resident memory at some moments, the first after a quarter of the rounds."""
    first = part.rounds // 4
    every = max((part.rounds - first) // looks, 1)
    seen = []
    for k, _ in enumerate(part.run(part.rounds)):
        if k % 256 == 0:
            on_round(k)
        if k >= first and (k - first) % every == 0:
            gc.collect()
            seen.append(resident())
    return seen


def same_when_resumed(steps: int) -> bool:
    """Whether a run that is saved and resumed half-way ends in the same bits."""

    def run(interrupted: bool) -> torch.Tensor:
        p = torch.linspace(-1, 1, 1000).requires_grad_()
        optimizer = oxistep.optim.Adam([p], lr=1e-3)
        for k in range(steps):
            if interrupted and k == steps // 2:
                saved = optimizer.state_dict()
                p = p.detach().clone().requires_grad_()
                optimizer = oxistep.optim.Adam([p], lr=1e-3)
                optimizer.load_state_dict(saved)
            p.grad = p.detach() * 0.5 + 0.01 * (k % 5)
            optimizer.step()
        return p.detach()

    return torch.equal(run(False), run(True))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the load (default: 1, some ten minutes)")
    parser.add_argument("--tolerance", type=float, default=8.0, help="MiB that memory may grow by (default: 8)")
    parser.add_argument(
        "--looks", type=int, default=40, help="how often memory is looked at in each part (default: 40)"
    )
    options = parser.parse_args(arguments)

    console, grown = Console(), False
    table = Table("part", "rounds", "resident at first", "most", "at last", "growth", title="Memory (MiB)")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for part in parts(options.scale):
            task = progress.add_task(part.name, total=part.rounds)
            seen = soak(part, options.looks, lambda k, task=task: progress.update(task, completed=k))  # type: ignore[misc]
            progress.update(task, completed=part.rounds)
            growth = seen[-1] - seen[0]
            grown |= growth > options.tolerance
            numbers = [f"{x:.1f}" for x in (seen[0], max(seen), seen[-1], growth)]
            table.add_row(part.name, f"{part.rounds:,}", *numbers)
    console.print(table)
    same = same_when_resumed(int(20_000 * options.scale) + 2)
    console.print("a run that was resumed half-way ended", "in the same bits" if same else "[red]in other bits[/red]")
    console.print(
        f"[red]memory grew by more than {options.tolerance} MiB[/red]" if grown else "memory stayed where it was"
    )
    return 0 if same and not grown else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
