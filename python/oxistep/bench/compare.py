"""Did anything become slower between two files of results?

    oxistep bench compare old.json new.json

A cell is judged by the ratio to its peer (the best peer of the old file, if it was timed in both), never by absolute
time, so that files from a busy and a quiet hour can be compared. It is slower if the median ratio fell by more than
the threshold and the quartiles of old and new do not overlap. Exit status: 0, 1 if a cell is slower or its result is
wrong, 2 if the files have no cell in common.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from .._options import share
from . import results, tables
from .implementations import OURS
from .tables import plain

THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    cell: str
    peer: str
    old: dict[str, float]  # median, q1, q3
    new: dict[str, float]

    @property
    def relative(self) -> float:
        """Of the ratio: 0.9 means that a tenth was lost."""
        return self.new["median"] / self.old["median"]

    def slower(self, threshold: float) -> bool:
        return self.relative < 1 - threshold and self.new["q3"] < self.old["q1"]

    def faster(self, threshold: float) -> bool:
        return self.relative > 1 / (1 - threshold) and self.new["q1"] > self.old["q3"]


@dataclass(frozen=True)
class Comparison:
    changes: list[Change]
    only_old: list[str]  # measured in the old file alone
    only_new: list[str]
    unpaired: list[str]  # in both, but with no peer in common
    wrong: dict[str, str]  # cells of the new file whose result differs


def compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    before, after = _measured(old), _measured(new)
    common = [name for name in before if name in after]
    peers = {name: _peer(before[name], after[name]) for name in common}
    return Comparison(
        changes=[
            Change(name, peer, before[name]["ratios"][peer], after[name]["ratios"][peer])
            for name, peer in peers.items()
            if peer is not None
        ],
        only_old=[name for name in before if name not in after],
        only_new=[name for name in after if name not in before],
        unpaired=[name for name, peer in peers.items() if peer is None],
        wrong={cell["name"]: cell["wrong"][OURS] for cell in new["cells"] if OURS in cell["wrong"]},
    )


def _measured(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["name"]: cell for cell in content["cells"] if cell.get("ratios")}


def _peer(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The fastest peer of the old file that the new one has as well."""
    both = [peer for peer in old["ratios"] if peer in new["ratios"]]
    return min(both, key=lambda peer: float(old["ratios"][peer]["median"]), default=None)


def differing_machines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes ratios hard to compare."""
    keys = ("cpu", "threads", "torch", "system")
    pairs = [(key, old["environment"][key], new["environment"][key]) for key in keys]
    return [f"{key} differs: {a} and {b}" for key, a, b in pairs if a != b]


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=results.present, help="JSON written by `run` before the change")
    parser.add_argument("new", type=results.present, help="JSON written by `run` after it")
    parser.add_argument(
        "--threshold",
        type=share,
        default=THRESHOLD,
        help="how much of a ratio may be lost, as a share (default: %(default)s)",
    )
    parser.add_argument("--strict", action="store_true", help="a cell that only the old file has is a failure too")
    parser.add_argument("--all", action="store_true", help="list unchanged cells too")
    return parser.parse_args(argv)


def show(found: Comparison, threshold: float, everything: bool, out: Console) -> None:
    slower = [change for change in found.changes if change.slower(threshold)]
    faster = [change for change in found.changes if change.faster(threshold)]
    listed = sorted(found.changes if everything else [*slower, *faster], key=lambda change: change.relative)
    if listed:
        table = plain("cell", "peer", "old ratio", "new ratio", "new / old", "", left=2)
        for change in listed:
            verdict = "slower" if change in slower else "faster" if change in faster else ""
            table.add_row(
                change.cell, change.peer, *map(_ratio, (change.old, change.new)), f"{change.relative:.2f}", verdict
            )
        tables.show(out, table)
    out.print(
        f"{len(found.changes)} cells compared: {len(slower)} slower, {len(faster)} faster (by over {threshold:.0%})"
    )
    for title, names in (
        ("Only in the old file", found.only_old),
        ("Only in the new file", found.only_new),
        ("No peer in common", found.unpaired),
    ):
        if names:
            out.print(f"{title}: {', '.join(names)}")
    for name, why in found.wrong.items():
        out.print(f"Wrong: {name}: {why}")


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    out = Console(highlight=False, soft_wrap=True)
    old, new = results.read(options.old), results.read(options.new)
    for line in differing_machines(old, new):
        out.print(f"! {line}")
    found = compare(old, new)
    show(found, options.threshold, options.all, out)
    slower = any(change.slower(options.threshold) for change in found.changes)
    if slower or found.wrong or (options.strict and found.only_old):
        return 1
    return 0 if found.changes else 2


if __name__ == "__main__":
    sys.exit(main())
