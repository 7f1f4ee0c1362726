"""oxistep.numpy beside the same rules written by hand in NumPy: well, and in place.

    oxistep bench numpy

Contestants take turns, and are compared within each round. Each has arrays of its own; after three steps they must
agree before the clock runs. Numbers in a list are beside a plain loop over Python's floats, rows beside `np.add.at`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from rich.console import Console

import oxistep.numpy as onp

from .._options import new_file, positive
from .beside import spread
from .environment import environment
from .paired import Step, contestant, measure
from .tables import plain, show
from .wording import duration

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = list[Array]
OURS, HAND = "oxistep", "by hand"
LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8


class ByHand:
    """A rule over a list of arrays, with scratch space and states of its own."""

    def __init__(self, params: Arrays) -> None:
        self.params = params
        self.scratch, self.first, self.second = ([np.zeros_like(x) for x in params] for _ in range(3))
        self.steps = 0


class Sgd(ByHand):
    def step(self, grads: Arrays) -> None:
        for x, g, t in zip(self.params, grads, self.scratch, strict=True):
            np.multiply(g, LR, out=t)
            np.subtract(x, t, out=x)


class Momentum(ByHand):
    def step(self, grads: Arrays) -> None:
        for x, g, t, v in zip(self.params, grads, self.scratch, self.first, strict=True):
            np.multiply(v, BETA1, out=v)
            np.add(v, g, out=v)
            np.multiply(v, LR, out=t)
            np.subtract(x, t, out=x)


class RmsProp(ByHand):
    def step(self, grads: Arrays) -> None:
        for x, g, t, v in zip(self.params, grads, self.scratch, self.second, strict=True):
            np.multiply(g, g, out=t)
            np.multiply(t, 1 - 0.99, out=t)
            np.multiply(v, 0.99, out=v)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)
            np.add(t, EPS, out=t)
            np.divide(g, t, out=t)
            np.multiply(t, LR, out=t)
            np.subtract(x, t, out=x)


class Adam(ByHand):
    def step(self, grads: Arrays) -> None:
        self.steps += 1
        rate, root = LR / (1 - BETA1**self.steps), 1 / sqrt(1 - BETA2**self.steps)
        for x, g, t, m, v in zip(self.params, grads, self.scratch, self.first, self.second, strict=True):
            np.multiply(g, 1 - BETA1, out=t)
            np.multiply(m, BETA1, out=m)
            np.add(m, t, out=m)
            np.multiply(g, g, out=t)
            np.multiply(t, 1 - BETA2, out=t)
            np.multiply(v, BETA2, out=v)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)
            np.multiply(t, root, out=t)
            np.add(t, EPS, out=t)
            np.divide(m, t, out=t)
            np.multiply(t, rate, out=t)
            np.subtract(x, t, out=x)


class Loop:
    """Python's floats, in lists."""

    def __init__(self, params: Arrays) -> None:
        self.x = [float(x) for x in params]
        self.m, self.v = [0.0] * len(params), [0.0] * len(params)
        self.steps = 0

    @property
    def params(self) -> Arrays:
        return [np.array(x) for x in self.x]


class LoopSgd(Loop):
    def step(self, grads: list[float]) -> None:
        x = self.x
        for i, g in enumerate(grads):
            x[i] -= LR * g


class LoopAdam(Loop):
    def step(self, grads: list[float]) -> None:
        self.steps += 1
        rate, root = LR / (1 - BETA1**self.steps), 1 / sqrt(1 - BETA2**self.steps)
        x, ms, vs = self.x, self.m, self.v
        for i, g in enumerate(grads):
            m = ms[i] = BETA1 * ms[i] + (1 - BETA1) * g
            v = vs[i] = BETA2 * vs[i] + (1 - BETA2) * g * g
            x[i] -= rate * m / (sqrt(v) * root + EPS)


class RowsSgd(ByHand):
    def step(self, grads: list[tuple[Array, Array]]) -> None:
        for x, (indices, rows) in zip(self.params, grads, strict=True):
            np.subtract.at(x, indices, LR * rows)


class RowsAdam(ByHand):
    def step(self, grads: list[tuple[Array, Array]]) -> None:
        self.steps += 1
        rate = LR * sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        for x, ms, vs, (indices, rows) in zip(self.params, self.first, self.second, grads, strict=True):
            named, places = np.unique(indices, return_inverse=True)
            g = np.zeros((len(named), x.shape[1]), x.dtype)
            np.add.at(g, places, rows)
            m = ms[named] = BETA1 * ms[named] + (1 - BETA1) * g
            v = vs[named] = BETA2 * vs[named] + (1 - BETA2) * g * g
            x[named] -= rate * m / (np.sqrt(v) + EPS)


RULES: dict[str, tuple[Callable[[Arrays], Any], Callable[[Arrays], Any]]] = {
    "SGD": (lambda x: onp.SGD(x, lr=LR), Sgd),
    "momentum": (lambda x: onp.SGD(x, lr=LR, momentum=BETA1), Momentum),
    "RMSprop": (lambda x: onp.RMSprop(x, lr=LR), RmsProp),
    "Adam": (lambda x: onp.Adam(x, lr=LR), Adam),
    "SGD on a loop": (lambda x: onp.SGD(x, lr=LR), LoopSgd),
    "Adam on a loop": (lambda x: onp.Adam(x, lr=LR), LoopAdam),
    "SGD on rows": (lambda x: onp.SGD(x, lr=LR), RowsSgd),
    "SparseAdam": (lambda x: onp.SparseAdam(x, lr=LR), RowsAdam),
}


@dataclass(frozen=True)
class Cell:
    """Parameters, and how their gradients come; the floors are ratios."""

    shapes: list[tuple[int, ...]]
    dtype: DTypeLike
    floors: dict[str, float]
    gradients: Callable[[np.random.Generator, Arrays], list[Any]]


def dense(draw: np.random.Generator, params: Arrays) -> list[Any]:
    return [draw.normal(size=x.shape).astype(x.dtype) for x in params]


def transposed(draw: np.random.Generator, params: Arrays) -> list[Any]:
    return [draw.normal(size=x.shape[::-1]).astype(x.dtype).T for x in params]


def floats(draw: np.random.Generator, params: Arrays) -> list[Any]:
    return [float(draw.normal()) for _ in params]


def rows(draw: np.random.Generator, params: Arrays) -> list[Any]:
    return [(draw.integers(0, len(x), 64), draw.normal(size=(64, x.shape[1])).astype(x.dtype)) for x in params]


NETWORK: list[tuple[int, ...]] = [(784, 100), (100,), (100, 10), (10,)]
CELLS: dict[str, Cell] = {
    "2 numbers": Cell([(2,)], np.float64, {"SGD": 0.6, "momentum": 1.0, "RMSprop": 1.5, "Adam": 2.5}, dense),
    "41 scalars": Cell([()] * 41, np.float64, {"SGD on a loop": 1.0, "Adam on a loop": 1.0}, floats),
    "2,000 x 64": Cell([(64,)] * 2000, np.float64, {"SGD": 3.0, "Adam": 6.0}, dense),
    "784-100-10, float32": Cell(NETWORK, np.float32, {"SGD": 1.2, "Adam": 4.0}, dense),
    "1e6 numbers": Cell([(1_000_000,)], np.float64, {"SGD": 1.5, "Adam": 5.0}, dense),
    "1000 x 1000, gradient transposed": Cell([(1000, 1000)], np.float64, {"SGD": 1.0, "Adam": 2.0}, transposed),
    "64 rows of 20,000 x 64": Cell([(20_000, 64)], np.float32, {"SGD on rows": 1.0, "SparseAdam": 1.0}, rows),
}


def contestants(cell: Cell, rule: str) -> dict[str, Step]:
    """Both steps, which came to the same parameters."""
    draw = np.random.default_rng(0)
    start = [draw.normal(size=shape).astype(cell.dtype) for shape in cell.shapes]
    grads = cell.gradients(draw, start)
    make_ours, make_other = RULES[rule]
    params = [x.copy() for x in start]
    ours, other = make_ours(params), make_other([x.copy() for x in start])
    for _ in range(3):
        ours.step(grads)
        other.step(grads)
    tolerance = 1e-4 if cell.dtype is np.float32 else 1e-9
    if not all(np.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(params, other.params, strict=True)):
        raise SystemExit(f"{rule}: oxistep and NumPy by hand came to different parameters")
    return {OURS: lambda: ours.step(grads), HAND: lambda: other.step(grads)}


def measured(workload: str, cell: Cell, rule: str, seconds: float) -> dict[str, Any]:
    small = sum(int(np.prod(shape)) for shape in cell.shapes) < 2**18
    steps = contestants(cell, rule)
    paired = measure({name: contestant(step) for name, step in steps.items()}, seconds, lead_in=small)
    return {
        "workload": workload,
        "rule": rule,
        "ours_ns": paired.median(OURS),
        "other_ns": paired.median(HAND),
        "floor": cell.floors[rule],
        **asdict(paired.ratio(HAND, OURS)),
    }


def main(arguments: list[str], program: str) -> int:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=positive, default=3.0, help="for each comparison (default: 3)")
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    found = [
        measured(workload, cell, rule, options.seconds) for workload, cell in CELLS.items() for rule in cell.floors
    ]
    table = plain("workload", "rule", "oxistep", "by hand", "by hand / oxistep", "floor", left=2)
    for row in found:
        table.add_row(
            row["workload"],
            row["rule"],
            duration(row["ours_ns"]),
            duration(row["other_ns"]),
            spread(row),
            f"{row['floor']:.1f}",
        )
    show(Console(highlight=False), table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"environment": environment(), "numpy": found}, indent=1))
    missed = [f"{row['workload']}, {row['rule']}" for row in found if row["median"] < row["floor"]]
    for name in missed:
        print(f"{name}: below its floor")
    return 1 if missed else 0
