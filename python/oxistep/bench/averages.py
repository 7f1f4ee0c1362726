"""Averages of the weights in the step, against the step followed by a separate `lerp_` of torch.

    oxistep bench averages

AdamW on one float32 tensor, with two threads. Contestants take turns and are compared within each round: `ema=` of
oxistep, and the faster of oxistep's and torch's fused step followed by `average.lerp_(p, 1 - decay)`. Before the clock
runs, `ema=` and the separate pass must have come to the same bits. The floor: 1.25 against our own step and the
separate pass, at 64 Mi elements.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

import oxistep

from .._options import positive
from . import results
from .beside import spread
from .paired import Step, contestant, measure
from .tables import plain, show
from .wording import duration

DECAY = 0.999
OURS, ALONE, SEPARATE, TORCH = "ema=", "no average", "step, then lerp_", "torch fused, then lerp_"
FLOOR = 1.25
SIZES = {"1 Mi": 1 << 20, "64 Mi": 1 << 26}


def parameter(n: int) -> torch.Tensor:
    torch.manual_seed(0)
    p = (torch.randn(n) * 0.02).requires_grad_()
    p.grad = torch.randn(n) * 0.01
    return p


def averaged(p: torch.Tensor) -> Step:
    return oxistep.AdamW([p], lr=1e-4, ema=DECAY).step


def separate(p: torch.Tensor, make: Callable[..., torch.optim.Optimizer], **settings: Any) -> Step:
    optimizer, average = make([p], lr=1e-4, **settings), p.detach().clone()

    def iterate() -> None:
        optimizer.step()
        average.lerp_(p.detach(), 1 - DECAY)

    return iterate


def check() -> None:
    """Refuses to time what is wrong."""
    p, q = parameter(100_003), parameter(100_003)
    ours, plain_step, average = oxistep.AdamW([p], ema=DECAY), oxistep.AdamW([q]), q.detach().clone()
    for _ in range(3):
        ours.step()
        plain_step.step()
        average.lerp_(q.detach(), 1 - DECAY)
    if not torch.equal(next(iter(ours.ema_state_dict().values())), average) or not torch.equal(p, q):
        raise SystemExit("ema= came to other averages than a separate pass")


def timed(size: str, seconds: float) -> list[dict[str, Any]]:
    n = SIZES[size]
    steps: dict[str, Step] = {
        OURS: averaged(parameter(n)),
        ALONE: oxistep.AdamW([parameter(n)], lr=1e-4).step,
        SEPARATE: separate(parameter(n), oxistep.AdamW),
        TORCH: separate(parameter(n), torch.optim.AdamW, fused=True),
    }
    paired = measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=False)
    return [
        {"size": size, "loop": name, "ns": paired.median(name), **asdict(paired.ratio(name, OURS))} for name in steps
    ]


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "averages")
    parser.add_argument("--seconds", type=positive, default=30, help="for each size (default: %(default)s)")
    parser.add_argument("--only", choices=SIZES, help="one size")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    check()
    sizes = [options.only] if options.only else list(SIZES)
    rows = [row for size in sizes for row in timed(size, options.seconds)]
    table = plain("elements", "loop", "step", "step / ours", left=2)
    for row in rows:
        table.add_row(row["size"], row["loop"], duration(row["ns"]), spread(row))
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "averages", {"rows": rows})
    floors = [row["median"] for row in rows if (row["size"], row["loop"]) == ("64 Mi", SEPARATE)]
    for found in floors:
        print(f"{'met' if found >= FLOOR else 'missed'}: 64 Mi, against our own step and the separate pass: {FLOOR} x")
    return 0 if all(found >= FLOOR for found in floors) else 1


if __name__ == "__main__":
    sys.exit(main())
