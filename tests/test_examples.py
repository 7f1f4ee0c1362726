"""The scripts of examples/: the same results as with torch.optim, the known figures, and they run.

`examples/expected.py` has the figures; the demo uses the same.
"""

import functools
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import brief
import fresh

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))
expected = importlib.import_module("expected")

SCRIPTS = expected.SCRIPTS
NAMES = [script.name for script in SCRIPTS]
# Those that let the user choose whose optimizer it is, and print what a step takes: arguments that make them short.
TIMED = {
    "small_gpt": ("torch", ["--steps", "4", "--width", "16", "--layers", "1", "--context", "16", "--batch", "2"]),
    "digits_mlp": ("torch", ["--epochs", "1", "--width", "16"]),
    "numpy_logistic": ("hand", ["--steps", "20"]),
}
FIGURES = [(script, figure) for script in SCRIPTS for figure in script.figures]

# In a brief run the longest training is a tenth as long; what it ends with is left to the whole run and to the demo.
CLIPPED = importlib.import_module("case_d_clipping")
CLIPPED_STEPS = brief.number(whole=10_000, brief=1_000)


@functools.cache
def examine(script):
    """The trainings run once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPPED, "clipped", functools.partial(CLIPPED.clipped, steps=CLIPPED_STEPS))
        return expected.examine(script)


def _marks(figure):
    return [pytest.mark.whole] if "10,000 steps" in figure.what else []


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
    assert scripts == {*NAMES, *TIMED, "demo", "expected"}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in scripts if f"| `{name}.py` |" not in readme]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_result_is_torchs(script):
    assert examine(script).too_far == []


@pytest.mark.parametrize(
    ("script", "figure"), [pytest.param(s, f, marks=_marks(f), id=f"{s.name}-{f.what}") for s, f in FIGURES]
)
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
    paths = [EXAMPLES / f"{name}.py" for name in NAMES if not (brief.ASKED and name in LONG)]
    process = fresh.python(RUN_ALL, *map(str, paths), cwd=folder, env=ENVIRONMENT)
    assert process.returncode == 0, process.stderr
    outcome = json.loads(process.stdout.splitlines()[-1])
    return folder, {Path(path).stem: result for path, result in outcome.items()}


# Take ten times as long as all others together. In a brief run these programs are given the trainings made above.
LONG = ("case_d_clipping", "case_d_recurrent", "batches")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_script_runs(scripts_run, name, monkeypatch, capsys):
    folder, outcome = scripts_run
    if name in outcome:
        output, error = outcome[name]
        assert not error, error
    else:
        script = importlib.import_module(name)
        result = examine(SCRIPTS[NAMES.index(name)]).ours
        monkeypatch.setattr(script, "train", lambda optim: result)
        script.main()
        output = capsys.readouterr().out
    assert len(output.splitlines()) >= 2
    pictures = {"case_e_bowl": "bowl.png", "own_rules": "own_rules.png"}
    if name in pictures:
        assert (folder / pictures[name]).stat().st_size > 10_000


def test_numpy_line_runs_without_torch(tmp_path):
    hide_torch = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    process = python("-c", hide_torch, EXAMPLES / "numpy_line.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "after 20 steps" in process.stdout


@pytest.fixture
def one_thread():
    """More would spin for nothing on pieces as small as these."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("whose", ["oxistep", "the other"])
@pytest.mark.parametrize("name", TIMED)
def test_timed_script_runs(name, whose, monkeypatch, capsys, one_thread):
    other, arguments = TIMED[name]
    whose = other if whose == "the other" else whose
    monkeypatch.setattr(sys, "argv", [name, "--optim", whose, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        rf"{whose}: ([\d.]+) .?s an iteration, ([\d.]+) .?s of it the step of Adam\w? \(([\d.]+)%\)", last
    )
    assert found, last
    iteration, step, share = map(float, found.groups())
    assert 0 < step <= iteration
    assert share == pytest.approx(100 * step / iteration, rel=0.2, abs=1)


@pytest.mark.parametrize(
    ("name", "shorter"), [("small_gpt", {"steps": 30, "width": 32}), ("digits_mlp", {"epochs": 4})]
)
def test_timed_script_learns_as_with_torch(name, shorter, one_thread):
    import torch

    import oxistep.optim

    script = importlib.import_module(name)
    ours, theirs = (script.train(optim, **shorter)["losses"] for optim in (oxistep.optim, torch.optim))
    # the first steps: later ones enlarge what the last place makes different
    assert ours[:5] == pytest.approx(theirs[:5], rel=1e-4)
    assert sum(ours[-3:]) / 3 == pytest.approx(sum(theirs[-3:]) / 3, rel=0.05)
    assert sum(ours[-3:]) / 3 < 0.8 * ours[0]


def test_logistic_learns_as_by_hand():
    import oxistep.numpy

    script = importlib.import_module("numpy_logistic")
    ours, theirs = (script.train(Adam) for Adam in (oxistep.numpy.Adam, script.HandWrittenAdam))
    assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-3, abs=1e-3)
    assert ours["right"] > 0.9


def test_digits_are_all_there():
    pictures, digits = importlib.import_module("digits_mlp").read_digits()
    assert pictures.shape == (1797, 64)
    assert (pictures.min(), pictures.max()) == (0, 1)
    assert sorted(set(digits.tolist())) == list(range(10))


def test_logistic_runs_without_torch(tmp_path):
    hide_torch = (
        "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = python("-c", hide_torch, EXAMPLES / "numpy_logistic.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "of it the step of Adam" in process.stdout


@pytest.mark.slow
@pytest.mark.whole  # `make demo` is the same
def test_demo_runs(tmp_path):
    pytest.importorskip("rich")
    process = python(EXAMPLES / "demo.py", "--output", "here", "--no-benchmark", cwd=tmp_path)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output
    assert (tmp_path / "here" / "bowl.png").stat().st_size > 10_000
    assert "FAIL" not in output and f"All {len(SCRIPTS)} scripts agree" in output


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


def test_demo_reports_a_failure(monkeypatch):
    pytest.importorskip("rich")
    demo = importlib.import_module("demo")
    few = SCRIPTS[:3]
    monkeypatch.setattr(demo, "SCRIPTS", few)
    reports = {script.name: examine(script) for script in few}
    assert demo.tabulate(reports)[1] == []
    good = reports["case_a_line"]
    reports["case_a_line"] = expected.Report({**good.ours, "error_left": 0.5}, good.theirs, good.count, 0.488, ["x"])
    failures = demo.tabulate(reports)[1]
    assert failures[0] == "case_a_linex"
    assert "part of the error left is 0.5" in failures[1]


def refusal(name, *arguments, monkeypatch, capsys):
    """The last line of what a script says before it ends without a training."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name, option", [(name, option) for name in TIMED for option in TIMED[name][1][::2]])
def test_numbers_that_make_no_training_are_refused(name, option, monkeypatch, capsys):
    assert option in refusal(name, option, "0", monkeypatch=monkeypatch, capsys=capsys)


def test_the_width_of_the_gpt_is_a_multiple_of_its_heads(monkeypatch, capsys):
    told = refusal("small_gpt", "--width", "6", monkeypatch=monkeypatch, capsys=capsys)
    assert "--width must be a multiple of 4, got 6" in told
