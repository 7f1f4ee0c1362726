"""The pictures of docs/memory.md are made by its script."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_guides_pictures_are_made(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("memory_pictures", DOCS / "memory_pictures.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["memory_pictures.py", str(tmp_path), "--short"])
    script.main()
    made = {path.name for path in tmp_path.iterdir()}
    assert all((tmp_path / name).stat().st_size > 5000 for name in made)
    linked = re.findall(r"\]\(images/(memory\w+\.png)\)", (DOCS / "memory.md").read_text(encoding="utf-8"))
    assert set(linked) == made and all((DOCS / "images" / name).exists() for name in made)


def test_the_pictures_show_what_the_page_says(monkeypatch):
    """bfloat16 rounded to nearest does not move; every mode does, as float32 does."""
    spec = importlib.util.spec_from_file_location("memory_pictures", DOCS / "memory_pictures.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(script)
    ends = {name: script.way(settings, 300)[-1] for name, settings in script.WEIGHTS.items()}
    assert ends.pop("bfloat16, rounded to nearest") == 1.0
    wanted = ends.pop("float32 weights")
    assert all(abs(end - wanted) < 2**-8 for end in ends.values()), ends
