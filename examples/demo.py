"""All the cases of this folder, trained with oxistep and checked against torch.optim in the same run.

Prints a table of results, draws the paths of case E, and ends with a short benchmark. The exit status is
not zero if any check fails.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import oxistep
from case_e_bowl import draw
from expected import SCRIPTS, TOLERANCE_ABS, TOLERANCE_REL, examine


def verdict(ok):
    return "[green]ok[/]" if ok else "[bold red]FAIL[/]"


def show(difference):
    return "0" if difference == 0 else f"{difference:.1e}"


def train_all(console):
    reports = {}
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(SCRIPTS))
        for script in SCRIPTS:
            progress.update(task, description=f"case {script.case}: {script.what}")
            reports[script.name] = examine(script)
            progress.advance(task)
    return reports


def tabulate(reports):
    """The table of results, and the checks that failed."""
    tolerance = f"{TOLERANCE_REL:g} relative plus {TOLERANCE_ABS:g} absolute"
    table = Table(caption=f"“as torch”: every number of the training within {tolerance}; 0: equal to the last digit")
    table.add_column("case")
    table.add_column("what")
    table.add_column("oxistep")
    table.add_column("torch")
    table.add_column("largest\ndifference", justify="right")
    table.add_column("expected")
    table.add_column("verdict")
    failures = []
    for script in SCRIPTS:
        report = reports[script.name]
        ok = not report.too_far
        table.add_section()
        table.add_row(
            script.case,
            f"[bold]{escape(script.what)}[/]",
            f"{report.count:,} numbers",
            f"{report.count:,} numbers",
            show(report.largest_difference),
            "as torch",
            verdict(ok),
        )
        failures += [f"{script.name}{place}" for place in report.too_far[:5]]
        for figure in script.figures:
            ours, theirs = figure.get(report.ours), figure.get(report.theirs)
            ok = figure.holds(ours)
            expected = figure.show_expected()
            cells = figure.show(ours), figure.show(theirs), show(report.largest_of(figure)), expected
            table.add_row("", f"  {escape(figure.what)}", *map(escape, cells), verdict(ok))
            if not ok:
                failures.append(f"{script.name}: {figure.what} is {ours}, expected {expected}")
    return table, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the picture")
    parser.add_argument("--no-benchmark", action="store_true", help="leave out the benchmark at the end")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(f"oxistep {oxistep.__version__}, torch {torch.__version__}")

    reports = train_all(console)
    table, failures = tabulate(reports)
    console.print(table)

    picture = arguments.output.resolve() / "bowl.png"
    draw(reports["case_e_bowl"].ours, picture)
    console.print(f"The paths of case E are drawn in {picture}", soft_wrap=True)

    for failure in failures:
        console.print(f"[bold red]FAIL[/] {escape(failure)}", highlight=False)
    if not failures:
        console.print(f"All {len(reports)} scripts agree with torch.optim and reach the expected figures.")

    failed = bool(failures)
    if not arguments.no_benchmark:
        console.print("\nA short benchmark against torch.optim")
        sys.stdout.flush()
        command = [sys.executable, "-m", "oxistep.bench", "run", "--brief"]
        failed |= subprocess.run(command).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
