"""``oxistep.viz.schedule``: the learning rates that are to come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from oxistep.viz import _style as style
from oxistep.viz._descent import checked_steps
from oxistep.viz._rates import Metrics, Rates, rates_of


def schedule(
    schedulers: Any,
    steps: int = 100,
    *,
    metrics: Metrics | None = None,
    log: bool = False,
    title: str | None = None,
    output: str | Path | None = None,
) -> Figure:
    """Draws the learning rates that a scheduler will produce, without touching it or its optimizer.

    Args:
        schedulers: a scheduler of ``torch.optim.lr_scheduler`` (in whatever state it is: what is drawn begins
            there); a list of schedulers of one optimizer that are stepped one after the other; a function of the
            step as ``oxistep.numpy`` takes for ``lr``; or a dict from name to any of these, drawn in one plot.
        steps: how many steps to look ahead, the present rate being the first (default: 100).
        metrics: what ``ReduceLROnPlateau`` is told: one number a step, or a function of the step (default: None).
        log: whether the axis of the rates is logarithmic (default: False).
        title: above the picture (default: None).
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: with one line per scheduler, and one per parameter group where the rates of groups
        differ.

    Raises:
        TypeError: not a scheduler and not a function; a function that returns no number.
        ValueError: schedulers of a list belong to different optimizers; ``ReduceLROnPlateau`` without `metrics`;
            `steps` or the ending of `output` makes no sense.

    Example:
        >>> import numpy as np
        >>> from oxistep.viz import schedule
        >>> figure = schedule(lambda step: 0.1 * 0.5 ** (step // 30), steps=90)
        >>> float(np.asarray(figure.axes[0].lines[0].get_ydata())[-1])
        0.025
    """
    path = style.checked_output(output)
    checked_steps(steps)
    named = dict(schedulers) if isinstance(schedulers, Mapping) else {"": schedulers}
    if not named:
        raise ValueError("there is no scheduler to draw")
    lines: dict[str, Any] = {}
    for name, scheduler in named.items():
        lines |= _lines(name, rates_of(scheduler, steps, metrics))

    figure = style.new_figure(style.WIDTH, 4.0)
    axes = style.plain_axes(figure)
    for k, (name, values) in enumerate(lines.items()):
        look = style.line(k)
        # A rate holds for a whole step: stairs where they can be seen.
        shape: Any = "steps-post" if len(values) <= 200 else "default"
        dot = "o" if len(values) == 1 else ""
        axes.plot(
            values, color=look.color, linestyle=look.linestyle, marker=dot, drawstyle=shape, linewidth=1.8, label=name
        )
    if log:
        axes.set_yscale("log")
    elif min(float(np.min(values)) for values in lines.values()) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlim(0 if steps > 1 else -0.5, max(steps - 1, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlabel("steps from now", fontsize=style.LABEL)
    axes.set_ylabel("learning rate", fontsize=style.LABEL)
    if any(lines):
        style.legend_of(figure, list(lines))
    if title:
        axes.set_title(title, fontsize=style.TITLE)
    return style.write(figure, path)


def _lines(name: str, rates: Rates) -> dict[str, Any]:
    """The rates of the groups, those that are equal as one line."""
    columns = rates.values.T
    note = "" if rates.stopped is None else f"ends after {len(rates.values)} steps"
    if (columns == columns[0]).all():
        return {", ".join(filter(None, (name, note))): columns[0]}
    return {", ".join(filter(None, (name, f"group {g}", note))): column for g, column in enumerate(columns)}
