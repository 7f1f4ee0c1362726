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

from oxistep.cli._terminal import RefusalError, console, need, print_json, progress

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
        help="folder of the picture; it is made if it is missing (default: %(default)s)",
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
        raise RefusalError(f"--output: {options.output} is not a folder")
    try:  # before minutes of work, not after
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusalError(
            f"--output: the folder {options.output} cannot be made ({error.strerror}); name one that can be written"
        ) from None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
    results = []
    try:
        with progress() as bar:
            task = bar.add_task("", total=len(CASES))
            for title, (compared, train) in CASES.items():
                bar.update(task, description=title)
                results.append(_compared(title, compared, train(oxistep.optim), train(torch.optim)))
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


def _compared(title: str, compared: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "case": title,
        "compared": compared,
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
    from oxistep.bench.tables import show

    out = console()
    out.print(f"oxistep {oxistep.__version__}, torch {torch.__version__}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("training with both libraries")
    table.add_column("what is compared", no_wrap=True)
    table.add_column("largest difference", justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for result in results:
        verdict = "[green]agrees[/]" if result["agrees"] else "[bold red]DIFFERS[/]"
        compared = f"{result['numbers']:,} {result['compared']}"
        difference = result["largest_difference"]
        table.add_row(
            result["case"], compared, difference if isinstance(difference, str) else f"{difference:.1e}", verdict
        )
    show(out, table)
    if any(isinstance(r["largest_difference"], str) or r["largest_difference"] > 0 for r in results):
        out.print(
            "Differences come from torch's square roots, which are off by the last digit on some processors. A\n"
            "hundred steps enlarge that. They agree if they differ by less than "
            f"{RELATIVE:g} of their size, plus {ABSOLUTE:g}."
        )
    if picture:
        out.print(f"A picture of eight optimizers on a bowl: {picture}")
    else:
        out.print("No picture without matplotlib: pip install matplotlib", markup=False)


def _benchmark() -> int:
    from oxistep.bench import run

    print("\nA short benchmark against torch.optim", flush=True)
    return run.main(["--brief"], "oxistep bench")
