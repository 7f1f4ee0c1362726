"""`oxistep bench rules`: rules beside compiled classes and torch's operations."""

import json

import pytest

pytest.importorskip("rich")
pytest.importorskip("torch")

from oxistep.bench import rules


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_is_compared_and_added_to_the_results(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", {"two scalars": [(), ()]})
    file = tmp_path / "r.json"
    arguments = ["--rule", name, "--flat", "5000", "--seconds", "0.01", "--into", str(file)]
    assert rules.main(arguments) == 0
    rows = json.loads(file.read_text())["rules"]
    assert {row["workload"] for row in rows} <= {"two scalars", "1 Mi", "flat"}
    rivals = {row["against"] for row in rows}
    assert rivals == ({"compiled", "for-loop", "foreach"} if name in ("Adam", "momentum") else set())
    assert all(row["median"] > 0 for row in rows)
    output = capsys.readouterr().out
    assert "over oxistep's" in output and all(row["against"] in output for row in rows)


def test_a_wrong_rule_is_not_timed():
    wrong = rules.Cell(rules.bounds, 2, rules.RULES["Adam"].compiled)
    with pytest.raises(SystemExit, match="the rule and compiled came to different parameters"):
        rules.contestants(wrong, [(64,)])


def test_the_probe_stands_for_what_a_rule_reads_and_writes(monkeypatch):
    """A cell with a ceiling: the time of the probe, brought to the bytes of the rule."""
    from oxistep.bench import probe

    monkeypatch.setattr(probe, "SMALLEST_BYTES", 1)
    rows = rules.measured("flat", "LAMB-like", [(4096,)], 0.01)
    assert [row["against"] for row in rows] == ["probe"] and rows[0]["floor"] == 0.8
