"""What the step is of a whole iteration: a small GPT and an MLP trained on the CPU.

    oxistep bench end-to-end

Each model is trained with torch's default AdamW, its fused one, and oxistep's, from the same start on the same data;
the three take turns, an iteration each. Losses must agree up to rounding, or nothing was worth timing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import torch
from rich.console import Console

from .._options import positive
from . import results
from .implementations import IMPLEMENTATIONS, OURS
from .models import MODELS, Model
from .optimizer_table import OPTIMIZERS
from .paired import Paired
from .tables import plain, show
from .wording import duration

NAMES = {"torch default": "for-loop", "torch fused": "fused", OURS: OURS}
WARM_UP = 2  # iterations that are not timed
MIN_ITERATIONS, MAX_ITERATIONS = 5, 500
# Relative, of the loss: rounding differs between torch's default and fused, and grows along the way.
LOSS_TOLERANCE = 1e-3


@dataclass
class Training:
    """One model with one optimizer."""

    model: Model
    optimizer: Any
    losses: list[float] = field(default_factory=list)
    rest_ns: list[float] = field(default_factory=list)
    step_ns: list[float] = field(default_factory=list)

    def iterate(self, seed: int) -> None:
        batch = self.model.batch(torch.Generator().manual_seed(seed))
        start = time.perf_counter_ns()
        self.optimizer.zero_grad()
        loss = self.model.loss(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        middle = time.perf_counter_ns()
        self.optimizer.step()
        end = time.perf_counter_ns()
        self.losses.append(loss.item())
        if len(self.losses) > WARM_UP:
            self.rest_ns.append(middle - start)
            self.step_ns.append(end - middle)


def train(make: Callable[[], Model], seconds: float) -> dict[str, Training]:
    trainings = {}
    for name, implementation in NAMES.items():
        torch.manual_seed(0)
        model = make()
        parameters = list(model.module.parameters())
        trainings[name] = Training(model, IMPLEMENTATIONS[implementation].build(OPTIMIZERS["AdamW"], parameters))
    names = list(trainings)
    deadline = time.perf_counter() + seconds
    for turn in count():
        if turn >= MAX_ITERATIONS or (turn >= WARM_UP + MIN_ITERATIONS and time.perf_counter() > deadline):
            return trainings
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            trainings[name].iterate(seed=turn)
    raise AssertionError("the loop above returns")


def summary(title: str, trainings: dict[str, Training]) -> dict[str, Any]:
    """Medians, ratios of iterations within a round, and how far losses lie from those of torch's default."""
    iterations = {n: [a + b for a, b in zip(t.rest_ns, t.step_ns, strict=True)] for n, t in trainings.items()}
    whole, rest = Paired(iterations, {}), Paired({n: t.rest_ns for n, t in trainings.items()}, {})
    steps = Paired({n: t.step_ns for n, t in trainings.items()}, {})
    expected = torch.tensor(trainings["torch default"].losses)
    rows: dict[str, dict[str, Any]] = {}
    for name, training in trainings.items():
        difference = (torch.tensor(training.losses) - expected).abs() / expected.abs()
        rows[name] = {
            "iteration_ns": whole.median(name),
            "rest_ns": rest.median(name),
            "step_ns": steps.median(name),
            "step_share": steps.median(name) / (steps.median(name) + rest.median(name)),
            "ratio": asdict(whole.ratio(name, OURS)),
            "step_ratio": asdict(steps.ratio(name, OURS)),
            "loss_difference": float(difference.max()),
        }
    module = trainings[OURS].model.module
    return {
        "model": title,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "tensors": len(list(module.parameters())),
        "iterations": len(expected) - WARM_UP,
        "losses": [trainings[OURS].losses[0], trainings[OURS].losses[-1]],
        "equal": all(row["loss_difference"] <= LOSS_TOLERANCE for row in rows.values()),
        "rows": rows,
    }


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "end_to_end")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this (repeatable)")
    parser.add_argument("--seconds", type=positive, default=25, help="for each model (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    chosen = options.model or list(MODELS)
    found = [summary(MODELS[name].title, train(MODELS[name], options.seconds)) for name in chosen]
    columns = ("iteration", "step", "share of the step", "iteration / ours", "step / ours", "losses")
    table = plain("model", "optimizer", *columns, left=2)
    for model in found:
        for name, row in model["rows"].items():
            table.add_row(
                model["model"],
                name,
                duration(row["iteration_ns"]),
                duration(row["step_ns"]),
                f"{row['step_share']:.1%}",
                f"{row['ratio']['median']:.2f}",
                f"{row['step_ratio']['median']:.2f}",
                f"differ by {row['loss_difference']:.0e}",
            )
    show(Console(highlight=False), table)
    if options.into:
        results.add(options.into, "end_to_end", found)
    return 0 if all(model["equal"] for model in found) else 1


if __name__ == "__main__":
    sys.exit(main())
