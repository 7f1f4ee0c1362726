"""Hooks of pytest for `bench_step.py`."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # results are published; the host's name is nobody's concern
