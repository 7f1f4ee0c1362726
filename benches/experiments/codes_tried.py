"""Formats of 8-bit states that were tried, in NumPy: where Lion ends with its momentum in them, and what Adadelta does.

    python benches/experiments/codes_tried.py lion
    python benches/experiments/codes_tried.py adadelta

Of Lion: how far the final loss on the quadratic of tests/trainings.py is from float32's. Of Adadelta: its largest
update by float32's, for the gradients of tests/test_compact_updates.py where errors add up. Each takes minutes.
docs/experiments.md has what they gave.
"""

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from oxistep.bench.tables import plain, show

ROOT = Path(__file__).resolve().parents[2]
BLOCK, GOLDEN = 256, (5**0.5 - 1) / 2
CELLS = [(0.003, 300), (0.003, 1000), (0.01, 300), (0.01, 600), (0.01, 1000), (0.02, 300)]
TRYING = {
    "all scales": "all scales in each block",
    "half zero": "half of them zero for a thousand steps",
    "outlier": "an outlier in each block",
    "normal": "scale 1",
}

Code = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rounds blocks of magnitudes, given a random number from 0 to 1 for each."""


def logarithms(steps: int, widest: int = 24) -> Code:
    """Equal steps of the bits of a float32, from the block's least to its largest: 2**23 of them are an octave."""

    def code(x: np.ndarray, draw: np.ndarray) -> np.ndarray:
        bits = x.astype(np.float32).view(np.uint32).astype(np.int64)
        largest = bits.max(1, keepdims=True)
        least = np.where(bits == 0, largest, bits).min(1, keepdims=True)
        low = np.maximum(least, largest - (steps << widest)) & ~31
        k = np.ceil(np.log2(np.maximum(2, -(-(largest - low) // steps)))).astype(np.int64)
        coded = low + (np.maximum(bits - low, 0) + (draw * 2.0**k).astype(np.int64) >> k << k)
        first = low.astype(np.uint32).view(np.float32)
        small = np.where(draw * first < x, first, 0)
        return np.where(bits < low, small, coded.astype(np.uint32).view(np.float32))

    return code


def powers(power: float, steps: int) -> Code:
    """Powers of whole numbers, up to the block's largest."""

    def code(x: np.ndarray, draw: np.ndarray) -> np.ndarray:
        largest = x.max(1, keepdims=True).astype(np.float64)
        unit = np.where(largest > 0, largest, 1)
        below = np.floor((x / unit) ** (1 / power) * steps + 1e-9)
        low, high = ((q / steps) ** power * unit for q in (below, below + 1))
        return np.where(draw * (high - low) < x - low, high, low)

    return code


def half(x: np.ndarray, draw: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.int64) + (draw * 65536).astype(np.int64)
    return (bits >> 16 << 16).astype(np.uint32).view(np.float32)


class Kept:
    """A state that is rounded at each step: by draws that are "new" each time, or "turn" by the golden section, or to
    the "nearest"."""

    def __init__(self, code: Code | None, how: str, seed: int) -> None:
        self.code, self.how, self.random, self.step = code, how, np.random.default_rng(seed), 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.code is None or x.size < 4096:
            return x
        blocks = x.reshape(-1, BLOCK)
        self.step += 1
        if self.step == 1 or self.how == "new":
            self.draw = self.random.random(blocks.shape)
        draw = {"new": self.draw, "turn": (self.draw + self.step * GOLDEN) % 1, "nearest": 0.5}[self.how]
        kept = self.code(abs(blocks), np.where(blocks < 0, 1 - draw, draw))
        return (np.sign(blocks) * kept).reshape(x.shape).astype(np.float32)


class Lion:
    def __init__(self, params: list[torch.Tensor], lr: float, kept: Kept) -> None:
        (self.p,), self.lr, self.kept = params, lr, kept
        self.m = np.zeros(self.p.shape, np.float32)

    def step(self) -> None:
        g = self.p.grad.numpy()  # type: ignore[union-attr]
        sign = torch.from_numpy(np.sign(np.float32(0.9) * self.m + np.float32(0.1) * g))
        with torch.no_grad():
            self.p.sub_(sign, alpha=self.lr)
        self.m = self.kept(np.float32(0.99) * self.m + np.float32(0.01) * g)


def lion(seeds: int) -> None:
    quadratic = importlib.import_module("trainings").quadratic
    log, tries = logarithms(126, 20), {p: powers(p, 127) for p in (1, 2, 3, 4)}
    formats: dict[str, tuple[Code | None, str]] = {
        "logarithms, new draws": (log, "new"),
        "logarithms, in turn": (log, "turn"),
        "equal steps, new draws": (tries[1], "new"),
        "squares, new draws": (tries[2], "new"),
        "squares, in turn": (tries[2], "turn"),
        "cubes, in turn": (tries[3], "turn"),
        "fourth powers, in turn": (tries[4], "turn"),
        "equal steps, to nearest": (tries[1], "nearest"),
        "squares, to nearest": (tries[2], "nearest"),
        "squares of 255, new draws": (powers(2, 255), "new"),
    }

    def end(cell: tuple[float, int], code: Code | None, how: str) -> float:
        lr, steps = cell
        kept = (Kept(code, how, 100 + seed) for seed in range(seeds))
        return statistics.mean(quadratic(partial(Lion, lr=lr, kept=one), seed, steps) for seed, one in enumerate(kept))

    wanted = [end(cell, None, "new") for cell in CELLS]
    table = plain("momentum", *(f"{lr}, {steps}" for lr, steps in CELLS))
    for name, (code, how) in formats.items():
        ends = (end(cell, code, how) for cell in CELLS)
        table.add_row(name, *(f"{found / right - 1:+.1%}" for found, right in zip(ends, wanted, strict=True)))
    show(Console(highlight=False), table)


def largest_update(gradients: Any, square_avg: Kept, acc_delta: Kept) -> float:
    steps, gradient = gradients
    rho, eps = np.float32(0.9), np.float32(1e-6)
    v = u = np.float32(0)
    largest = 0.0
    for step in range(steps):
        g = gradient(step).float().numpy()
        v = rho * v + (1 - rho) * g * g
        update = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * update * update
        largest = max(largest, float(abs(update).max()))
        v, u = square_avg(v), acc_delta(u)
    return largest


def adadelta(seeds: int) -> None:
    gradients = importlib.import_module("test_compact_updates").GRADIENTS
    log, near, squares = logarithms(254), logarithms(254, 19), powers(2, 127)
    formats: dict[str, tuple[Code | None, Code | None, str]] = {
        "logarithms, logarithms": (log, log, "new"),
        "the same, in turn": (log, log, "turn"),
        "logarithms, float32": (log, None, "new"),
        "float32, logarithms": (None, log, "new"),
        "logarithms, squares in turn": (log, squares, "turn"),
        "logarithms of 16 octaves": (near, near, "new"),
        "bfloat16, logarithms": (half, log, "new"),
        "bfloat16, squares in turn": (half, squares, "turn"),
        "bfloat16, bfloat16": (half, half, "new"),
    }
    table = plain("square_avg, acc_delta", *TRYING)
    for name, (of_v, of_u, how) in formats.items():
        row = []
        for trying in TRYING.values():
            right = largest_update(gradients[trying], Kept(None, "new", 0), Kept(None, "new", 0))
            found = [
                largest_update(gradients[trying], Kept(of_v, how, seed), Kept(of_u, how, 50 + seed))
                for seed in range(seeds)
            ]
            row.append(f"{max(found) / right:.3g}")
        table.add_row(name, *row)
    show(Console(highlight=False), table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", choices=["lion", "adadelta"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests"))
    with np.errstate(all="ignore"):
        {"lion": lion, "adadelta": adadelta}[options.of](options.seeds)


if __name__ == "__main__":
    main()
