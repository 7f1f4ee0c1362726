"""``oxistep.viz.lr_range``: the loss over the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from oxistep.viz import _style as style

if TYPE_CHECKING:
    from oxistep.diagnostics import LRRange

BELOW: Any = "outside lower left"  # the lines may go anywhere in the plot
SMOOTHED, RAW, SUGGESTED = style.BLUE, style.GREY, style.VERMILION
ABOVE = 1.5  # how far above its start the loss is shown, as a multiple of how far it fell: divergence goes anywhere


def lr_range(found: LRRange, *, output: str | Path | None = None) -> Figure:
    """Draws the loss of a learning-rate range test over the rate, with the suggested rate.

    Args:
        found: what ``oxistep.diagnostics.lr_range_test`` returned.
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: the picture.

    Raises:
        ValueError: ``output`` ends in no kind of picture.

    Example:
        >>> import numpy as np
        >>> from oxistep.diagnostics import LRRange
        >>> from oxistep.viz import lr_range
        >>> losses = np.array([3.0, 2.0, 1.0])
        >>> figure = lr_range(LRRange(np.array([0.01, 0.1, 1.0]), losses, losses, 0.1, None))
        >>> figure.axes[0].get_xlabel()
        'learning rate'
    """
    path = style.checked_output(output)
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color=RAW, linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, color=SMOOTHED, linewidth=2.2, label="smoothed")
    finite = found.smoothed[np.isfinite(found.smoothed)]
    if len(finite):
        low, start = float(found.losses[np.isfinite(found.losses)].min()), float(finite[0])
        fall = start - low
        if fall > 1e-3 * abs(start):
            axes.set_ylim(low - 0.05 * fall, start + ABOVE * fall)
        else:
            around = 0.1 * abs(start) or 1.0
            axes.set_ylim(start - around, start + ABOVE * around)
    else:
        axes.text(0.5, 0.5, "the loss was never finite", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
    if found.suggestion is not None:
        height = float(np.interp(np.log(found.suggestion), np.log(found.rates), found.smoothed))
        axes.axvline(found.suggestion, color=SUGGESTED, linestyle=(0, (5, 2)), linewidth=1.2)
        label = f"steepest descent, lr = {found.suggestion:.2g}"
        axes.plot(found.suggestion, height, "o", color=SUGGESTED, label=label)
    else:
        axes.plot([], [], " ", label="no suggestion: the loss did not fall by more than its scatter")
    # of a test of one step, too
    axes.set_xlim(found.rates[0] / 1.5, 1.5 * max(found.rates[-1], found.rates[0]))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    title = "Learning-rate range test"
    axes.set_title(title if found.diverged_at is None else f"{title}: diverged at {found.diverged_at:.2g}", loc="left")
    axes.grid(True, **style.FAINT)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc=BELOW, ncols=3, frameon=False)
    return style.write(figure, path)
