"""docs/zoo.md: its tables say what is so."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from oxistep import zoo  # noqa: E402
from oxistep.bench.originals import ORIGINALS  # noqa: E402
from oxistep.rules._listing import Listing  # noqa: E402
from oxistep.rules._optimizer import source_of  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "zoo.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]*) \| (\d), (\d+) \| (\d)[^|]* \| ([^|]*) \| ([^|]*\d{4}[^|]*) \|$", re.M)
ROWS = {row[0]: row[1:] for row in ROW.findall(PAGE)}


def test_every_class_is_in_the_table_that_helps_to_choose():
    assert set(ROWS) == set(ORIGINALS)
    wrappers = set(zoo.__all__) - set(ORIGINALS)
    assert all(f"| `{name}` |" in PAGE for name in wrappers)


@pytest.mark.parametrize("name", ORIGINALS)
def test_states_bytes_and_passes_are_those_of_the_rule(name):
    _, states, size, passes, _, _ = ROWS[name]
    original = ORIGINALS[name]
    optimizer = getattr(zoo, name)([torch.nn.Parameter(torch.ones(2, 2))], lr=original.lr, **original.arguments)
    if hasattr(optimizer, "train"):
        optimizer.train()
    source = source_of(type(optimizer))
    group = {key: value for key, value in optimizer.param_groups[0].items() if key in source.hyperparameters}
    program = Listing.of(source, {**group, "step": 100.0})[-1]
    kept = sum(state.kind.has_elements for state in program.states.values())
    assert (int(states), int(size), int(passes)) == (kept, 4 * kept, len(program.passes))


def zoo_tables():
    spec = importlib.util.spec_from_file_location("zoo_tables", DOCS / "zoo_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_written_where_they_belong(tmp_path, monkeypatch):
    tables = zoo_tables()
    page = tmp_path / "zoo.md"
    page.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(tables, "PAGE", page)
    rows = [
        {"workload": workload, "rule": "Lion", "against": against, "median": median}
        for workload, against, median in [
            ("flat", "timm, for-loop", 7.0),
            ("flat", "timm, foreach", 6.0),
            ("flat", "probe", 0.9),
            ("two scalars", "timm, for-loop", 12.0),
        ]
    ]
    results = tmp_path / "r.json"
    results.write_text(json.dumps({"zoo": rows}), encoding="utf-8")
    tables.write("speed", tables.table(tables.speed_rows(results)))
    text = page.read_text(encoding="utf-8")
    assert "| `Lion` | timm | 6.0 | 12.0 | 0.90 |" in text  # a column for each workload that was measured
    tables.write("speed", tables.table(tables.speed_rows(results)))
    assert page.read_text(encoding="utf-8") == text
