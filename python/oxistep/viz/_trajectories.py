"""``oxistep.viz.trajectories``: the paths of optimizers over the contour lines of a function of two variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from oxistep._bowl import START, bowl, eight
from oxistep._functions import Box, known
from oxistep.viz import _style as style
from oxistep.viz._animation import checked_writer, write_animation
from oxistep.viz._descent import Make, Track, by_name, checked_start, checked_steps, track_of
from oxistep.viz._surface import Function, Points, Surface

Moving = list[tuple[Line2D, Points]]  # what moves in an animation, with the path that it follows

BOWL_LEVELS = (1, 4, 10, 20, 40, 70, 110)
COLUMNS = 4
PANEL = 3.5  # inches
MARGIN = 0.15  # around the paths, as a share of what they span
REACH = 10.0  # how far from the start the picture goes at most, in units of 1 + the start's own distance from 0
BELOW: Any = "outside lower center"  # where the legend is
ASTRAY = 4  # points shown of each path where all leave
LETTERS, LINE = 10, 0.21  # of a title: letters that an inch holds, height of a line in inches
GRID = 200  # points a side where contours are computed
WIDEST, THINNEST = (
    3.4,
    1.0,
)  # lines of several paths in one plot: a later path leaves the edges of an earlier one in sight
MARKS = 12  # markers along each of them


def trajectories(
    optimizers: Mapping[str, Make | ArrayLike] | None = None,
    function: Function | None = None,
    *,
    start: ArrayLike = START,
    steps: int = 100,
    gradient: Function | None = None,
    together: bool = False,
    limits: Box | None = None,
    levels: Sequence[float] | None = None,
    minima: ArrayLike | None = None,
    title: str | None = None,
    output: str | Path | None = None,
    frames_per_second: int = 15,
    progress: Callable[[int, int], None] | None = None,
) -> Figure:
    """Draws the paths of optimizers over the contour lines of a function of two variables.

    Args:
        optimizers: name -> a function that makes an optimizer of a list with one parameter of two elements
            (``lambda params: torch.optim.Adam(params, lr=0.1)``; classes of torch, of ``oxistep.optim`` and of
            ``oxistep.numpy``, or a rule of ``oxistep.rule``), or a path that was recorded: an array of shape (points,
            2) (default: None, those of `eight`).
        function: of two numbers, tensors or arrays, to one (default: None, the `bowl`).
        start: where all begin, two numbers (default: (4.0, 3.0)).
        steps: how many steps each takes. It stops early where a coordinate becomes NaN or infinite (default: 100).
        gradient: ``gradient(x1, x2)``, a pair (default: None, which is torch's where `function` takes tensors, else
            that of central differences).
        together: all paths in one plot instead of a plot for each (default: False).
        limits: ``((left, right), (bottom, top))`` (default: None, what the paths and minima span, but no farther than
            ten times ``1 + |start|`` from the start, and not where the function is far above its value there). A
            path may leave the picture, and its title says so.
        levels: heights of the contour lines (default: None, chosen so that the lines lie evenly).
        minima: points to mark as minima, an array of shape (points, 2) (default: None, that of the `bowl`, none for
            other functions).
        title: above the picture (default: None, the formula of the `bowl` with the heights of its contour lines,
            nothing for other functions). Without it the contour lines bear their heights.
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...), or an animation of the paths being
            drawn: ``.gif``, or ``.mp4`` if ffmpeg is installed. Its folder is made if it is missing (default: None).
        frames_per_second: of an animation (default: 15).
        progress: called with (frames written, frames in all) for each frame of an animation (default: None).

    Returns:
        matplotlib.figure.Figure: not pyplot's, so there is nothing to close.

    Raises:
        TypeError: `optimizers` is no dict, one of its entries makes no optimizer, or `function` does not take two
            variables.
        ValueError: `start`, `steps`, `limits`, `minima`, a path or the ending of `output` makes no sense.

    Parameters have torch's default dtype, arrays float32.

    Example:
        >>> import oxistep.numpy as optim
        >>> from oxistep.viz import trajectories
        >>> figure = trajectories({"Adam": lambda p: optim.Adam(p, lr=0.1)}, steps=10)
        >>> figure.axes[0].get_title().splitlines()[0]
        'Adam'
    """
    path = style.checked_output(output, animations=True)
    writer = checked_writer(path, frames_per_second) if path and path.suffix.lower() in style.ANIMATIONS else None
    begin = checked_start(start)
    checked_steps(steps)
    function = bowl if function is None else function
    surface = Surface(function, gradient)
    chosen = eight() if optimizers is None else by_name(optimizers)
    if not chosen:
        raise ValueError("there is no optimizer to draw")
    one_known = known(function)
    marked = _points(minima if minima is not None else one_known.minima if one_known else ())
    box = None if limits is None else _checked(limits)
    tracks = {name: track_of(name, what, surface, begin, steps) for name, what in chosen.items()}
    if box is None and one_known and one_known.limits and _inside(begin[None], one_known.limits).all():
        box = one_known.limits
    box = box or _limits([track.points for track in tracks.values()], surface, marked)
    if levels is None and function is bowl and float(bowl(*np.abs(box).max(axis=1))) < 3 * BOWL_LEVELS[-1]:
        levels = BOWL_LEVELS
    figure, plots = _plots(1 if together else len(tracks), box)
    for axes in plots:
        drawn_levels = _contours(axes, surface, box, levels, labelled=one_known is None or title is not None)
    draw = _draw_together if together else _draw_apart
    drawn = draw(figure, plots, tracks, box, marked)
    if title is None and one_known is not None:
        title = _title(one_known.title, begin, drawn_levels, one_line=figure.get_figwidth() > 12)
    if title:
        figure.suptitle(title, fontsize=style.TITLE if figure.get_figwidth() > 7 else style.LABEL)
    if path is not None and writer is not None:
        if not together:  # there the cross is where a path has come to
            figure.legends[0].get_texts()[-1].set_text("position")
        write_animation(figure, drawn, path, writer, progress)
        return figure
    return style.write(figure, path)


def _title(what: str, start: Points, levels: Sequence[float], one_line: bool) -> str:
    at = ", ".join(f"{x:g}".replace("-", style.MINUS) for x in start)
    heights = ", ".join(f"{level:g}".replace("-", style.MINUS) for level in levels)
    title = f"{what} from ({at})"
    return title + (", " if one_line else "\n") + f"contour lines at {heights}" if heights else title


def _points(minima: ArrayLike) -> Points:
    points = np.asarray(minima, np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"minima must be finite points, an array of shape (points, 2), got {minima!r}")
    return points


def _inside(points: Points, box: Box) -> Any:
    """Which points lie in the picture."""
    (left, right), (bottom, top) = box
    return (left <= points[:, 0]) & (points[:, 0] <= right) & (bottom <= points[:, 1]) & (points[:, 1] <= top)


def _checked(limits: Box) -> Box:
    try:
        (left, right), (bottom, top) = limits
    except (TypeError, ValueError):
        raise ValueError(f"limits must be ((left, right), (bottom, top)), got {limits!r}") from None
    if not (np.isfinite([left, right, bottom, top]).all() and left < right and bottom < top):
        raise ValueError(f"limits must grow and be finite, got {limits!r}")
    return (float(left), float(right)), (float(bottom), float(top))


def _limits(paths: list[Points], surface: Surface, minima: Points) -> Box:
    """What all paths and minima span, without what an optimizer that goes astray would add."""
    points = np.concatenate(paths)
    heights = surface.values(points[:, 0], points[:, 1])
    first = max(float(surface.values(p[:1, 0], p[:1, 1])[0]) for p in paths)
    lowest = np.min(heights[np.isfinite(heights)], initial=first)
    begin = paths[0][0]
    near = np.abs(points - begin).max(axis=1) <= REACH * (1 + np.abs(begin).max())
    kept = points[near & (heights <= first + (first - lowest))]
    if np.ptp(kept, axis=0).max(initial=0) == 0:  # all go astray: the beginning is all there is to see
        kept = np.concatenate([p[:ASTRAY] for p in paths])
        near = np.abs(kept - begin).max(axis=1) <= REACH * (1 + np.abs(begin).max())
        kept = np.concatenate([kept[near], begin + [[-1, -1], [1, 1]]])
    kept = np.concatenate([kept, minima])
    low, high = kept.min(axis=0), kept.max(axis=0)
    # a path along one axis still needs a picture with two
    span = np.maximum(high - low, 0.25 * (high - low).max())
    span = np.where(span > 0, span, 1.0)
    middle = (low + high) / 2
    (left, bottom), (right, top) = middle - (0.5 + MARGIN) * span, middle + (0.5 + MARGIN) * span
    return (left, right), (bottom, top)


def _plots(count: int, box: Box) -> tuple[Figure, list[Axes]]:
    (left, right), (bottom, top) = box
    relation = (top - bottom) / (right - left)
    equal = 0.4 <= relation <= 2.5
    columns = min(count, COLUMNS)
    rows = ceil(count / columns)
    panel = 6.5 if count == 1 else PANEL
    beside = 0.75 if count == 1 else 0.35  # inches for labels
    height = (panel - beside) * (relation if equal else 1.0) + 0.6
    figure = style.new_figure(max(panel * columns, 5.0), height * rows + 1.2)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    plots: list[Axes] = list(grid.flat)
    for axes in plots:
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        if equal:
            axes.set_aspect("equal")
    for axes in plots[count:]:
        axes.remove()
    for axes in plots[max(0, count - columns) : count]:
        axes.set_xlabel("$x_1$", fontsize=style.LABEL)
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("$x_2$", fontsize=style.LABEL)
    return figure, plots[:count]


def _contours(
    axes: Axes, surface: Surface, box: Box, levels: Sequence[float] | None, labelled: bool
) -> Sequence[float]:
    """Draws the contour lines that are in sight, and returns their heights."""
    x1, x2 = np.meshgrid(np.linspace(*box[0], GRID), np.linspace(*box[1], GRID))
    heights = surface.values(x1, x2)
    finite = heights[np.isfinite(heights)]
    if levels is None:
        # as many points of the grid between two lines as between the next two, closer where it is lowest
        levels = np.quantile(finite, np.linspace(0.1, 0.97, 10) ** 1.5).tolist() if finite.size else []
        levels = [float(f"{level:.1e}") for level in levels]  # two digits: they are read
    lines = sorted({level for level in levels if finite.size and finite.min() < level < finite.max()})
    if lines:
        drawn = axes.contour(x1, x2, np.ma.masked_invalid(heights), levels=lines, **style.CONTOUR)
        if labelled:
            axes.clabel(drawn, fmt=lambda level: f"{level:g}".replace("-", style.MINUS), fontsize=6.5, colors="0.45")
    return lines


def _end(track: Track, box: Box) -> str:
    """What becomes of a path, in words."""
    points = track.points
    if track.diverged:
        return f"diverges: not finite in step {len(points)}"
    inside = _inside(points, box)
    if not inside[-1]:
        return (
            f"leaves the picture in step {len(points) - int(inside[::-1].argmax())}" if inside.any() else "not in sight"
        )
    return f"ends at ({style.number(points[-1, 0])}, {style.number(points[-1, 1])})"


def _mark(axes: Axes, path: Points, color: str, marker: str = "o", size: float = 11, **line: Any) -> Moving:
    """The path, its start and its end."""
    [trace] = axes.plot(*path.T, marker=marker, color=color, **{"linewidth": 1, "markersize": 2.6, **line})
    axes.plot(*path[0], "o", color="white", markeredgecolor=style.BLACK, markersize=8, label="start", zorder=3.5)
    [end] = axes.plot(*path[-1], "X", color=style.VERMILION, markeredgecolor="white", markersize=size, zorder=4)
    return [(trace, path), (end, path)]


def _mark_minima(axes: Axes, minima: Points) -> list[Line2D]:
    """One line for all of them, or none."""
    if not len(minima):
        return []
    look: dict[str, Any] = {"color": style.YELLOW, "markeredgecolor": style.BLACK, "markersize": 15, "zorder": 3}
    return axes.plot(*minima.T, "*", label="minimum" if len(minima) == 1 else "minima", **look)


def _draw_apart(figure: Figure, plots: list[Axes], tracks: Mapping[str, Track], box: Box, minima: Points) -> Moving:
    drawn: Moving = []
    extra = 0  # lines of the longest title
    stars: list[Line2D] = []
    for axes, (name, track) in zip(plots, tracks.items(), strict=True):
        stars = _mark_minima(axes, minima)
        drawn += _mark(axes, track.points, style.BLUE, label="one dot per step")
        width = figure.get_figwidth() / min(len(plots), COLUMNS)
        wrapped = fill(name, max(20, int(LETTERS * width)))
        extra = max(extra, wrapped.count("\n"))
        axes.set_title(f"{wrapped}\n{_end(track, box)}", fontsize=style.LABEL)
    figure.set_figheight(figure.get_figheight() + LINE * extra * ceil(len(plots) / COLUMNS))
    handles, labels = plots[0].get_legend_handles_labels()
    path, start = (handles[labels.index(name)] for name in ("one dot per step", "start"))
    end = drawn[1][0]
    lengths = {len(track.points) - 1 for track in tracks.values() if not track.diverged}
    end.set_label(f"after {_steps(lengths.pop())}" if len(lengths) == 1 else "end")
    columns = 4 if figure.get_figwidth() > 5.5 else 2
    figure.legend(handles=[path, start, *stars, end], loc=BELOW, ncols=columns, fontsize=style.LABEL, frameon=False)
    return drawn


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _draw_together(figure: Figure, plots: list[Axes], tracks: Mapping[str, Track], box: Box, minima: Points) -> Moving:
    """Paths that do not hide each other: the first is the widest, the last the thinnest, with few markers on each."""
    [axes] = plots
    drawn: Moving = []
    stars = _mark_minima(axes, minima)
    widths = np.linspace(WIDEST, THINNEST, len(tracks)) if len(tracks) > 1 else [THINNEST]
    for index, ((name, track), width) in enumerate(zip(tracks.items(), widths, strict=True)):
        look = style.line(index)
        every = max(1, len(track.points) // MARKS)
        line: dict[str, Any] = {"linewidth": width, "markersize": 4 + width, "markevery": (index % every, every)}
        line |= {"linestyle": look.linestyle, "alpha": 0.9, "markeredgecolor": "white", "markeredgewidth": 0.5}
        marks = _mark(axes, track.points, look.color, look.marker, size=8 + 1.5 * width, **line)
        marks[0][0].set_label(f"{name}: {_end(track, box)}")
        marks[1][0].set_color(look.color)
        marks[1][0].set_markeredgecolor("white")
        drawn += marks
    lines = [line for line, _ in drawn[::2]]
    figure.legend(handles=[*lines, *stars], loc=BELOW, fontsize=style.SMALL, frameon=False)
    # what a legend of so many lines takes, which would otherwise be taken from the plot
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, len(lines) + len(stars) - 4))
    return drawn
