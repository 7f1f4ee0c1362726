"""How much processor time other processes took meanwhile: a threaded step stalls when they do."""

from __future__ import annotations

import os
import time
from pathlib import Path

CALM = 0.1  # cores taken by others, below which a measurement is not worth a warning
_STAT = Path("/proc/stat")
_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


class Neighbours:
    """Start it, and ask `cores` afterwards; None where the system does not tell."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._start = _others()

    def cores(self) -> float | None:
        now = _others()
        if now is None or self._start is None:
            return None
        return max(0.0, (now - self._start) / (time.perf_counter() - self._wall))


def _others() -> float | None:
    """Seconds that all processors have spent on anything but this process."""
    try:
        fields = _STAT.read_text().split(maxsplit=9)[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
    return (user + nice + system + irq + soft + steal) * _TICK - time.process_time()
