"""The program ``oxistep``, also ``python -m oxistep``: `docs/command-line.md`.

Parsed by argparse, because ``oxistep info`` and every help must work where no extra is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from types import ModuleType

from oxistep import __version__
from oxistep.cli import bench, demo, explain, info, trajectories
from oxistep.cli._terminal import RefusalError, UsageError

COMMANDS: dict[str, ModuleType] = {
    "info": info,
    "bench": bench,
    "demo": demo,
    "trajectories": trajectories,
    "explain": explain,
}
EXIT_CODES = "exit status: 0 done, 1 failed (a check, or something is missing), 2 bad usage"


def parser() -> argparse.ArgumentParser:
    """The program's parser, one subparser for each command."""
    made = argparse.ArgumentParser(
        prog="oxistep",
        description="The optimizer step of PyTorch and NumPy training on the CPU, in Rust.",
        epilog=f"oxistep COMMAND --help tells about each. {EXIT_CODES}.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"oxistep {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_options(one)
        one.set_defaults(usage_of=one)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: what follows the program's name. Default: ``sys.argv[1:]``.

    Returns:
        int: the exit status: 0 done, 1 failed, 130 interrupted.

    Raises:
        SystemExit: with 2 for bad usage, with 0 after a help.

    Example:
        >>> from oxistep.cli import main
        >>> main(["info", "--json"])  # doctest: +ELLIPSIS
        {
        ...
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.argv = argv
    code = 1
    try:
        code = COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except UsageError as error:
        options.usage_of.error(str(error))
    except RefusalError as error:
        print(f"oxistep {options.command}: {error}", file=sys.stderr)
    except BrokenPipeError:  # as when `head` has seen enough; Python would complain once more while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"oxistep {options.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"oxistep {options.command}: interrupted", file=sys.stderr)
        code = 130
    return code
