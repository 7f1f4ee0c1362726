"""docs/experiments.md says how to repeat what it tells: files, texts to be changed and commands are there."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
REPEATED = PAGE.split("## How to repeat them\n")[1].split("\n## ")[0]
COMMANDS = re.findall(r"`([^`]+)`", REPEATED)
CHANGES = [shlex.split(command) for command in COMMANDS if " --change " in command]

spec = importlib.util.spec_from_file_location("variant", ROOT / "benches" / "experiments" / "variant.py")
variant = importlib.util.module_from_spec(spec)
spec.loader.exec_module(variant)


@pytest.mark.parametrize("words", CHANGES, ids=lambda words: words[words.index("--change") + 2])
def test_what_is_to_be_changed_stands_there_once(words, tmp_path):
    file, old, new = words[words.index("--change") + 1 :][:3]
    copy = tmp_path / file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    variant.change(tmp_path, file, old, new)
    assert new in copy.read_text(encoding="utf-8")


def test_cells_that_are_asked_for_exist():
    pytest.importorskip("torch")
    pytest.importorskip("rich")
    from oxistep.bench import plan

    for words in (shlex.split(command) for command in COMMANDS if " --only " in command and "variant.py" in command):
        cells = plan.quick() if "--quick" in words else plan.full()
        wanted = words[words.index("--only") + 1]
        assert any(wanted in str(cell) for cell in cells), wanted


def test_commands_of_the_benchmark_exist():
    from oxistep.bench import __main__ as bench

    named = {match[1] for command in COMMANDS if (match := re.match(r"oxistep bench ([a-z]\S*)", command))}
    assert named and named <= set(bench.COMMANDS)


def test_scripts_explain_themselves():
    scripts = {path.name for path in (ROOT / "benches" / "experiments").glob("*.py")}
    assert {name for name in scripts if name not in REPEATED} == set(), "the page does not name it"
    for name in scripts:
        command = [sys.executable, str(ROOT / "benches" / "experiments" / name), "--help"]
        assert "docs/experiments.md" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_section_is_repeated_or_said_not_to_be():
    titles = re.findall(r"^## (.*?) \(\d{4}-", PAGE, re.M)
    said = re.split(r"[|;,:]", REPEATED)
    for title in titles:
        assert any(part.strip() and title.startswith(part.strip()) for part in said), title


def test_a_change_that_is_not_there_or_twice_is_refused(tmp_path):
    (tmp_path / "a.rs").write_text("x = 1; x = 1;", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"stands in a\.rs 2 times, not once"):
        variant.change(tmp_path, "a.rs", "x = 1", "x = 2")
    with pytest.raises(SystemExit, match=r"stands in a\.rs 0 times"):
        variant.change(tmp_path, "a.rs", "y = 1", "y = 2")
    with pytest.raises(SystemExit, match=r"there is no b\.rs"):
        variant.change(tmp_path, "b.rs", "x", "y")
    assert (tmp_path / "a.rs").read_text(encoding="utf-8") == "x = 1; x = 1;"


def test_the_working_tree_is_copied_as_it_is(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / ".gitignore").write_text("ignored\n", encoding="utf-8")
    for name in ("kept", "new", "ignored"):
        (tree / name).write_text("old", encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tree)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", ".gitignore", "kept"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)
    (tree / "kept").write_text("changed", encoding="utf-8")
    monkeypatch.setattr(variant, "ROOT", tree)
    variant.take_tree(None, tmp_path / "now")
    variant.take_tree("HEAD", tmp_path / "then")
    assert (tmp_path / "now" / "kept").read_text(encoding="utf-8") == "changed"
    assert {path.name for path in (tmp_path / "now").iterdir()} == {".gitignore", "kept", "new"}
    assert (tmp_path / "then" / "kept").read_text(encoding="utf-8") == "old"
    assert {path.name for path in (tmp_path / "then").iterdir()} == {".gitignore", "kept"}
