"""What `run` prints: where it ran, one line per cell, and what is missing or wrong. Tables fit 100 columns."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .beside import spread
from .floors import Verdict
from .implementations import OURS, REFERENCE
from .paired import Ratio
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
    if markdown:
        show(out, _markdown(measured))
    else:
        show(out, _table(measured))
        if large := [record for record in measured if record.share_of_ceiling is not None]:
            show(out, _bandwidth(large))
    for line in _legend(measured, left_out):
        out.print(line)
    for line in _targets(measured):
        out.print(line)
    for line in _absences(records):
        out.print(line)


def _legend(measured: list[Record], left_out: list[CellName]) -> list[str]:
    """What the columns mean, and what not to believe."""
    lines = [
        "oxistep: the time of one step. fastest other: the fastest of torch's implementations and of the other",
        "packages installed here, with its time. Times are medians.",
        "speed-up: its time over oxistep's, as median of ratios from alternating runs, ± half the distance between",
        f"their quartiles. Above 1 oxistep is faster. over default: the same over torch's default, its {REFERENCE}.",
    ]
    if any(record.share_of_ceiling is not None for record in measured):
        lines.append(
            "possible here: the same reads and writes with next to no arithmetic, measured in turn with the step."
        )
    if disturbed := [record.other_cores or 0 for record in measured if record.disturbed]:
        lines += [
            f"! {len(disturbed)} of {len(measured)} were disturbed: other processes took {min(disturbed):.1f} to "
            f"{max(disturbed):.1f} cores meanwhile.",
            "  Measure again on a quiet machine.",
        ]
    if left_out:
        lines.append(f"No time was left for: {', '.join(map(str, left_out))}")
    return lines


def _table(records: list[Record]) -> Table:
    """One line a cell: ours, the fastest other one, and torch's default."""
    table = plain("workload", "optimizer", "oxistep", "fastest other", "speed-up", "over default", left=2)
    for record in records:
        timed, best = record.timed(), record.best_peer
        dtype = "" if record.name.dtype == "float32" else f", {record.name.dtype}"
        table.add_row(
            record.name.workload + (" !" if record.disturbed else ""),
            record.name.optimizer + dtype,
            _time(timed.median(OURS)),
            "-" if best is None else f"{best} {_time(timed.median(best))}",
            "-" if best is None else spread(asdict(timed.ratio(best, OURS))),
            f"{timed.ratio(REFERENCE, OURS).median:.2f}" if REFERENCE in timed.nanoseconds else "-",
        )
    return table


def _bandwidth(records: list[Record]) -> Table:
    """Of large cells. Small ones never wait for memory, so the figures would mean nothing there."""
    table = plain("memory bandwidth of", "optimizer", "oxistep", "possible here", "share", left=2)
    for record in records:
        dtype = "" if record.name.dtype == "float32" else f", {record.name.dtype}"
        table.add_row(
            record.name.workload,
            record.name.optimizer + dtype,
            f"{record.gigabytes_per_second:.1f} GB/s",
            f"{record.probe_gigabytes_per_second:.1f} GB/s",
            f"{record.share_of_ceiling:.0%}",
        )
    return table


def _markdown(records: list[Record]) -> Table:
    """For documents, as wide as it is: a column for everything that was timed anywhere; a dash where it has no row."""
    rows = [OURS, *dict.fromkeys(peer for record in records for peer in record.peers)]
    figures = ("speed-up over the fastest", "over torch's default", "GB/s", "possible", "share", "targets met")
    table = plain("workload", "optimizer", "dtype", *rows, *figures, left=3, style=box.MARKDOWN)
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
            "-" if share is None else f"{record.gigabytes_per_second:.1f}",
            "-" if share is None else f"{record.probe_gigabytes_per_second:.1f}",
            "-" if share is None else f"{share:.0%}",
            _met(record),
        )
    return table


def _met(record: Record) -> str:
    """Of the targets that could be judged."""
    judged = _judged(record)
    return f"{sum(bool(verdict.met) for verdict in judged)}/{len(judged)}"


def _judged(record: Record) -> list[Verdict]:
    """What was disturbed is not judged: a ratio from there neither reaches a target nor misses it."""
    return [] if record.disturbed else [verdict for verdict in record.verdicts if verdict.met is not None]


def _targets(records: list[Record]) -> list[str]:
    """How many of the speed-ups that the project sets itself were reached, and the others one by one."""
    judged = [(record, verdict) for record in records for verdict in _judged(record)]
    if not judged:
        return []
    missed = [
        f"  {r.name}: {v.measured:.2f} against {v.against}, the target is {v.floor:g}" for r, v in judged if not v.met
    ]
    met = f"The project's own targets for this table: {len(judged) - len(missed)} of {len(judged)} met"
    return [met + ("; missed:" if missed else ""), *missed]


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
