"""The file of results: JSON, written after every cell, so that an interrupted run keeps what it has.

Top level: `command`, `environment` and `cells` of `run`, and what the other commands add under
their own names: `memory`, `threads`, `end_to_end`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = 2


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of this benchmark (expected schema {SCHEMA}); measure again")
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file at once: whoever reads it sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps({"schema": SCHEMA} | content, indent=1) + "\n")
    beside.replace(path)


def add(path: Path, section: str, content: Any) -> None:
    """Add a section to a file of results, or begin one."""
    write(path, (read(path) if path.exists() else {}) | {section: content})
