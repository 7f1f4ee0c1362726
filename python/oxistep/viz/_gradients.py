"""``oxistep.viz.gradients`` and ``updates``: what the monitors of `oxistep.diagnostics` recorded, layers x steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from oxistep.viz import _style as style

if TYPE_CHECKING:
    from oxistep.diagnostics import GradientMonitor, UpdateMonitor

Floats = NDArray[np.float64]

MOST_NAMES = 40  # of rows; with more, every second or third is named
MOST_LINES = 7  # as many as line() has colours; with more, only the quantiles are drawn
HEAT_WIDTH = 6.0  # inches, about: names and legends take the rest
DECADES = 12  # a range of colours beyond this shows nothing

NOTHING, MARK = "#d9d9d9", style.VERMILION

# Each field: what it is called, and whether it is shown on a logarithmic scale.
GRADIENT_FIELDS = {
    "elements": ("number of elements", True),
    "mean": ("mean of the gradient", False),
    "variance": ("variance of the gradient", True),
    "norm": ("norm of the gradient", True),
    "smallest": ("smallest non-zero magnitude", True),
    "largest": ("largest magnitude", True),
    "zeros": ("share of zeros", False),
    "nan": ("elements that are NaN", False),
    "inf": ("elements that are infinite", False),
}
UPDATE_FIELDS = {
    "update": ("norm of the update", True),
    "parameter": ("norm of the parameter", True),
    "gradient": ("norm of the gradient", True),
    "ratio": ("size of the update relative to the parameter", True),
    "effective_lr": ("effective learning rate", True),
}


def gradients(monitor: GradientMonitor, field: str = "norm", *, output: str | Path | None = None) -> Figure:
    """Draws one field of a gradient monitor: a heat map of parameters x steps, and lines below.

    Crosses mark anomalies; grey is where there was no gradient, or nothing to show (on the logarithmic scale: zero).
    Up to seven parameters have a line each, of more their median, quartiles and extremes are drawn.

    Args:
        monitor: with at least one update.
        field: what is drawn, such as ``"mean"``; :class:`~oxistep.diagnostics.GradientMonitor` lists them
            (default: "norm").
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: the picture.

    Raises:
        ValueError: nothing was recorded, the field is not measured, or ``output`` ends in no kind of picture.

    Example:
        >>> import numpy as np
        >>> from oxistep.diagnostics import GradientMonitor
        >>> from oxistep.viz import gradients
        >>> monitor = GradientMonitor({"w": np.zeros(2)})
        >>> monitor.update({"w": np.array([3.0, 4.0])})
        >>> figure = gradients(monitor)
        >>> figure.axes[0].get_title("left")
        'norm of the gradient'
    """
    path = style.checked_output(output)
    steps, values = monitor.values(field)
    places = {name: i for i, name in enumerate(monitor.names)}
    # by place in the history, as step numbers may repeat
    marks = [(steps.searchsorted(found.step), places[found.name]) for found in monitor.anomalies(None)]
    return style.write(_picture(steps, values, monitor.names, *GRADIENT_FIELDS[field], marks), path)


def updates(monitor: UpdateMonitor, field: str = "ratio", *, output: str | Path | None = None) -> Figure:
    """Draws one field of an update monitor: a heat map of parameters x steps, and lines below.

    Args:
        monitor: with at least one step.
        field: what is drawn, such as ``"effective_lr"``; :class:`~oxistep.diagnostics.UpdateMonitor` lists them
            (default: "ratio").
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: the picture.

    Raises:
        ValueError: nothing was recorded, the field is not measured, or ``output`` ends in no kind of picture.

    Example:
        >>> import numpy as np
        >>> from oxistep.diagnostics import UpdateMonitor
        >>> from oxistep.numpy import SGD
        >>> from oxistep.viz import updates
        >>> optimizer = SGD({"w": np.ones(2)}, lr=0.1)
        >>> monitor = UpdateMonitor(optimizer)
        >>> optimizer.step({"w": np.ones(2)})
        >>> updates(monitor, "effective_lr").axes[0].get_title("left")
        'effective learning rate'
    """
    path = style.checked_output(output)
    steps, values = monitor.values(field)
    return style.write(_picture(steps, values, monitor.names, *UPDATE_FIELDS[field], []), path)


def _picture(
    steps: NDArray[np.int64],
    values: Floats,
    names: list[str],
    title: str,
    logarithmic: bool,
    marks: list[tuple[Any, int]],
) -> Figure:
    if not len(steps):
        raise ValueError("nothing was recorded yet")
    rows = len(names)
    heat_height = min(max(1.6, 0.24 * rows), 9.0)
    figure = Figure(figsize=(style.WIDTH, heat_height + 3.2), layout="constrained")
    heat, lines = figure.subplots(2, 1, height_ratios=(heat_height, 2.4), sharex=True)
    shown = np.where(np.isfinite(values) & ((values > 0) | (not logarithmic)), values, np.nan)
    labels = style.short(names)
    _heat_map(figure, heat, steps, shown, labels, logarithmic)
    if marks:
        # a few may be wider than their cells
        crowded = len(marks) > shown.size / 10
        width = 72 * HEAT_WIDTH / len(steps) if crowded else np.inf
        _marks(heat, [(int(steps[t]), i) for t, i in marks], 72 * heat_height / rows, width)
    heat.set_title(title + (", × = anomaly" if marks else ""), loc="left")
    _lines(lines, steps, shown, labels, logarithmic)
    lines.set_xlabel("step")
    lines.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return figure


def _marks(axes: Axes, places: list[tuple[int, int]], height: float, width: float) -> None:
    """Crosses that leave some of their cells to be seen; a cell is so many points high and wide."""
    size = min(5.0, max(1.5, 0.6 * min(height, width)))
    at = tuple(zip(*places, strict=True))
    if size == 5.0:  # a rim, where there is room for one
        axes.plot(*at, "x", color="white", markersize=6, markeredgewidth=3)
    axes.plot(*at, "x", color=MARK, markersize=size, markeredgewidth=0.32 * size)


def _heat_map(
    figure: Figure, axes: Axes, steps: NDArray[np.int64], shown: Floats, names: list[str], logarithmic: bool
) -> None:
    # a cell reaches half way to its neighbours
    middles = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[steps[0] - 0.5], middles, [steps[-1] + 0.5]])
    signed = bool((shown < 0).any())
    mesh = axes.pcolormesh(
        edges,
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(shown.T),
        cmap="PuOr" if signed else "viridis",
        norm=_norm(shown, logarithmic, signed),
        rasterized=True,
    )
    axes.set_facecolor(NOTHING)
    axes.invert_yaxis()
    every = -(-len(names) // MOST_NAMES)
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=8)
    # inside the room that the legend below needs anyway
    if np.isfinite(shown).any():
        figure.colorbar(mesh, cax=axes.inset_axes((1.012, 0.0, 0.018, 1.0)))


def _norm(shown: Floats, logarithmic: bool, signed: bool) -> Normalize:
    known = shown[np.isfinite(shown)]
    if not len(known):
        return Normalize(0, 1)
    low, high = float(known.min()), float(known.max())
    if logarithmic:
        return LogNorm(*_spread(max(low, high * 10.0**-DECADES), high))
    if signed:
        most = float(np.abs(known).max())
        return SymLogNorm(max(most * 1e-3, float(np.finfo(float).tiny)), vmin=-most, vmax=most)
    return Normalize(0.0, high if high > 0 else 1.0)


def _spread(low: float, high: float) -> tuple[float, float]:
    """Limits of a logarithmic scale: at least a factor of four, or rounding would fill the picture."""
    if high <= 4 * low:
        middle = float(np.sqrt(low) * np.sqrt(high))
        return middle / 2, 2 * middle
    return low, high


def _lines(axes: Axes, steps: NDArray[np.int64], shown: Floats, names: list[str], logarithmic: bool) -> None:
    single = "o" if len(steps) == 1 else ""
    if len(names) <= MOST_LINES:
        for i, name in enumerate(names):
            look = style.line(i)
            axes.plot(steps, shown[:, i], color=look.color, linestyle=look.linestyle, marker=single, label=name)
    elif np.isfinite(shown).any():
        known = np.isfinite(shown).any(axis=1)
        low, q1, median, q3, high = np.nanquantile(shown[known], [0, 0.25, 0.5, 0.75, 1], axis=1)
        at = steps[known]
        axes.fill_between(at, low, high, color=style.SKY, alpha=0.3, linewidth=0, label="all parameters")
        axes.fill_between(at, q1, q3, color=style.BLUE, alpha=0.4, linewidth=0, label="half of them")
        axes.plot(at, median, color=style.BLUE, marker=single, label="median")
    if not np.isfinite(shown).any():
        why = "zero, NaN, infinite or missing" if logarithmic else "NaN, infinite or missing"
        axes.text(0.5, 0.5, f"nothing to show: all is {why}", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
    elif logarithmic:
        low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
        if _spread(low, high) != (low, high):
            axes.set_ylim(*_spread(low, high))
        axes.set_yscale("log")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # beside the plot: the lines may go anywhere in it
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8, frameon=False)
