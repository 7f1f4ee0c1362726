"""The scripts of examples/: the same results as with torch.optim, the known figures, and they run.

`examples/expected.py` has the figures; the demo uses the same.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))
expected = importlib.import_module("expected")

SCRIPTS = expected.SCRIPTS
NAMES = [script.name for script in SCRIPTS]
FIGURES = [(script, figure) for script in SCRIPTS for figure in script.figures]

examine = functools.cache(expected.examine)  # the trainings run once for all tests


# One thread, for the reason given in expected.one_thread.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def python(*arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_every_script_is_listed():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*NAMES, "demo", "expected"}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in scripts if f"| `{name}.py` |" not in readme]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_result_is_torchs(script):
    assert examine(script).too_far == []


@pytest.mark.parametrize(("script", "figure"), FIGURES, ids=[f"{s.name}-{f.what}" for s, f in FIGURES])
def test_figure(script, figure):
    value = figure.get(examine(script).ours)
    assert figure.holds(value), f"{figure.show(value)}, expected {figure.show_expected()}"


# Importing what the first optimizer of a process needs takes torch several seconds. So one process runs all
# scripts, each with a namespace of its own and without examples/ on the path, as if it were alone.
RUN_ALL = """
import contextlib, io, json, runpy, sys, traceback
scripts, outcome = sys.argv[1:], {}
for script in scripts:
    sys.argv, error = [script], ""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            error = traceback.format_exc()
    outcome[script] = [output.getvalue(), error]
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def scripts_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("somewhere")
    paths = [EXAMPLES / f"{name}.py" for name in NAMES]
    process = python("-c", RUN_ALL, *paths, cwd=folder)
    assert process.returncode == 0, process.stderr
    outcome = json.loads(process.stdout.splitlines()[-1])
    return folder, {Path(path).stem: result for path, result in outcome.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_script_runs(scripts_run, name):
    folder, outcome = scripts_run
    output, error = outcome[name]
    assert not error, error
    assert len(output.splitlines()) >= 2
    if name == "case_e_bowl":
        assert (folder / "bowl.png").stat().st_size > 10_000


def test_numpy_line_runs_without_torch(tmp_path):
    hide_torch = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    process = python("-c", hide_torch, EXAMPLES / "numpy_line.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "after 20 steps" in process.stdout


@pytest.mark.slow
def test_demo_runs(tmp_path):
    pytest.importorskip("rich")
    process = python(EXAMPLES / "demo.py", "--output", "here", "--no-benchmark", cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert (tmp_path / "here" / "bowl.png").stat().st_size > 10_000
    assert "FAIL" not in process.stdout


# A check that cannot fail is none: the comparison is given wrong results.


def test_wrong_result_is_seen(monkeypatch):
    script = SCRIPTS[NAMES.index("case_a_line")]

    def train(script, library):
        return {"error_left": 0.012, "weights": [1.0, 2.0 if library == "torch" else 2.0001, float("nan")]}

    monkeypatch.setattr(expected, "train", train)
    report = expected.examine(script)
    assert report.largest_difference == pytest.approx(1e-4)
    assert report.too_far == ["['weights'][1]: 2.0001 instead of 2.0"]


def test_wrong_figure_is_seen():
    figure = expected.Figure("end", lambda r: r, [0.53048, 0.0], 6e-6)
    assert figure.holds([0.530484, -0.000004])
    assert not figure.holds([0.53050, 0.0])
    assert not figure.holds([float("nan"), 0.0])
    assert not expected.Figure("flag", lambda r: r, True).holds(False)


def test_demo_reports_a_failure():
    pytest.importorskip("rich")
    demo = importlib.import_module("demo")
    reports = {script.name: examine(script) for script in SCRIPTS}
    assert demo.tabulate(reports)[1] == []
    good = reports["case_a_line"]
    reports["case_a_line"] = expected.Report({**good.ours, "error_left": 0.5}, good.theirs, good.count, 0.488, ["x"])
    failures = demo.tabulate(reports)[1]
    assert failures[0] == "case_a_linex"
    assert "part of the error left is 0.5" in failures[1]
