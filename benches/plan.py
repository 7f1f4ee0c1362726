"""Which cells are measured, and for how long; handed to pytest as a plugin."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from environment import environment
from implementations import IMPLEMENTATIONS, OPTIMIZERS
from record import CellName, Record
from workloads import WORKLOADS

DTYPES = ["float32", "float64", "bfloat16", "float16"]


def grid(workloads: list[str], optimizers: list[str], dtypes: list[str]) -> list[CellName]:
    return [CellName(w, o, d) for w in workloads for d in dtypes for o in optimizers]


def full() -> list[CellName]:
    return grid([w for w in WORKLOADS if w != "flat_16"], list(OPTIMIZERS), DTYPES)


def quick() -> list[CellName]:
    small = ["two_scalars", "seven", "mlp", "lora", "small_2000"]
    return [
        *grid([*small, "flat_16"], list(OPTIMIZERS), ["float32"]),
        *grid(["flat_16"], ["Adam"], ["bfloat16"]),
        *grid(["resnet50"], ["SGD momentum", "Adam"], ["float32"]),
    ]


def brief() -> list[CellName]:
    return [
        CellName("two_scalars", "SGD", "float32"),
        CellName("mlp", "Adam", "float32"),
        CellName("small_2000", "Adam", "float32"),
        CellName("flat_16", "RMSprop", "float32"),
        CellName("flat_16", "AdamW", "float32"),
    ]


@dataclass(eq=False)
class Plan:
    cells: list[CellName] = field(default_factory=quick)
    implementations: list[str] = field(default_factory=lambda: [name for name in IMPLEMENTATIONS if name != "compile"])
    cell_seconds: float = 2.0  # timing only; building and checking come on top
    total_seconds: float | None = None  # everything; cells that no longer fit are left out
    advance: Callable[[str], None] = lambda _: None
    records: list[Record] = field(default_factory=list)
    left_out: list[CellName] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def seconds_left(self) -> float:
        if self.total_seconds is None:
            return float("inf")
        return self.started + self.total_seconds - time.perf_counter()

    def share(self) -> float:
        """What the next cell may spend on timing."""
        cells_left = len(self.cells) - len(self.records)
        return min(self.cell_seconds, max(0.0, self.seconds_left()) / max(cells_left, 1))

    # Hooks of pytest and pytest-benchmark.

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """No dots: they would run into the progress bar."""
        if report.failed or (report.when != "call" and report.passed):
            return None
        return report.outcome, "", ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.advance(nodeid.partition("[")[2].rstrip("]"))

    def pytest_benchmark_update_machine_info(self, config: Any, machine_info: dict[str, Any]) -> None:
        machine_info.pop("node", None)  # results are published; the host's name is nobody's concern
        machine_info["oxistep"] = environment()
