"""The ceiling: how fast memory lets a loop with the same streams run.

Built from torch's in-place operators until there is a native probe: one `a += 0 * b` (two reads,
one write) and one `s *= 1` (a read and a write) per state. Together these read and write as many
arrays as the step of an optimizer, one after the other instead of side by side. A loop that
prefetches well may therefore come out above it.
"""

from __future__ import annotations

import torch

from paired import Step

NAME = "probe"
DESCRIPTION = "torch in-place probe: add_ and mul_ with the same number of reads and writes"

# Arrays below this (all together) may sit in a cache, where a step waits for other things.
SMALLEST_BYTES = 2**26
# Well above any cache; a larger probe would only take the contestants' memory.
LARGEST_BYTES = 2**30


def torch_probe(array_bytes: int, states: int) -> tuple[Step, int] | None:
    """A step over 2 + `states` arrays of `array_bytes` each, and the bytes that it moves."""
    arrays = 2 + states
    if array_bytes * arrays < SMALLEST_BYTES:
        return None
    # float32 whatever the cell's dtype: torch's half-precision operators wait for arithmetic.
    elements = min(array_bytes, LARGEST_BYTES // arrays) // 4
    parameter, gradient, *buffers = (torch.ones(elements) for _ in range(arrays))

    def step() -> None:
        parameter.add_(gradient, alpha=0.0)
        for buffer in buffers:
            buffer.mul_(1.0)

    return step, (3 + 2 * states) * 4 * elements
