"""The page: one self-contained HTML file made from a file of results.

oxistep bench page bench.json bench.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .._options import new_file
from . import figures, results
from .implementations import OURS
from .wording import duration, floor_rows, label, machine, missing, ratio, sections, size

TEMPLATE = "page.html.jinja"
# Sections that other commands add.
EMPTY: dict[str, Any] = {"left_out": [], "threads": None, "memory": None, "end_to_end": None}


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", type=results.present, help="JSON written by `run`, and added to by the other commands"
    )
    parser.add_argument("page", type=new_file, help="the HTML file to write")
    return parser.parse_args(argv)


def render(content: dict[str, Any]) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"duration": duration, "ratio": ratio, "size": size, "label": label}
    measured = [cell for cell in content.get("cells", []) if "ratios" in cell]
    return templates.get_template(TEMPLATE).render(
        content=EMPTY | content,
        ours=OURS,
        machine=machine(content),
        measured=measured,
        sections=sections(measured),
        floor_rows=floor_rows(measured),
        missing=missing(content.get("cells", [])),
        figures=drawn(content, measured),
    )


def drawn(content: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, Markup]:
    """The figures that these results have data for."""
    cells: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
        "ratios": figures.ratios,
        "bandwidth": figures.bandwidth,
        "tensors": figures.tensors,
        "sizes": figures.sizes,
    }
    made = {name: draw(measured) for name, draw in cells.items()}
    made["threads"] = figures.threads(content.get("threads"))
    made["end_to_end"] = figures.end_to_end(content.get("end_to_end"))
    return {name: Markup(figures.svg(figure, name)) for name, figure in made.items() if figure is not None}


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(content), encoding="utf-8")


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    write(options.page, results.read(options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
