"""A ring buffer of measurements: steps x layers x fields, in one NumPy array that is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class History:
    """The last ``capacity`` measurements. Filled in two steps, so that one that fails leaves no trace.

    Attributes:
        names: of the layers.
        fields: what is measured of each.
        count: how many measurements there ever were.
    """

    def __init__(self, capacity: int, names: Sequence[str], fields: Sequence[str]) -> None:
        given: Any = capacity
        if isinstance(given, bool) or not isinstance(given, int):
            raise TypeError(f"history: expected a number of steps, got {type(given).__name__}")
        if capacity < 1:
            raise ValueError(f"history: expected at least 1 step, got {capacity}")
        self.names = list(names)
        self.fields = tuple(fields)
        self.count = 0
        self._capacity = capacity
        # One row more, which is being written. Zeros: the system hands out pages when they are first written.
        self._values = np.zeros((capacity + 1, len(self.names), len(self.fields)))
        self._steps = np.zeros(capacity + 1, np.int64)

    def next(self) -> Floats:
        """The row, layers x fields, that the next measurement is to be written into."""
        row: Floats = self._values[self.count % len(self._steps)]
        return row

    def commit(self, step: int | None) -> None:
        """Counts what was written into `next`; ``step`` is its number, by default one more than the last."""
        if step is None:
            step = int(self._steps[(self.count - 1) % len(self._steps)]) + 1 if self.count else 0
        self._steps[self.count % len(self._steps)] = step
        self.count += 1

    def __len__(self) -> int:
        return min(self.count, self._capacity)

    def last(self, n: int | None = None) -> tuple[NDArray[np.int64], Floats]:
        """Steps and values (steps x layers x fields) of the last ``n`` measurements, oldest first; by default all."""
        n = len(self) if n is None else min(n, len(self))
        places = np.arange(self.count - n, self.count) % len(self._steps)
        return self._steps[places], self._values[places]

    def clear(self) -> None:
        """Forgets everything."""
        self.count = 0
