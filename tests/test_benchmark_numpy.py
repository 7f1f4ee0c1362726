"""The benchmark beside NumPy by hand: that it compares the same computation, and says what it found."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

from oxistep.bench import by_hand


@pytest.mark.parametrize(("workload", "rule"), [(name, rule) for name, c in by_hand.CELLS.items() for rule in c.floors])
def test_both_compute_the_same(workload, rule):
    """Else it ends with a message."""
    cell = by_hand.CELLS[workload]
    few = replace(cell, shapes=cell.shapes[:50])
    assert set(by_hand.contestants(few, rule)) == {by_hand.OURS, by_hand.HAND}


def test_what_differs_is_not_timed(monkeypatch):
    monkeypatch.setitem(by_hand.RULES, "SGD", (by_hand.RULES["Adam"][0], by_hand.Sgd))
    with pytest.raises(SystemExit, match="came to different parameters"):
        by_hand.contestants(by_hand.CELLS["2 numbers"], "SGD")


def test_results(monkeypatch, tmp_path, capsys):
    cell = by_hand.CELLS["2 numbers"]
    monkeypatch.setattr(by_hand, "CELLS", {"small": replace(cell, floors={"Adam": 0.0})})
    assert by_hand.main(["--seconds", "0.01", "--output", str(tmp_path / "x" / "found.json")], "numpy") == 0
    (row,) = json.loads((tmp_path / "x" / "found.json").read_text())["numpy"]
    assert row["rule"] == "Adam" and row["ours_ns"] > 0 and row["median"] > 0
    assert "by hand" in capsys.readouterr().out
    monkeypatch.setattr(by_hand, "CELLS", {"small": replace(cell, floors={"Adam": 1e9})})
    assert by_hand.main(["--seconds", "0.01"], "numpy") == 1
    assert "small, Adam: below its floor" in capsys.readouterr().out
