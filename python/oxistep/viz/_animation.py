"""A picture of paths as an animation: they grow, a few points with each frame."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.figure import Figure
from numpy.typing import NDArray

MOST_FRAMES = 60  # more make a large file and take long
REST = 1.0  # seconds that the last frame stays
DPI = 80


def checked_writer(path: Path, frames_per_second: int) -> AbstractMovieWriter:
    """Who writes it, or why nobody can."""
    if frames_per_second < 1:
        raise ValueError(f"frames_per_second must be at least 1, got {frames_per_second!r}")
    if path.suffix.lower() == ".gif":
        return PillowWriter(fps=frames_per_second)
    if shutil.which("ffmpeg") is None:
        raise ValueError(f"output={str(path)!r}: writing .mp4 needs the program ffmpeg, which was not found; use .gif")
    return FFMpegWriter(fps=frames_per_second)


def write_animation(
    figure: Figure,
    drawn: Sequence[tuple[Any, NDArray[np.float64]]],
    path: Path,
    writer: AbstractMovieWriter,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write frames in which each line of `drawn` follows its path; a line of one point moves along it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # every frame has the layout of the last: nothing jumps, and it is quick
    longest = max(len(points) for _, points in drawn)
    ends = list(range(1, longest + 1, ceil(longest / MOST_FRAMES)))
    ends += [longest] * (1 + round(REST * writer.fps))
    alone = [len(artist.get_xdata()) == 1 for artist, _ in drawn]
    with writer.saving(figure, str(path), DPI):
        for k, end in enumerate(ends, 1):
            for (artist, points), single in zip(drawn, alone, strict=True):
                shown = points[:end]
                artist.set_data(*(shown[-1:] if single else shown).T)
            writer.grab_frame()
            if progress is not None:
                progress(k, len(ends))
