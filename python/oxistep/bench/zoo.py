"""The optimizers of oxistep.zoo beside the packages that people take them from.

    oxistep bench zoo

Contestants take turns, and are compared within each round: ours, the package's for-loop and its foreach, where it has
both. Three steps of each are compared before the clock runs; where a package comes to something else (torch's float32
norm of 64 Mi elements is half a percent too small), ours must be what the package comes to in float64. The ceiling is
the native probe: a loop over as many arrays, with next to no arithmetic, brought to the bytes that the optimizer reads
and writes in all its passes.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from rich.console import Console

from oxistep import zoo
from oxistep.rules._listing import Listing
from oxistep.rules._optimizer import source_of

from .._options import count, positive
from . import results
from .beside import show_beside, show_floors
from .originals import ORIGINALS, WAYS
from .paired import Step, contestant, measure
from .probe import native_probe
from .rules import PROBE, Parameters, parameters
from .workloads import gpt2_small

OURS, WARM_UP = "oxistep", 3
MAX_STATES = 3  # of the probe; its bytes are scaled
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "two scalars": [(), ()],
    "2,000 x 64": [(64,)] * 2000,
    "GPT-2 small": gpt2_small(),
}

FEW = ("LARS", "Lion", "NovoGrad", "SGDScheduleFree", "SGDW", "SignSGD", "Tiger")
"""Few passes in torch too."""
SEVERAL = ("LAMB", "LARS", "MARS", "NovoGrad", "Prodigy", "StableAdamW")
"""Several passes in ours."""


def floor(workload: str, name: str, against: str) -> float | None:
    """What is asked: the time of the other over ours."""
    if against == PROBE:
        return 0.8 if name in SEVERAL else 0.85
    return {"two scalars": 5.0, "2,000 x 64": 15.0}.get(workload, 2.0 if name in FEW else 4.0)


def streams(name: str, optimizer: Any) -> tuple[int, int]:
    """Of a step on its way: how many state arrays there are, and the arrays read and written in all passes."""
    source = source_of(type(optimizer))
    group = {key: value for key, value in optimizer.param_groups[0].items() if key in source.hyperparameters}
    program = Listing.of(source, {**group, "step": 100.0})[-1]
    states = sum(state.kind.has_elements for state in program.states.values())
    return states, program.bytes(1)


def contestants(name: str, shapes: list[tuple[int, ...]]) -> tuple[dict[str, Step], Any]:
    """A step of each, and our optimizer; they start alike, and came to the same after some steps, as `check` says."""
    original = ORIGINALS[name]
    made: dict[str, tuple[Parameters, Any]] = {}

    def made_of(make: Callable[..., Any], of_package: dict[str, Any], dtype: torch.dtype | None = None) -> Any:
        ps = parameters(shapes, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optimi's of foreach
            optimizer = make(ps, lr=original.lr, **original.arguments, **original.timed, **of_package)
        if hasattr(optimizer, "train"):
            optimizer.train()
        gradients = [p.grad.clone() for p in ps if p.grad is not None]
        for _ in range(WARM_UP):
            for p, gradient in zip(ps, gradients, strict=True):
                assert p.grad is not None
                p.grad.copy_(gradient)  # some packages write into it
            optimizer.step()
        return ps, optimizer

    made[OURS] = made_of(getattr(zoo, name), {})
    cls = original.load()
    if cls is not None:
        for label, of_package in original.variants().items():
            made[label] = made_of(cls, of_package)
            in_float64 = partial(made_of, cls, of_package, torch.float64)
            check(name, label, made[OURS][0], made[label][0], in_float64)
    return {label: optimizer.step for label, (_, optimizer) in made.items()}, made[OURS][1]


def check(name: str, label: str, ours: Parameters, theirs: Parameters, judge: Callable[[], Any]) -> None:
    """An exception unless ours is what theirs is; where a float32 norm of theirs is inexact, what theirs is in float64,
    and theirs not far from it."""
    wrong = SystemExit(f"{name}: oxistep and {label} came to different parameters")
    if alike(ours, theirs):
        return
    start = parameters([tuple(p.shape) for p in ours])
    for a, b, p in zip(ours, theirs, start, strict=True):
        if not torch.dist(a.double(), b.double()) <= 0.02 * torch.dist(a.double(), p.double()):
            raise wrong
    if not alike(ours, judge()[0]):
        raise wrong
    gc.collect()  # optimizers of torch refer to themselves
    print(f"{name}: {label} is inexact in float32; oxistep agrees with it in float64", file=sys.stderr)


def alike(ours: Parameters, theirs: Parameters) -> bool:
    return all(torch.allclose(a, b.to(a.dtype), rtol=1e-4, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def measured(workload: str, name: str, shapes: list[tuple[int, ...]], seconds: float) -> list[dict[str, Any]]:
    """One row for each rival."""
    steps, optimizer = contestants(name, shapes)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    states, arrays = streams(name, optimizer)
    moved = 1.0
    if workload == "flat" and (probe := native_probe(4 * elements, min(states, MAX_STATES))) is not None:
        steps[PROBE] = probe[0]
        moved = arrays * 4 * elements / probe[1]
    paired = measure({n: contestant(step) for n, step in steps.items()}, seconds, lead_in=elements < 2**22)
    rows = []
    for other in [n for n in paired.nanoseconds if n != OURS]:
        ratio = asdict(paired.ratio(other, OURS))
        other_ns = paired.median(other)
        if other == PROBE:  # which reads and writes each array once
            ratio, other_ns = {key: value * moved for key, value in ratio.items()}, other_ns * moved
        rows.append({"workload": workload, "rule": name, "against": other, "rule_ns": paired.median(OURS),
                     "other_ns": other_ns, "floor": None, **ratio})  # fmt: skip
    rivals = [row for row in rows if row["against"] != PROBE]
    asked = [min(rivals, key=lambda row: float(row["median"]))] if rivals else []
    for row in [*asked, *(row for row in rows if row["against"] == PROBE)]:
        row["floor"] = floor(workload, name, row["against"])
    return rows


def show_all(out: Console, rows: list[dict[str, Any]]) -> None:
    """A table for each workload. A package that has no foreach loops over its parameters."""

    def way(row: dict[str, Any]) -> str:
        return next((way for way in (PROBE, *WAYS) if row["against"].endswith(way)), "for-loop")

    labels: dict[str, Callable[[dict[str, Any]], str]] = {
        "optimizer": itemgetter("rule"),
        "package": lambda row: ORIGINALS[row["rule"]].package,
    }
    for workload in dict.fromkeys(row["workload"] for row in rows):
        found = [row for row in rows if row["workload"] == workload]
        show_beside(out, found, labels, "rule_ns", rival=way, title=workload)
    show_floors(out, rows, lambda row: f"{row['rule']} on {row['workload']}")


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "zoo")
    parser.add_argument(
        "--optimizer", action="append", choices=ORIGINALS, metavar="NAME", help=f"only {', '.join(ORIGINALS)}"
    )
    parser.add_argument("--workload", action="append", choices=[*SHAPES, "flat"], help="only these (repeatable)")
    parser.add_argument("--flat", type=count, help="elements of the large tensor (default: 64 Mi)")
    parser.add_argument("--seconds", type=positive, default=5.0, help="for each cell (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="4 Mi elements, 0.3 seconds a cell, without GPT-2 small")
    parser.add_argument("--threads", type=count, help="torch.set_num_threads; default: torch's own")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    seconds = min(options.seconds, 0.3) if options.quick else options.seconds
    workloads: dict[str, list[tuple[int, ...]]] = {
        **SHAPES,
        "flat": [(options.flat or (2**22 if options.quick else 2**26),)],
    }
    chosen = options.workload or [name for name in workloads if not (options.quick and name == "GPT-2 small")]
    rows = []
    for workload in chosen:
        for name in options.optimizer or ORIGINALS:
            rows += measured(workload, name, workloads[workload], seconds)
            gc.collect()  # optimizers of torch refer to themselves
    show_all(Console(highlight=False, soft_wrap=True), rows)
    if options.into:
        results.add(options.into, "zoo", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
