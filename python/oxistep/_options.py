"""Values of options on command lines, refused by argparse with a sentence where they make no sense."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path


def count(text: str) -> int:
    """A positive whole number."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return value


def positive(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def share(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share, a number from 0 to below 1, got {text!r}")
    return value


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def new_file(text: str) -> Path:
    """A path that can become a file; folders that are missing are made when it is written."""
    path = Path(text)
    _no_folder(text)
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{str(existing)!r} is not a folder")
    if not os.access(path if path.exists() else existing, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: permission denied")
    return path


def present_file(text: str) -> Path:
    """A file that is there."""
    _no_folder(text)
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def _no_folder(text: str) -> None:
    if not text:
        raise argparse.ArgumentTypeError("a file is wanted, got an empty name")
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, a file is wanted")
