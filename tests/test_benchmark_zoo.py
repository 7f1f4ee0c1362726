"""`oxistep bench zoo`: the zoo beside the packages that people take its optimizers from."""

import inspect
import json

import pytest

pytest.importorskip("rich")
torch = pytest.importorskip("torch")

import oxistep.zoo  # noqa: E402
from oxistep.bench import originals, zoo  # noqa: E402

WRAPPERS = {"Grokfast", "Lookahead", "SAM"}


def test_every_class_has_an_original():
    assert set(originals.ORIGINALS) == set(oxistep.zoo.__all__) - WRAPPERS


@pytest.mark.parametrize("name", originals.ORIGINALS)
@pytest.mark.filterwarnings("ignore:This overload of add_ is deprecated")
def test_every_class_is_compared_and_added_to_the_results(name, tmp_path, capsys, monkeypatch):
    from oxistep.bench import probe

    monkeypatch.setattr(probe, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(zoo, "SHAPES", {"two scalars": [(), ()]})
    file = tmp_path / "r.json"
    arguments = ["--optimizer", name, "--flat", "5000", "--quick", "--seconds", "0.01", "--into", str(file)]
    assert zoo.main(arguments) == 0
    rows = json.loads(file.read_text())["zoo"]
    rivals = {row["against"] for row in rows if row["workload"] == "two scalars"}
    assert rivals == set(originals.ORIGINALS[name].variants())
    assert {row["against"] for row in rows if row["workload"] == "flat"} == rivals | {"probe"}
    assert all(row["median"] > 0 for row in rows)
    asked = [row["against"] for row in rows if row["floor"] is not None]
    assert len(asked) == (3 if rivals else 1)
    output = capsys.readouterr().out
    assert "floors" in output and "probe" in output and originals.ORIGINALS[name].package in output
    assert all(way in output for way in ("for-loop", "foreach") if any(way in rival for rival in rivals))


def test_where_the_package_is_missing_ours_is_beside_the_probe_alone(monkeypatch):
    monkeypatch.setattr(originals.Original, "load", lambda self: None)
    steps, _ = zoo.contestants("Lion", [(4,)])
    assert set(steps) == {zoo.OURS}


def test_a_wrong_original_is_not_timed(monkeypatch):
    class Wrong(oxistep.zoo.Lion):
        def step(self, closure=None):
            return None

    monkeypatch.setattr(originals.Original, "load", lambda self: Wrong)
    monkeypatch.setattr(originals.Original, "variants", lambda self: {"wrong": {}})
    with pytest.raises(SystemExit, match="Lion: oxistep and wrong came to different parameters"):
        zoo.contestants("Lion", [(64,)])


def test_a_variant_that_is_wrong_in_float32_alone_is_not_timed(monkeypatch):
    class Wrong(oxistep.zoo.Lion):
        def step(self, closure=None):
            if self.param_groups[0]["params"][0].dtype == torch.float64:
                super().step(closure)

    monkeypatch.setattr(originals.Original, "load", lambda self: Wrong)
    monkeypatch.setattr(originals.Original, "variants", lambda self: {"wrong": {}})
    with pytest.raises(SystemExit, match="Lion: oxistep and wrong came to different parameters"):
        zoo.contestants("Lion", [(64,)])


def test_a_variant_that_is_inexact_in_float32_is_timed_if_float64_agrees(monkeypatch, capsys):
    class Inexact(oxistep.zoo.SGDW):
        def step(self, closure=None):
            super().step(closure)
            (p,) = self.param_groups[0]["params"]
            if p.dtype == torch.float32:
                p.data.mul_(1 + 2e-4)

    monkeypatch.setattr(originals.Original, "load", lambda self: Inexact)
    monkeypatch.setattr(originals.Original, "variants", lambda self: {"inexact": {}})
    steps, _ = zoo.contestants("SGDW", [(64,)])
    assert set(steps) == {zoo.OURS, "inexact"}
    assert "SGDW: inexact is inexact in float32" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "states", "arrays"), [("Lion", 1, 5), ("AdamWScheduleFree", 2, 7), ("LAMB", 2, 13)])
def test_streams_are_those_of_all_passes(name, states, arrays):
    _, optimizer = zoo.contestants(name, [(4,)])
    assert zoo.streams(name, optimizer) == (states, arrays)


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_arguments_of_the_table_are_arguments(name):
    ours = inspect.signature(getattr(oxistep.zoo, name)).parameters
    original = originals.ORIGINALS[name]
    assert ours.keys() >= original.arguments.keys() | original.timed.keys()
    theirs = original.load()
    if theirs is not None:
        assert inspect.signature(theirs).parameters.keys() >= original.arguments.keys() | original.theirs.keys()
