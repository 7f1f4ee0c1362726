"""What watching costs: GradientMonitor.update beside clip_grad_norm_, a measured step beside one that is not.

    oxistep bench watching

Contestants take turns, and are compared within each round. What they compute is compared with float64 before the
clock runs.
The floor: watching the gradients costs less than one `torch.nn.utils.clip_grad_norm_` on the same model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

import oxistep
from oxistep.diagnostics import GradientMonitor, UpdateMonitor

from .._options import new_file, positive
from .environment import environment
from .layouts import Shape
from .paired import Paired, Step, contestant, measure
from .tables import plain, show
from .workloads import WORKLOADS

SHAPES: dict[str, list[Shape]] = {
    "2,000 x 64": [(64,) for _ in range(2000)],
    "GPT-2 small": WORKLOADS["gpt2_small"].shapes,
    "one of 32 Mi": [(32 * 2**20,)],
}
MONITOR, CLIP, OWN_CLIP = "monitor.update", "torch clip_grad_norm_", "oxistep clip_grad_norm_"
PLAIN, WATCHED = "step", "watched step"
NOTHING_TO_CLIP = 1e9


def parameters(shapes: list[Shape]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def check_statistics(monitor: GradientMonitor, made: list[torch.nn.Parameter]) -> None:
    """Refuse to time what is wrong."""
    monitor.update()
    for row, p in list(zip(monitor.rows(), made, strict=True))[:200]:
        assert p.grad is not None
        grad = p.grad.double()
        expected = {
            "mean": grad.mean(),
            "variance": grad.var(correction=0),
            "norm": grad.norm(),
            "largest": grad.abs().max(),
        }
        for field, value in expected.items():
            if abs(row[field] - value.item()) > 1e-9 * max(abs(value.item()), 1e-3):
                raise SystemExit(f"{row['name']}: {field} is {row[field]}, expected {value.item()}")


def gradients(shapes: list[Shape], seconds: float) -> Paired:
    made = parameters(shapes)
    monitor = GradientMonitor(made)
    check_statistics(monitor, made)
    steps: dict[str, Step] = {
        MONITOR: monitor.update,
        CLIP: lambda: torch.nn.utils.clip_grad_norm_(made, NOTHING_TO_CLIP),
        OWN_CLIP: lambda: oxistep.clip_grad_norm_(made, NOTHING_TO_CLIP),
    }
    small = sum(p.numel() for p in made) < 2**20
    return measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=small)


def updates(shapes: list[Shape], seconds: float) -> Paired:
    """Adam, with and without a monitor, each on parameters of its own that start alike and must end alike."""
    plain, watched = parameters(shapes), parameters(shapes)
    optimizers = [oxistep.Adam(made, lr=1e-4) for made in (plain, watched)]
    monitor = UpdateMonitor(optimizers[1])
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    if not all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)):
        raise SystemExit("a watched step gave other parameters")
    if not all(row["update"] > 0 for row in monitor.rows()):
        raise SystemExit("a parameter was not measured")
    steps = {PLAIN: optimizers[0].step, WATCHED: optimizers[1].step}
    small = sum(p.numel() for p in plain) < 2**20
    return measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=small)


def row(workload: str, ours: str, other: str, paired: Paired) -> dict[str, Any]:
    return {
        "workload": workload,
        "ours": ours,
        "other": other,
        "ours_ns": paired.median(ours),
        "other_ns": paired.median(other),
        **asdict(paired.ratio(other, ours)),
    }


def main(arguments: list[str], program: str) -> int:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=positive, default=5.0, help="for each comparison (default: 5)")
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    rows = []
    for workload, shapes in SHAPES.items():
        paired = gradients(shapes, options.seconds)
        rows += [row(workload, MONITOR, other, paired) for other in (CLIP, OWN_CLIP)]
        rows.append(row(workload, WATCHED, PLAIN, updates(shapes, options.seconds)))
    table = plain("workload", "ours", "other", "ms", "other's ms", "ratio", "quartiles", left=3)
    for found in rows:
        table.add_row(
            found["workload"],
            found["ours"],
            found["other"],
            f"{found['ours_ns'] / 1e6:.3f}",
            f"{found['other_ns'] / 1e6:.3f}",
            f"{found['median']:.2f}",
            f"{found['q1']:.2f} to {found['q3']:.2f}",
        )
    show(Console(highlight=False), table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"environment": environment(), "watching": rows}, indent=1))
    missed = [found["workload"] for found in rows if found["other"] == CLIP and found["median"] < 1]
    for workload in missed:
        print(f"{workload}: watching the gradients costs more than torch's clip_grad_norm_")
    return 1 if missed else 0
