"""How much memory a cell takes, and how much there is."""

from __future__ import annotations

from pathlib import Path

_SPARE = 2**30  # left to everything else on the machine


def available_bytes() -> int | None:
    """What can be had without swapping; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def fits(needed: int) -> bool:
    available = available_bytes()
    return available is None or needed + _SPARE <= available
