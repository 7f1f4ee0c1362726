"""The step of every optimizer on every workload of `--quick`, as rows of pytest-benchmark.

    pytest -c benches/pytest.ini benches/bench_step.py --benchmark-only

One group per cell, one row per implementation, for those who want its histograms and storage.
For ratios use `oxistep bench`, where implementations take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from oxistep.bench.cell import Cell
from oxistep.bench.environment import environment
from oxistep.bench.implementations import IMPLEMENTATIONS, OURS
from oxistep.bench.plan import Plan
from oxistep.bench.record import CellName

PLAN = Plan()
CELL_SECONDS = 0.5
MIN_ROUNDS, MAX_ROUNDS = 3, 50


# Module scope makes pytest keep the tests of a cell together: tensors are made once per cell.
@pytest.fixture(scope="module", params=PLAN.cells, ids=str)
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    name: CellName = request.param
    made = Cell(name, PLAN.implementations_of(name))
    yield made
    made.close()


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name in PLAN.implementations])
def test_step(cell: Cell, implementation: str, benchmark: Any) -> None:
    record = cell.record
    if implementation == OURS and OURS in record.wrong:
        pytest.fail(f"{record.name}: {record.wrong[OURS]}", pytrace=False)
    if implementation not in cell.contestants:
        pytest.skip((record.missing | record.wrong).get(implementation, "nothing to compare"))
    benchmark.group = str(record.name)
    benchmark.extra_info.update(
        environment(),
        implementation=implementation,
        parameters=record.parameters,
        tensors=record.tensors,
        bytes_per_step=record.bytes_per_step,
    )
    this = cell.contestants[implementation]
    rounds = int(CELL_SECONDS / len(cell.contestants) / this.block_seconds)
    benchmark.pedantic(
        this.step,
        iterations=this.steps,
        rounds=min(max(rounds, MIN_ROUNDS), MAX_ROUNDS),
        warmup_rounds=1 if cell.lead_in else 0,
    )
