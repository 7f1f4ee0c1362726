"""The options of `run`. Nothing here needs torch, so that the help is there where torch is missing."""

from __future__ import annotations

import argparse

from .._options import count, new_file, positive
from .optimizer_table import OPTIMIZERS
from .workloads import DTYPES, STRIDED, WORKLOADS


def add_options(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under two minutes")
    size.add_argument("--brief", action="store_true", help="a handful of cells, under half a minute")
    for option, table in (
        ("workload", list(WORKLOADS)),
        ("optimizer", list(OPTIMIZERS)),
        ("dtype", DTYPES),
    ):
        parser.add_argument(
            f"--{option}",
            action="append",
            choices=table,
            metavar=option.upper(),
            help=f"only this (repeatable); one of {', '.join(shown(table))}",
        )
    parser.add_argument("--seconds", type=positive, help="timing of one cell; default: what suits its size")
    parser.add_argument("--minutes", type=positive, help="stop when this is spent, and name the cells left out")
    parser.add_argument("--threads", type=count, help="torch.set_num_threads; default: torch's own")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile'd steps too; default: not with --quick and --brief, as compiling takes long",
    )
    parser.add_argument("--output", type=new_file, metavar="FILE", help="write everything here, as JSON")
    parser.add_argument(
        "--html", type=new_file, metavar="FILE", dest="page", help="write a page with figures here, as one HTML file"
    )
    parser.add_argument("--page", type=new_file, dest="page", help=argparse.SUPPRESS)  # its name before
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    form.add_argument("--json", action="store_true", help="print the content of the file of results, and nothing else")


def shown(names: list[str]) -> list[str]:
    """Families of names in short."""

    def short(name: str) -> str:
        family = name.rpartition("_")[0]
        if name in STRIDED:
            return f"{family}_<size>"
        return f"{family}_<n>" if family in ("size", "tensors") else name

    return list(dict.fromkeys(map(short, names)))
