"""What the pictures have in common: colours that the colour-blind tell apart, sizes, and how a picture is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

# The palette of M. Okabe and K. Ito, Color Universal Design (2008), for lines without yellow, which is lost on white.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#999999"
YELLOW = "#F0E442"
# Four more where seven do not suffice, of Paul Tol's muted scheme (2021).
INDIGO, WINE, OLIVE, TEAL = "#332288", "#882255", "#999933", "#44AA99"

TITLE, LABEL, SMALL = 14.0, 11.0, 9.0  # font sizes, points
WIDTH = 9.0  # of a picture with one plot, inches
DPI = 150
FAINT: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}  # grid lines
CONTOUR: dict[str, Any] = {"colors": "0.78", "linewidths": 0.9, "linestyles": "solid"}
OUTLINE = [withStroke(linewidth=3, foreground="white")]  # of text that lies on lines

MINUS = "\N{MINUS SIGN}"
ANIMATIONS = (".gif", ".mp4")


class Line(NamedTuple):
    """How one line of several is told from the others: by colour, dashes and marker, never by colour alone."""

    color: str
    linestyle: Any
    marker: str


_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, WINE, OLIVE, INDIGO, TEAL)
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h", "d")


def line(index: int) -> Line:
    """The style of the line with this number; 55 differ without their markers, eleven in colour alone."""
    return Line(_COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])


def short(names: Sequence[str], longest: int = 32) -> list[str]:
    """Names that fit beside a plot and still differ: without what all begin with, the long without their middle."""
    parts = [name.split(".") for name in names]
    shared = 0
    if max(map(len, names), default=0) > longest:
        while all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts) and len(parts) > 1:
            shared += 1
    cut = [("…" if shared else "") + ".".join(one[shared:]) for one in parts]
    head = longest // 2 - 1
    return [name if len(name) <= longest else f"{name[:head]}…{name[head + 1 - longest :]}" for name in cut]


def legend_of(figure: Figure, labels: Sequence[str], **more: Any) -> None:
    """Beside the plot, or below it where long labels would leave no room for the plot."""
    longest = max(map(len, labels), default=0)
    place: Any = "outside right upper"
    columns = 1
    if longest > 34:
        place = "outside lower left"
        columns = max(1, int(16 * figure.get_figwidth()) // (longest + 8))
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.19 * rows)  # inches of a row
    figure.legend(loc=place, ncols=columns, fontsize=SMALL, frameon=False, **more)


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, inches. Not pyplot's: no window system, no global state."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def plain_axes(figure: Figure) -> Axes:
    """One plot without the lines above and to the right of it."""
    axes = figure.subplots()
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, **FAINT)
    return axes


def number(value: float, digits: int = 5) -> str:
    """A number with a true minus sign: fixed point where that says enough."""
    size = abs(value)
    text = f"{value:.{digits}f}" if size < 1e4 else f"{value:.2e}"
    if not text.strip("-0."):  # zero has no sign
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def checked_output(output: str | Path | None, animations: bool = False) -> Path | None:
    """The path to write to, with its folder made, or an exception before any work was done."""
    if output is None:
        return None
    path = Path(output)
    kind = path.suffix.lower()
    kinds = [f".{name}" for name in Figure().canvas.get_supported_filetypes()]
    kinds += [name for name in ANIMATIONS if animations and name not in kinds]
    if not animations and ".gif" in kinds:
        kinds.remove(".gif")  # matplotlib would write one frame
    if kind not in kinds:
        raise ValueError(f"output={str(output)!r} must end in one of {', '.join(sorted(kinds))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(figure: Figure, output: Path | None) -> Figure:
    """Write the picture if a path was given; return it in any case."""
    if output is not None:
        figure.savefig(output, dpi=DPI)
    return figure
