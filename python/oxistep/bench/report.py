"""The printed page: where it ran, one line per cell, and what is missing or wrong."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .implementations import OURS, REFERENCE
from .paired import Ratio
from .probe import DESCRIPTION as PROBE_DESCRIPTION
from .record import CellName, Record
from .tables import plain, show


def print_report(
    records: list[Record],
    left_out: list[CellName],
    where: dict[str, Any],
    command: str,
    markdown: bool = False,
) -> None:
    out = Console(highlight=False, soft_wrap=True)
    features = ", ".join(_names(where["cpu_features"]))
    out.print(
        f"{where['cpu']} · {where['threads']} threads of {where['cores']} · torch {where['torch']} · "
        f"oxistep {where['oxistep']} · Python {where['python']} · {where['date']}\n"
        f"CPU features: {features}\n"
        f"{command}\n",
    )
    measured = [record for record in records if record.paired is not None]
    table = _table(measured, box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    show(out, table)
    out.print(
        "Times are per step, medians over the rounds. Ratios are time of the peer over time of "
        "oxistep in the same round (above 1: oxistep is faster), as median (quartiles). "
        f"The torch default on CPU is its {REFERENCE} (here with foreach=False, which saves it the choice).\n"
        f"GB/s counts reads and writes; the ceiling is a {PROBE_DESCRIPTION}.",
    )
    disturbed = [record.other_cores or 0 for record in measured if record.disturbed]
    if disturbed:
        out.print(
            f"! {len(disturbed)} of {len(measured)} cells were disturbed: other processes took "
            f"{min(disturbed):.1f} to {max(disturbed):.1f} cores meanwhile. Measure again on a quiet machine."
        )
    if left_out:
        out.print(f"No time was left for: {', '.join(map(str, left_out))}")
    for line in _floors(measured):
        out.print(line)
    for line in _absences(records):
        out.print(line)


def _table(records: list[Record], style: box.Box) -> Table:
    # A column for everything that was timed anywhere; a dash where it has no row.
    rows = [OURS, *dict.fromkeys(peer for record in records for peer in record.peers)]
    figures = ("best peer / ours", "default / ours", "GB/s", "probe", "of ceiling", "floors")
    table = plain("workload", "optimizer", "dtype", *rows, *figures, left=3, style=style)
    for record in records:
        timed = record.timed()
        share, best = record.share_of_ceiling, record.best_peer
        table.add_row(
            record.name.workload + (" !" if record.disturbed else ""),
            record.name.optimizer,
            record.name.dtype,
            *(_time(timed.median(row)) if row in timed.nanoseconds else "-" for row in rows),
            "-" if best is None else f"{best} {_ratio(timed.ratio(best, OURS))}",
            _ratio(timed.ratio(REFERENCE, OURS)) if REFERENCE in timed.nanoseconds else "-",
            # Small workloads never wait for memory, so the figure would mean nothing there.
            "-" if share is None else f"{record.gigabytes_per_second:.1f}",
            "-" if share is None else f"{record.probe_gigabytes_per_second:.1f}",
            "-" if share is None else f"{share:.0%}",
            _met(record),
        )
    return table


def _met(record: Record) -> str:
    """Of the floors that could be judged."""
    judged = [verdict for verdict in record.verdicts if verdict.met is not None]
    return f"{sum(bool(verdict.met) for verdict in judged)}/{len(judged)}"


def _floors(records: list[Record]) -> list[str]:
    """The floors missed, one by one."""
    judged = [(record, v) for record in records for v in record.verdicts if v.met is not None]
    missed = [f"  {r.name}: {v.measured:.2f} against {v.against}, floor {v.floor:g}" for r, v in judged if not v.met]
    return [f"Floors met: {len(judged) - len(missed)} of {len(judged)}" + ("; missed:" if missed else ""), *missed]


def _absences(records: list[Record]) -> list[str]:
    """Missing peers once for each reason; wrong results one by one."""
    missing = {f"Missing: {name}: {why}": None for record in records for name, why in record.missing.items()}
    wrong = [
        f"Left out: {name} for {record.name}: {found}" for record in records for name, found in record.wrong.items()
    ]
    return [*missing, *wrong]


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:#.3g} {unit}".replace(". ", " ")
    return f"{nanoseconds:.0f} ns"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.q1:.2f} to {ratio.q3:.2f})"


def _names(features: dict[str, Any]) -> list[str]:
    return [f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in features.items()]
