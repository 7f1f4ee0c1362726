"""The ceiling: how fast memory lets a loop with the same streams run.

The native probe is the loop of a step (same chunks, threads, SIMD level and prefetching) that reads
and writes as many arrays, with next to no arithmetic. Memory is had as for a step: parameter and
gradient from torch, states from oxistep, which asks for large pages.
"""

from __future__ import annotations

from functools import partial

import torch

from oxistep import _core
from oxistep.optim._new_states import zeros

from .paired import Step

NAME = "probe"
DESCRIPTION = "native probe: the same loop with the same reads and writes and next to no arithmetic"

# Arrays below this (all together) may sit in a cache, where a step waits for other things.
SMALLEST_BYTES = 2**26
# As large as Adam on 128 Mi float32; a larger probe would only take the contestants' memory.
LARGEST_BYTES = 2**31


def probe_bytes(array_bytes: int, states: int) -> int:
    """What all arrays of the probe take; 0 where there is none."""
    arrays = array_bytes * (2 + states)
    return 0 if arrays < SMALLEST_BYTES else min(arrays, LARGEST_BYTES)


def native_probe(array_bytes: int, states: int) -> tuple[Step, int] | None:
    """A step over 2 + `states` arrays of `array_bytes` each, and the bytes that it moves."""
    total = probe_bytes(array_bytes, states)
    if total == 0:
        return None
    # float32 whatever the cell's dtype: it is bytes that count.
    elements = total // (2 + states) // 4
    parameter, gradient = (torch.ones(elements) for _ in range(2))
    parameter.grad = gradient
    kept = [zeros(parameter) for _ in range(states)]
    step = partial(_core.probe, parameter.numpy(), gradient.numpy(), [state.numpy() for state in kept])
    return step, (3 + 2 * states) * 4 * elements
