"""Train four small problems with oxistep.optim and with torch.optim, compare the results, and draw and measure.

    oxistep demo                            results, a picture in oxistep-demo/, a benchmark of half a minute
    oxistep demo --no-benchmark --json      the results alone, for scripts

The picture needs matplotlib, and is left out without it. The exit status is 1 if a result is not torch's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from oxistep.cli._terminal import console, need, print_json, progress

SUMMARY = "train small problems with oxistep and torch, compare, draw, measure"
# How far a number may be from torch's; most are equal to the last digit.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("oxistep-demo"),
        metavar="FOLDER",
        help="of the picture (default: %(default)s)",
    )
    parser.add_argument("--no-benchmark", action="store_true", help="leave out the benchmark at the end")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, without benchmark")


def run(options: argparse.Namespace) -> int:
    """Train, compare, draw, measure."""
    need("torch", "rich")
    import torch

    import oxistep.optim
    from oxistep.cli._cases import CASES

    if options.output.exists() and not options.output.is_dir():
        raise NotADirectoryError(f"{options.output} is not a folder")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
    results = []
    try:
        with progress() as bar:
            task = bar.add_task("", total=len(CASES))
            for title, train in CASES.items():
                bar.update(task, description=title)
                results.append(_compared(title, train(oxistep.optim), train(torch.optim)))
                bar.advance(task)
    finally:
        torch.set_num_threads(threads)
    picture = _picture(options.output)
    failed = not all(result["agrees"] for result in results)
    if options.json:
        print_json({"cases": results, "picture": picture and str(picture), "agree": not failed})
        return int(failed)
    _print(results, picture)
    if not options.no_benchmark:
        failed |= _benchmark() != 0
    return int(failed)


def _compared(title: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "case": title,
        "last_oxistep": _for_json(ours[-1]),
        "last_torch": _for_json(theirs[-1]),
        "numbers": len(pairs),
        "largest_difference": _for_json(max(abs(a - b) for a, b in pairs)),
        "agrees": all(abs(a - b) <= ABSOLUTE + RELATIVE * abs(b) for a, b in pairs),
    }


def _for_json(value: float) -> float | str:
    """JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else str(value)


def _picture(folder: Path) -> Path | None:
    try:
        from oxistep.viz import trajectories
    except ModuleNotFoundError:
        return None
    trajectories(output=folder / "bowl.png")
    return folder / "bowl.png"


def _print(results: list[dict[str, Any]], picture: Path | None) -> None:
    import torch
    from rich import box
    from rich.table import Table

    import oxistep.optim

    out = console()
    out.print(f"oxistep {oxistep.__version__}, torch {torch.__version__}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("training", "numbers", "last, oxistep", "last, torch", "largest difference", ""):
        table.add_column(heading, justify="left" if heading in ("training", "") else "right", no_wrap=True)
    for result in results:
        last = (_shown(result[who], ".6f") for who in ("last_oxistep", "last_torch"))
        verdict = "[green]as torch[/]" if result["agrees"] else "[bold red]DIFFERS[/]"
        table.add_row(
            result["case"], f"{result['numbers']:,}", *last, _shown(result["largest_difference"], ".1e"), verdict
        )
    out.width = max(out.width, out.measure(table, options=out.options.update(width=1000)).maximum)
    out.print(table)
    if picture:
        out.print(f"The paths of eight optimizers are drawn in {picture}")
    else:
        out.print("No picture without matplotlib: pip install 'oxistep[viz]'", markup=False)


def _shown(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)


def _benchmark() -> int:
    from oxistep.bench import run

    print("\nA short benchmark against torch.optim", flush=True)
    return run.main(["--brief"], "oxistep bench")
