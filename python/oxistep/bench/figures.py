"""The figures of the page, drawn with matplotlib from cells of results.

Colours are Okabe and Ito's, which the colour-blind tell apart; each line has a marker of its own as well, and each bar
its number.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..viz import _style as style
from .floors import ANYWHERE
from .implementations import OURS
from .probe import NAME as PROBE
from .wording import WORKLOAD_LABELS, duration, label, ratio, size
from .workloads import SIZES, TENSORS

Cells = list[dict[str, Any]]

COLORS = {
    OURS: style.VERMILION,
    "for-loop": style.SKY,
    "foreach": style.GREEN,
    "fused": style.BLUE,
    "compile": style.PURPLE,
    "deepspeed": style.ORANGE,
    PROBE: style.GREY,
}
MARKERS = {OURS: "o", "for-loop": "s", "foreach": "^", "fused": "D", "compile": "v", "deepspeed": "P", PROBE: "x"}
BARS_AGAINST = ("best peer", "best of torch", "best eager")  # floors that bars of the best peer can show
BAR = 0.23  # inches a bar takes


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element, with identifiers of its own: several stand on one page."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # glyphs are named after the font alone: two figures would share them, and hiding one would hide the other's
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", drawn)


def ratios(cells: Cells) -> Figure | None:
    """Bars of the best peer's time over ours, with quartiles and floors."""
    rows = [cell for name in WORKLOAD_LABELS for cell in cells if cell["workload"] == name and cell["best_peer"]]
    if not rows:
        return None
    figure, axes = _axes(BAR * (len(rows) + len({cell["workload"] for cell in rows})) + 1.2)
    y, group = 0.0, None
    places: list[float] = []
    for cell in rows:
        if cell["workload"] != group:
            group, y = cell["workload"], y + (1.0 if places else 0.0)
            axes.text(-0.01, y, WORKLOAD_LABELS[group], transform=axes.get_yaxis_transform(), ha="right", weight="bold")
            y += 1.0
        places.append(y)
        _bar(axes, y, cell)
        y += 1.0
    axes.set_yticks(places, [label(cell) for cell in rows])
    axes.set_ylim(y - 0.3, -0.9)
    axes.set_xscale("log")
    largest = max(cell["ratios"][cell["best_peer"]]["q3"] for cell in rows)
    smallest = min(cell["ratios"][cell["best_peer"]]["q1"] for cell in rows)
    axes.set_xlim(min(0.8, 0.9 * smallest), 1.6 * largest)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if 0.9 * smallest <= t <= 2 * largest]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color="black", linewidth=1)
    axes.xaxis.grid(True, **style.FAINT)
    axes.set_xlabel("time of the best peer / time of oxistep (log scale); whisker: quartiles; | floor; bold: missed")
    present = dict.fromkeys(cell["best_peer"] for cell in rows)
    handles = [matplotlib.patches.Patch(color=COLORS[name], label=name) for name in COLORS if name in present]
    axes.legend(handles=handles, title="best peer", loc="lower right", framealpha=0.9)
    return figure


def _bar(axes: Axes, y: float, cell: dict[str, Any]) -> None:
    best = cell["best_peer"]
    of = cell["ratios"][best]
    axes.barh(y, of["median"] - 1, left=1, height=0.75, color=COLORS[best])
    axes.plot([of["q1"], of["q3"]], [y, y], color="black", linewidth=1)
    # where nothing more is asked for than anywhere, the line at 1 says it
    judges = {*BARS_AGAINST, best}
    floors = [f["floor"] for f in cell["floors"] if f["against"] in judges and f["floor"] > ANYWHERE]
    for floor in floors:
        axes.plot([floor, floor], [y - 0.45, y + 0.45], color="black", linewidth=2)
    # in a column of their own: beside a bar, a number would run into the mark of a floor that was missed
    weight = "bold" if of["median"] < max(floors, default=ANYWHERE) else "normal"
    text = ratio(of["median"])
    axes.text(1.05, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8, weight=weight)


def bandwidth(cells: Cells) -> Figure | None:
    """Bytes a second of every large cell beside what the probe reached in the same rounds."""
    rows = [cell for cell in cells if cell["share_of_ceiling"] is not None and cell["workload"] in WORKLOAD_LABELS]
    if not rows:
        return None
    figure, axes = _axes(2 * BAR * len(rows) + 1.2)
    places = np.arange(len(rows))
    for offset, name, key in ((-0.2, OURS, "gigabytes_per_second"), (0.2, PROBE, "probe_gigabytes_per_second")):
        title = "native probe (ceiling)" if name == PROBE else name
        axes.barh(places + offset, [cell[key] for cell in rows], height=0.38, color=COLORS[name], label=title)
    for y, cell in enumerate(rows):
        end = max(cell["gigabytes_per_second"], cell["probe_gigabytes_per_second"])
        axes.text(end * 1.01, y, f"{cell['share_of_ceiling']:.0%}", va="center", fontsize=9)
    axes.set_yticks(places, [f"{WORKLOAD_LABELS[cell['workload']]}: {label(cell)}" for cell in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.grid(True, **style.FAINT)
    axes.set_xlabel("GB/s, reads and writes counted; the percentage is the median share within a round")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.6 / (2 * BAR * len(rows) + 0.5)), ncols=2, frameon=False)
    return figure


def tensors(cells: Cells) -> Figure | None:
    """Time for each tensor against the number of tensors."""
    figure = _lines(cells, TENSORS, lambda cell: cell["tensors"], per=lambda cell: cell["tensors"])
    if figure is not None:
        axes = figure.axes[0]
        axes.set_xlabel("tensors of 64 elements in one step of Adam, float32")
        axes.set_ylabel("time a tensor")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    return figure


def sizes(cells: Cells) -> Figure | None:
    """Time of a step against the size of one tensor."""
    figure = _lines(cells, SIZES | {"flat": 27}, lambda cell: cell["parameters"], per=lambda _: 1)
    if figure is not None:
        axes = figure.axes[0]
        axes.set_xlabel("elements of one tensor, a step of Adam, float32")
        axes.set_ylabel("time of a step")
        axes.set_xticks([2**k for k in range(0, 29, 4)], [size(k) for k in range(0, 29, 4)])
        axes.set_xticks([], minor=True)
    return figure


def _lines(cells: Cells, workloads: dict[str, int], x: Any, per: Any) -> Figure | None:
    rows = [c for c in cells if c["workload"] in workloads and c["optimizer"] == "Adam" and c["dtype"] == "float32"]
    if len({cell["workload"] for cell in rows} - {"flat"}) < 2:
        return None
    rows.sort(key=x)
    figure, axes = _axes(4.2)
    for name in COLORS:
        # the probe and torch.compile are in a few of these cells only
        of = [(x(cell), cell["nanoseconds"][name] / per(cell)) for cell in rows if name in cell["nanoseconds"]]
        if name not in (PROBE, "compile") and of:
            width = 2.4 if name == OURS else 1.2
            axes.plot(*zip(*of, strict=True), color=COLORS[name], marker=MARKERS[name], linewidth=width, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: duration(ns)))
    axes.grid(True, **style.FAINT)
    axes.legend(frameon=False)
    return figure


def threads(rows: list[dict[str, Any]] | None) -> Figure | None:
    """Speed-up over one thread, beside torch's fused."""
    if not rows or len(rows) < 2:
        return None
    figure, axes = _axes(3.6)
    counts = [row["threads"] for row in rows]
    for name in rows[0]["speedup"]:
        speedups = [row["speedup"][name] for row in rows]
        title = "native probe (ceiling)" if name == PROBE else name
        axes.plot(counts, speedups, color=COLORS[name], marker=MARKERS[name], label=title)
    axes.plot(counts, counts, color="black", linewidth=0.8, linestyle=":", label="as many times as threads")
    axes.set_xticks(counts)
    axes.set_xlabel("threads")
    axes.set_ylabel("times as fast as one thread")
    axes.grid(True, **style.FAINT)
    axes.legend(frameon=False)
    return figure


def end_to_end(models: list[dict[str, Any]] | None) -> Figure | None:
    """An iteration of training, cut into the step and everything else."""
    if not models:
        return None
    figure, axes = _axes(3 * 2 * BAR * len(models) + 1.0)
    y, places, names = 0.0, [], []
    for model in models:
        slowest = max(row["rest_ns"] + row["step_ns"] for row in model["rows"].values())
        for name, row in model["rows"].items():
            rest, step = ((row[key]) / slowest for key in ("rest_ns", "step_ns"))
            axes.barh(y, rest, color="#bbbbbb", height=0.75, label="forward and backward" if y == 0 else None)
            axes.barh(y, step, left=rest, color=COLORS[OURS], height=0.75, label="optimizer step" if y == 0 else None)
            axes.text(
                rest + step + 0.01, y, f"step {row['step_share']:.1%} of {duration(row['iteration_ns'])}", va="center"
            )
            places.append(y)
            names.append(f"{model['model']}: {name}")
            y += 1.0
        y += 0.6
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("time of an iteration, relative to the slowest of the model")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2, frameon=False)
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    # not pyplot: no window system, no global state
    figure = Figure(figsize=(style.WIDTH, height))
    axes = figure.subplots()
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
