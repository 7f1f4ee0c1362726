"""The program `oxistep`: helps, refusals, exit statuses, JSON, what it says where something is not installed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fresh
import oxistep
from oxistep.bench import results
from oxistep.cli import COMMANDS, main, parser

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

ESCAPE = "\x1b"


def python(*arguments, missing=(), code="", **environment):
    """A fresh interpreter, from which modules can be missing, and in which `code` runs first."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    code = f"import sys; {hidden}{code}from oxistep.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = list(map(str, arguments))
    environment = {**os.environ, "COLUMNS": "100", **environment}
    if "torch" not in missing:
        return fresh.python(code, *arguments, env=environment)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def here(capsys, *arguments):
    """In this process, where torch is loaded already: exit status, output, errors."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    output, errors = capsys.readouterr()
    return code, output, errors


def json_of(text):
    """Strictly."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# ---- helps and refusals ----


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: " ".join(c) or "oxistep")
def test_help(capsys, command):
    code, output, errors = here(capsys, *command, "--help")
    assert code == 0 and errors == ""
    assert output.startswith(f"usage: {' '.join(['oxistep', *command])} ")
    assert "exit status" in output
    options = re.findall(r"--[a-z-]+", output)
    assert "--help" in options and (not command or "--json" in options)
    assert max(map(len, output.splitlines())) <= 130


def test_without_a_command_it_prints_its_help(capsys):
    code, output, errors = here(capsys)
    assert (code, errors) == (0, "")
    assert output == parser().format_help()
    assert all(name in output for name in COMMANDS)


def test_help_needs_nothing_that_could_be_missing():
    done = python("bench", "--help", missing=["torch", "rich", "matplotlib", "jinja2"])
    assert done.returncode == 0 and "--workload" in done.stdout, done.stderr


def test_every_option_has_a_help():
    for action in parser()._subparsers._group_actions[0].choices.values():
        assert all(option.help for option in action._actions)


@pytest.mark.parametrize(("arguments", "message"), [
    (["nonsense"], "invalid choice: 'nonsense'"),
    (["info", "--jsn"], "unrecognized arguments: --jsn"),
    (["info", "--js"], "unrecognized arguments: --js"),
    (["bench", "--threads", "0"], "--threads: expected a positive whole number, got '0'"),
    (["bench", "--seconds", "nan"], "--seconds: expected a positive number, got 'nan'"),
    (["bench", "--minutes", "-1"], "--minutes: expected a positive number"),
    (["bench", "--workload", "none"], "--workload: invalid choice: 'none'"),
    (["bench", "--quick", "--brief"], "not allowed with argument"),
    (["bench", "--quick", "--workload", "flat"], "no such cell"),
    (["bench", "--output", "."], "is a folder"),
    (["bench", "--output", ""], "a file is wanted, got an empty name"),
    (["bench", "--workload", "mlp", "--optimizer", "SparseAdam"], "SparseAdam takes sparse gradients alone"),
    (["bench", "--workload", "mlp", "--optimizer", "Muon"], "Muon takes matrices alone"),
    (["bench", "--workload", "embedding", "--optimizer", "Adam"], "Adam takes no sparse gradients"),
    (["trajectories"], "required: --output"),
    (["trajectories", "--output", "x.txt"], "must end in one of"),
    (["trajectories", "--output", "x.png", "--steps", "ten"], "--steps: expected a positive whole number"),
    (["trajectories", "--output", "x.png", "--start", "1", "inf"], "--start: expected a number, got 'inf'"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adam,lr"], "'lr' is no argument=value"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adam,lr=os"], "Adam: the argument lr has the value 'os'"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adam,eps=0,lr=abc"], "argument lr has the value 'abc'"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adma"], "oxistep.optim has no 'Adma'; it has ASGD"),
    (["trajectories", "--output", "x.png", "--optimizer", "zoo.Leon"], "oxistep.zoo has no 'Leon'; it has ADOPT"),
    (["trajectories", "--output", "x.png", "--optimizer", "zoo.SAM"], "oxistep.zoo has no 'SAM'; it has ADOPT"),
    (["trajectories", "--output", "x.png", "--library", "torch", "--optimizer", "zoo.Lion"], "torch has none"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adam,lrr=1"], "has no argument 'lrr'; it has lr, betas"),
    (["trajectories", "--output", "x.png", "--optimizer", "zoo.Lion,lrr=1"], "zoo.Lion has no argument 'lrr'; it"),
    (["trajectories", "--output", "x.png", "--library", "numpy", "--optimizer", "Adam,lrr=1"], "no argument 'lrr'"),
    (["trajectories", "--output", "x.png", "--optimizer", "Adam,lr=-1"], "Invalid learning rate"),
    (["trajectories", "--output", "x.png", "--library", "numpy", "--optimizer", "LBFGS"], "has no 'LBFGS'"),
    (["trajectories", "--output", "x.png", "--optimizer", "SparseAdam"], "does not support dense gradients"),
    (["trajectories", "--output", "x.png", "--start", "1e300", "0"], "that float32 can hold"),
    (["trajectories", "--output", f"{__file__}/x.png"], "is not a folder"),
    (["explain"], "required: CHECKPOINT"),
    (["explain", "not-there.pt"], "there is no file"),
    (["explain", "."], "is a folder"),
])  # fmt: skip
def test_bad_usage(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    code, output, errors = here(capsys, *arguments)
    assert code == 2 and output == ""
    assert errors.startswith("usage: oxistep") and message in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "missing", "packages"), [
    (["bench", "--brief"], ["torch"], "'torch>=2.10'"),
    (
        ["bench", "--brief", "--html", "x.html"],
        ["torch", "rich", "jinja2", "matplotlib"],
        "'torch>=2.10' rich jinja2 matplotlib",
    ),
    (["demo"], ["torch"], "'torch>=2.10'"),
    (["trajectories", "--output", "x.png"], ["matplotlib", "torch"], "matplotlib"),
    (["trajectories", "--output", "x.png", "--library", "torch"], ["torch"], "'torch>=2.10'"),
    (["explain", __file__], ["rich", "torch"], "'torch>=2.10' rich"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else x)  # fmt: skip
def test_missing_packages_are_named(command, missing, packages):
    done = python(*command, missing=missing)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"oxistep {command[0]}: this needs ")
    assert done.stderr.endswith(f"pip install {packages}\n") and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_output_that_may_not_be_written(capsys, tmp_path):
    tmp_path.chmod(0o500)
    code, _, errors = here(capsys, "bench", "--output", tmp_path / "r.json")
    assert code == 2 and "permission denied" in errors


def test_forbidden_outputs_are_asked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, errors = here(capsys, "bench", "--output", tmp_path / "r.json")
    assert code == 2 and "cannot be written: permission denied" in errors


def test_without_standard_output():
    """As under pythonw, or in a service."""
    done = python("info", missing=["torch"], code="sys.stdout = None; ")
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupted(capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["info"], "run", interrupt)
    assert here(capsys, "info") == (130, "", "oxistep info: interrupted\n")


def test_an_output_that_nobody_reads():
    done = subprocess.run(
        f"{sys.executable} -c 'import sys; sys.modules[\"torch\"] = None; from oxistep.cli import main;"
        " sys.exit(main([\"bench\", \"--help\"]) or main([\"info\"]))' | true",
        shell=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_the_console_script_is_the_same():
    script = Path(sys.executable).with_name("oxistep")
    if not script.exists():
        pytest.skip("not installed with its scripts")
    for command in ([script], [sys.executable, "-m", "oxistep"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout == f"oxistep {oxistep.__version__}\n"


# One training instead of four, and no picture: for what has nothing to do with them.
QUICK_DEMO = """
from oxistep.cli import _cases, demo
title, training = next(iter(_cases.CASES.items()))
_cases.CASES = {title: training}
demo._picture = lambda folder: None
"""


@pytest.fixture
def quick_demo(monkeypatch):
    from oxistep.cli import _cases, demo

    monkeypatch.setattr(_cases, "CASES", _cases.CASES)
    monkeypatch.setattr(demo, "_picture", demo._picture)
    exec(QUICK_DEMO)


# ---- the documentation ----

ROOT = Path(__file__).resolve().parents[1]
COMMANDS_SHOWN = [
    line
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("oxistep ")
]


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS_SHOWN))
def test_commands_of_the_pages(line, capsys, tmp_path, monkeypatch, quick_demo):
    """All are understood; all are run but measurements, and animations, which have a test of their own."""
    monkeypatch.chdir(tmp_path)
    torch.save(torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(), "checkpoint.pt")
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] == "bench" and arguments[1:] and not arguments[1].startswith("-"):
        code, output, errors = here(capsys, "bench", arguments[1], "--help")
        assert (code, errors) == (0, "")
        assert output.startswith(f"usage: oxistep bench {arguments[1]} ")
        assert all(word in output for word in arguments if word.startswith("-"))
        return
    options = parser().parse_args(arguments)
    if options.command == "bench":
        from oxistep.bench import run

        assert run.planned(options).cells
    elif ".gif" not in line:
        code, output, errors = here(capsys, *arguments)
        assert (code, errors) == (0, "") and output


def test_commands_of_the_pages_are_found():
    assert {line.split()[1] for line in COMMANDS_SHOWN} == set(COMMANDS)


# ---- info ----


def test_info(capsys):
    code, output, errors = here(capsys, "info")
    assert code == 0 and errors == ""
    for text in (oxistep.__version__, torch.__version__, np.__version__, oxistep.cpu_features()["simd"]):
        assert text in output
    code, output, _ = here(capsys, "info", "--json")
    found = json_of(output)
    assert found["threads"] == oxistep.get_num_threads()
    assert found["native"]["oxistep.optim"]["Adam"]["float32"] == "native"
    assert len(found["native"]["oxistep.optim"]) == 15
    assert found["native"]["oxistep.zoo"]["Lion"]["bfloat16"] == "native"
    assert found["native"]["oxistep.numpy"] == sorted(
        [
            "ASGD",
            "Adadelta",
            "Adagrad",
            "Adam",
            "AdamW",
            "Adamax",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
            "SGD",
            "SparseAdam",
        ]
    )


def test_info_says_what_a_variable_changes():
    done = python("info", missing=["torch"], OXISTEP_SIMD="baseline", OMP_NUM_THREADS="1")
    assert "baseline, forced by OXISTEP_SIMD" in done.stdout and "OMP_NUM_THREADS=1" in done.stdout


def test_info_where_native_code_is_switched_off():
    found = json_of(python("info", "--json", OXISTEP_BACKEND="torch").stdout)
    assert found["native"]["oxistep.optim"]["Adam"]["float32"].startswith("torch: ")


def test_info_needs_numpy_alone():
    done = python("info", missing=["torch", "rich", "matplotlib", "jinja2"])
    assert done.returncode == 0, done.stderr
    assert "not installed: pip install 'torch>=2.10'" in done.stdout
    done = python("info", "--json", missing=["torch", "rich", "matplotlib", "jinja2"])
    assert json_of(done.stdout)["torch"] is None


# ---- bench, demo, trajectories ----

ONE_CELL = ["--workload", "seven", "--optimizer", "SGD", "--dtype", "float32", "--no-compile", "--seconds", "0.01"]


def test_bench(capsys, tmp_path):
    files = ["--output", tmp_path / "r.json", "--html", tmp_path / "r.html"]
    code, output, _ = here(capsys, "bench", *ONE_CELL, *files)
    assert code == 0 and "seven" in output and "for-loop" in output and ESCAPE not in output
    content = results.read(tmp_path / "r.json")
    assert content["command"].startswith("oxistep bench --workload seven")
    assert "7 floats" in (tmp_path / "r.html").read_text(encoding="utf-8")
    code, output, _ = here(capsys, "bench", *ONE_CELL, "--json")
    assert code == 0 and json_of(output)["cells"][0]["name"] == "seven-SGD-float32"


def test_other_benchmarks_are_commands_of_bench(capsys):
    code, output, errors = here(capsys, "bench", "rulse")
    assert code == 2 and output == ""
    assert errors.startswith("usage: oxistep bench ") and "invalid choice: 'rulse'" in errors
    _, output, _ = here(capsys, "bench", "--help")
    from oxistep.bench import __main__ as bench

    assert all(name in output for name in bench.COMMANDS if name != "run")


def test_demo(capsys, tmp_path):
    code, output, errors = here(capsys, "demo", "--no-benchmark", "--output", tmp_path / "made")
    assert code == 0 and errors == "" and ESCAPE not in output
    assert output.count(" agrees ") == 4 and "DIFFERS" not in output
    assert (tmp_path / "made" / "bowl.png").stat().st_size > 10_000


WIDEST = 100  # columns of a terminal


def test_what_is_printed_fits_a_terminal(capsys, tmp_path):
    torch.save(torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(), tmp_path / "c.pt")
    for command in (
        ["info"],
        ["demo", "--no-benchmark", "--output", "d"],
        ["explain", str(tmp_path / "c.pt"), "--all"],
    ):
        command = [str(tmp_path / word) if word == "d" else word for word in command]
        code, output, _ = here(capsys, *command)
        assert code == 0 and len(output.splitlines()) > 3
        own = [line for line in output.splitlines() if str(tmp_path) not in line]  # a path may be as long as it is
        assert max(map(len, own)) <= WIDEST, max(own, key=len)


@pytest.mark.skipif(sys.platform == "win32", reason="there it is another folder")
def test_demo_says_where_it_cannot_write(capsys, quick_demo):
    code, output, errors = here(capsys, "demo", "--output", "/dev/null/x")
    assert (code, output) == (1, "")
    assert errors.startswith("oxistep demo: --output: the folder /dev/null/x cannot be made (")
    assert errors.endswith("name one that can be written\n")


def test_demo_as_json(capsys, tmp_path, quick_demo):
    code, output, _ = here(capsys, "demo", "--json", "--output", tmp_path / "made")
    assert code == 0 and json_of(output)["agree"] is True
    code, _, errors = here(capsys, "demo", "--output", __file__)
    assert code == 1 and "is not a folder" in errors


def test_demo_sees_a_wrong_result(capsys, tmp_path, monkeypatch, quick_demo):
    from oxistep.cli import _cases

    compared, right = _cases.CASES["a straight line, SGD with momentum"]
    wrong = lambda optim: [x + 1e-4 * (optim is not torch.optim) for x in right(optim)]  # noqa: E731
    monkeypatch.setattr(_cases, "CASES", {"a line": (compared, wrong)})
    code, output, _ = here(capsys, "demo", "--no-benchmark", "--output", tmp_path)
    assert code == 1 and "DIFFERS" in output
    monkeypatch.setattr(_cases, "CASES", {"a line": ("losses", lambda optim: [float("nan")])})
    assert here(capsys, "demo", "--json", "--output", tmp_path)[0] == 1


def test_trajectories(capsys, tmp_path):
    two = ["--optimizer", "Adam,lr=0.1", "--optimizer", "SGD,lr=3,momentum=0.9", "--steps", "60"]
    code, output, errors = here(capsys, "trajectories", "--output", tmp_path / "deep" / "er.png", *two)
    assert code == 0 and errors == ""
    first, second, last = output.splitlines()
    assert first.startswith("Adam, lr 0.1 ") and "ends at (" in first
    assert second.startswith("SGD, lr 3, momentum 0.9") and "not finite in step " in second
    assert last == f"written: {tmp_path / 'deep' / 'er.png'}"
    assert (tmp_path / "deep" / "er.png").stat().st_size > 10_000


@pytest.mark.parametrize("library", ["oxistep", "torch", "numpy"])
def test_trajectories_of_every_library(capsys, tmp_path, library):
    code, output, _ = here(
        capsys, "trajectories", "--output", tmp_path / "x.svg", "--library", library, "--json", "--together"
    )
    paths = json_of(output)["paths"]
    assert code == 0 and len(paths) == 8
    np.testing.assert_allclose(paths["Adagrad, lr 0.1"]["end"], [2.32355, 1.39497], atol=6e-6)


@pytest.mark.parametrize("library", ["oxistep", "numpy"])
def test_trajectories_of_the_zoo(capsys, tmp_path, library):
    chosen = {"zoo.Lion,lr=0.1": 0.1, "zoo.AdamWScheduleFree,lr=0.3": 0.05, "zoo.AdamW,lr=0.1": 0.1}
    options = [word for one in chosen for word in ("--optimizer", one)]
    code, output, _ = here(
        capsys,
        "trajectories",
        "--output",
        tmp_path / "x.svg",
        "--library",
        library,
        "--json",
        "--steps",
        "200",
        *options,
    )
    assert code == 0
    for path, close in zip(json_of(output)["paths"].values(), chosen.values(), strict=True):
        assert not path["diverged"]
        np.testing.assert_allclose(path["end"], 0, atol=close)


@pytest.mark.parametrize("function", ["rosenbrock", "himmelblau", "beale", "saddle"])
def test_trajectories_of_every_function(capsys, tmp_path, function):
    options = ["--function", function, "--steps", "20", "--optimizer", "Adam,lr=0.1"]
    assert here(capsys, "trajectories", "--output", tmp_path / "x.png", *options)[0] == 0


def test_no_colour_where_it_is_not_a_terminal(tmp_path):
    """Nor bars: neither stream has an escape code, even where the environment asks for a terminal's width."""
    done = python("demo", "--no-benchmark", "--output", tmp_path, code=QUICK_DEMO, TERM="xterm-256color")
    assert done.returncode == 0 and " agrees " in done.stdout
    assert ESCAPE not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colour", [True, False])
def test_colour_on_a_terminal_unless_no_color(tmp_path, colour):
    import pty

    ours, theirs = pty.openpty()
    torch.save(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).state_dict(), tmp_path / "c.pt")
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    environment |= {"TERM": "xterm-256color"} | ({} if colour else {"NO_COLOR": "1"})
    code = "from oxistep.cli._terminal import console; console().print('[red]word[/]')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment)
    assert process.wait(timeout=120) == 0
    os.close(theirs)
    written = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "word" in written and (f"{ESCAPE}[31m" in written) == colour
