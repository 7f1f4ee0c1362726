"""The file of results: JSON, written after every cell, so that an interrupted run keeps what it has.

Top level: `command`, `environment` and `cells` of `run`, and what the other commands add under
their own names: `memory`, `release`, `threads`, `end_to_end`, `distributed`, `offload`,
`rules`, `zoo`, `compact`, `averages`, `numpy`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .._options import new_file, present_file

SCHEMA = 2


def read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:  # neither text nor JSON
        content = None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of this benchmark (expected schema {SCHEMA}); measure again")
    return content


def present(text: str) -> Path:
    """An option's value: a file of results with measured cells."""
    path = present_file(text)
    if "cells" not in _checked(path):
        raise argparse.ArgumentTypeError(f"{text!r} has no cells: `run --output` writes them")
    return path


def extensible(text: str) -> Path:
    """An option's value: a file of results to add to, refused before hours were spent on what to add."""
    path = new_file(text)
    if path.exists():
        _checked(path)
    return path


def command(description: str | None, program: str | None, section: str) -> argparse.ArgumentParser:
    """The parser of a command that can add a section to a file of results."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--into", type=extensible, metavar="FILE", help=f"add the section `{section}` to this file of results"
    )
    return parser


def _checked(path: Path) -> dict[str, Any]:
    try:
        return read(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file at once: whoever reads it sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps({"schema": SCHEMA} | content, indent=1) + "\n")
    beside.replace(path)


def add(path: Path, section: str, content: Any) -> None:
    """Add a section to a file of results, or begin one."""
    write(path, (read(path) if path.exists() else {}) | {section: content})
