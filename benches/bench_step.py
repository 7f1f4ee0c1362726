"""The step of every optimizer on every workload; one group per cell, one row per implementation.

    pytest benches/bench_step.py --benchmark-only

Without `--benchmark-only` the paired comparison of `paired.py` follows each group, on the same
tensors. `run.py` chooses cells and budgets, and prints the ratios.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from cell import Cell
from environment import environment
from implementations import OURS
from plan import Plan
from record import CellName

ROWS_SHARE = 0.25  # of a cell's time; the rest makes the ratios steady
MIN_ROUNDS, MAX_ROUNDS = 3, 50


@cache
def default_plan() -> Plan:
    return Plan()


def plan_of(config: pytest.Config) -> Plan:
    given = (plugin for plugin in config.pluginmanager.get_plugins() if isinstance(plugin, Plan))
    return next(given, None) or default_plan()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plan = plan_of(metafunc.config)
    # Module scope makes pytest keep the tests of a cell together: tensors are made once per cell.
    metafunc.parametrize("cell", plan.cells, ids=str, indirect=True, scope="module")
    if "implementation" in metafunc.fixturenames:
        metafunc.parametrize("implementation", plan.implementations)


@pytest.fixture(scope="module")
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    plan = plan_of(request.config)
    name: CellName = request.param
    if plan.seconds_left() <= 0:
        plan.left_out.append(name)
        pytest.skip("time is up")
    made = Cell(name, plan.implementations)
    made.seconds = plan.share()
    plan.records.append(made.record)
    yield made
    made.close()


def test_step(cell: Cell, implementation: str, benchmark: Any) -> None:
    record = cell.record
    if implementation == OURS and OURS in record.wrong:
        pytest.fail(f"{record.name}: {record.wrong[OURS]}", pytrace=False)
    absent = record.missing | record.wrong
    if implementation in absent:
        pytest.skip(absent[implementation])
    benchmark.group = str(record.name)
    benchmark.extra_info.update(
        environment(),
        implementation=implementation,
        parameters=record.parameters,
        tensors=record.tensors,
        bytes_per_step=record.bytes_per_step,
    )
    this = cell.contestants[implementation]
    rounds = int(ROWS_SHARE * cell.seconds / len(cell.contestants) / this.block_seconds)
    benchmark.pedantic(
        this.step,
        iterations=this.steps,
        rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS),
        warmup_rounds=1 if cell.lead_in else 0,
    )


def test_paired(cell: Cell) -> None:
    if OURS not in cell.contestants:
        pytest.skip("nothing to compare")
    cell.measure((1 - ROWS_SHARE) * cell.seconds)
