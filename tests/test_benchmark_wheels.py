"""Two wheels in turn: what is told of them, what is refused. No test looks at how long anything took."""

import json
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

import oxistep
from oxistep.bench import wheels
from oxistep.bench.__main__ import main
from oxistep.bench.record import CellName
from oxistep.cli._terminal import RefusalError

CELL = CellName("two_scalars", "SGD", "float32")


class Told(wheels.Worker):
    """A worker that answers without a process."""

    def __init__(self, nanoseconds, steps=4, why=None):
        self.nanoseconds, self.steps, self.why, self.asked = nanoseconds, steps, why, []

    def ask(self, *request):
        self.asked.append(request)
        if request[0] == "build":
            return {"steps": self.steps} if self.why is None else {"why": self.why}
        return self.nanoseconds if request[0] == "time" else None


def test_each_round_times_both_with_as_many_steps():
    workers = {wheels.BEFORE: Told(30.0, steps=4), wheels.AFTER: Told(20.0, steps=16)}
    paired = wheels.timed(workers, CELL, seconds=1e-9, builds=3)
    assert paired.ratio(wheels.BEFORE, wheels.AFTER).median == 1.5
    for worker in workers.values():
        requests = [request[0] for request in worker.asked]
        assert requests == ["build", *["time"] * 3, "close"] * 3
        assert {steps for request, *steps in worker.asked if request == "time" for steps in steps} == {16}


def test_a_cell_that_one_wheel_lacks_says_why_and_is_freed():
    workers = {wheels.BEFORE: Told(30.0, why="oxistep hands torch's SGD on"), wheels.AFTER: Told(20.0)}
    assert wheels.timed(workers, CELL, 1e-9, 2) == "before: oxistep hands torch's SGD on"
    assert all(worker.asked[-1] == ("close",) for worker in workers.values())


def test_a_slower_cell_is_marked_and_ends_with_one(monkeypatch, tmp_path, capsys):
    found = {"a": wheels.Ratio(0.96, 0.9, 1.0), "b": wheels.Ratio(0.98, 0.9, 1.0)}
    monkeypatch.setattr(wheels, "compared", lambda *_: found)
    for name in ("x.whl", "y.whl"):
        (tmp_path / name).touch()
    given = ["wheels", str(tmp_path / "x.whl"), str(tmp_path / "y.whl"), "--into", str(tmp_path / "r.json")]
    assert main(given) == 1
    output = capsys.readouterr().out
    assert "0.960 !" in output and "0.980 " in output and "1 of 2 cells below 0.97" in output
    assert json.loads((tmp_path / "r.json").read_text())["wheels"]["b"]["median"] == 0.98
    del found["a"]
    assert main(given) == 0
    found["c"] = "before: not built"
    assert main(given) == 1 and "before: not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "is no wheel"), ({"x.py": ""}, "is no wheel of oxistep with its benchmark")],
    ids=["not a zip", "another package"],
)
def test_what_is_no_wheel_is_refused(tmp_path, capsys, content, told):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"no zip")
    if content is not None:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    assert main(["wheels", str(wheel), str(wheel)]) == 1
    errors = capsys.readouterr().err
    assert told in errors and "Traceback" not in errors


def test_a_process_that_ends_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "WORKER", "raise SystemExit(3)")
    workers = {name: wheels.Worker(tmp_path) for name in (wheels.BEFORE, wheels.AFTER)}
    try:
        with pytest.raises(RefusalError, match="ended with status 3"):
            wheels.timed(workers, CELL, 1e-9, 1)
    finally:
        for worker in workers.values():
            worker.end()


def test_no_cell_is_refused(tmp_path, capsys):
    (tmp_path / "x.whl").touch()
    assert main(["wheels", str(tmp_path / "x.whl"), str(tmp_path / "x.whl"), "--only", "nothing"]) == 1
    assert "no cell has 'nothing' in its name" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.whole
def test_the_installed_package_beside_itself(tmp_path, capsys):
    package = Path(oxistep.__file__).parent
    wheel = tmp_path / "oxistep.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in package.rglob("*"):
            if "__pycache__" not in file.parts:
                archive.write(file, Path("oxistep") / file.relative_to(package))
    options = ["--only", str(CELL), "--seconds", "0.01", "--builds", "1", "--into", str(tmp_path / "r.json")]
    main(["wheels", str(wheel), str(wheel), *options])  # its status is which of the two was faster
    told = json.loads((tmp_path / "r.json").read_text())["wheels"]
    assert list(told) == [str(CELL)] and told[str(CELL)]["median"] > 0
    assert str(CELL) in capsys.readouterr().out
