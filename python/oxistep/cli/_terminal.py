"""What the commands have in common: refusals, extras that may be missing, output."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# What pip calls the modules that are not installed with oxistep itself.
PACKAGES = {"torch": "'torch>=2.10'"}


class RefusalError(Exception):
    """The command cannot do what was asked; printed without a traceback, exit status 1."""


class UsageError(Exception):
    """Arguments that do not go together; printed below the usage, exit status 2."""


def ended(program: str, command: Callable[[], int]) -> int:
    """Run a command to its exit status; what stops it is one line on the error stream, never a traceback."""
    code = 1
    try:
        code = command()
        if sys.stdout is not None:  # as it is where the program was started without one
            sys.stdout.flush()
    except RefusalError as error:
        print(f"{program}: {error}", file=sys.stderr)
    except BrokenPipeError:  # as when `head` has seen enough; Python would complain once more while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        code = 130
    return code


def need(*modules: str) -> None:
    """Refuse, with the command that installs them, if any of these is missing."""
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            missing.append(module)
    if missing:
        packages = " ".join(PACKAGES.get(module, module) for module in missing)
        raise RefusalError(f"this needs {' and '.join(missing)}, not installed here: pip install {packages}")


def print_json(content: Any) -> None:
    """For scripts: strict JSON, so NaN and infinity must have been turned into something else."""
    json.dump(content, sys.stdout, indent=2, allow_nan=False)
    print()


def console() -> Console:
    """Where results go. No colour where it is not a terminal, or NO_COLOR is set."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def progress() -> Progress:
    """A bar on the error stream, gone when done; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    errors = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
