"""The program ``oxistep``, also ``python -m oxistep``: `docs/command-line.md`.

Parsed by argparse, because ``oxistep info`` and every help must work where no extra is installed.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from oxistep import __version__
from oxistep.cli import bench, demo, explain, info, trajectories
from oxistep.cli._terminal import UsageError, ended

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
        description="Fast optimizers for PyTorch and NumPy on the CPU: measure, compare, look into checkpoints.",
        epilog=f"oxistep COMMAND --help explains a command. {EXIT_CODES}.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"oxistep {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
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
        int: the exit status: 0 done (also if there is no command, which prints the help), 1 failed, 130 interrupted.

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
    if argv[:1] == ["bench"] and argv[1:2] and not argv[1].startswith("-"):
        from oxistep.bench.__main__ import main as one_of_the_benchmarks

        return one_of_the_benchmarks(argv[1:], "oxistep bench")
    parsing = parser()
    options = parsing.parse_args(argv)
    if options.command is None:
        parsing.print_help()
        return 0
    options.argv = argv
    code = 2
    try:
        code = ended(f"oxistep {options.command}", lambda: COMMANDS[options.command].run(options))
    except UsageError as error:
        options.usage_of.error(str(error))
    return code
