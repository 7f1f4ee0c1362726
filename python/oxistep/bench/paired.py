"""Paired timing: all contestants take turns in one process, and are compared within each round.

A machine's speed drifts (clock, neighbours, page placement). Two contestants timed one after the
other see different machines; timed a few milliseconds apart they see the same one. So the figure
is the ratio within a round, and the result is the median ratio over the rounds with its quartiles.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, repeat

import numpy as np

Step = Callable[[], object]

BLOCK_SECONDS = 2e-3  # long beside the clock's resolution, short beside the machine's drift
MIN_ROUNDS, MAX_ROUNDS = 3, 400


@dataclass(frozen=True)
class Ratio:
    """Time of another contestant over the time of ours: above 1 we are faster."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Paired:
    """Nanoseconds per step of each contestant, one entry per round."""

    nanoseconds: dict[str, list[float]]
    steps_per_block: dict[str, int]

    def median(self, name: str) -> float:
        return float(np.median(self.nanoseconds[name]))

    def ratio(self, name: str, ours: str) -> Ratio:
        rounds = np.divide(self.nanoseconds[name], self.nanoseconds[ours])
        q1, median, q3 = np.percentile(rounds, [25, 50, 75])
        return Ratio(float(median), float(q1), float(q3))


def block(step: Step, steps: int) -> float:
    """Nanoseconds per step."""
    start = time.perf_counter_ns()
    for _ in repeat(None, steps):
        step()
    return (time.perf_counter_ns() - start) / steps


@dataclass(frozen=True)
class Contestant:
    step: Step
    steps: int  # in one block
    block_seconds: float  # about


def contestant(step: Step) -> Contestant:
    """Warm a step up, and find how many fill a block: by doubling, as the first ones are slow."""
    steps = 1
    while (seconds := block(step, steps) * steps / 1e9) < BLOCK_SECONDS:
        steps *= 2
    return Contestant(step, steps, seconds)


def measure(contestants: dict[str, Contestant], seconds: float, lead_in: bool) -> Paired:
    """Time rounds until `seconds` are spent.

    Every round starts with another contestant, and every other pass over the names runs backwards,
    so that nobody always follows the same neighbour. With `lead_in` each block starts with one
    untimed step, which brings back what the neighbour has thrown out of the caches; without, a
    block that is not larger than the caches would measure its neighbour.
    """
    names = list(contestants)
    nanoseconds: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds
        for turn in count():
            if turn >= MAX_ROUNDS or (turn >= MIN_ROUNDS and time.perf_counter() > deadline):
                break
            first = turn % len(names)
            order = names[first:] + names[:first]
            if turn // len(names) % 2:
                order.reverse()
            for name in order:
                this = contestants[name]
                if lead_in:
                    this.step()
                nanoseconds[name].append(block(this.step, this.steps))
    finally:
        if enabled:
            gc.enable()
    return Paired(nanoseconds, {name: this.steps for name, this in contestants.items()})
