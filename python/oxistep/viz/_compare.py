"""``oxistep.viz.compare``: the loss of several optimizers on one problem, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from oxistep._bowl import START, bowl, eight
from oxistep.viz import _style as style
from oxistep.viz._descent import (
    Make,
    built,
    by_name,
    checked_start,
    checked_steps,
    recorded,
    set_to_train,
    takes_arrays,
    tested,
)
from oxistep.viz._surface import Surface

Problem = Callable[[], tuple[list[Any], Callable[[], Any]]]

ABOVE = 3.0  # how far the picture goes above the highest loss at the start, as a multiple of what is below
LOGARITHMIC = 50.0  # the largest loss over the smallest from which on the axis is logarithmic
DEEPEST = 1e-12  # of the largest loss: what is below is rounding


def compare(
    optimizers: Mapping[str, Make | ArrayLike] | None = None,
    problem: Problem | None = None,
    *,
    steps: int = 100,
    log: bool | None = None,
    title: str | None = None,
    output: str | Path | None = None,
) -> Figure:
    """Draws the loss of several optimizers on one problem against the number of steps.

    Args:
        optimizers: name -> a function that makes an optimizer of a list of parameters (as for `trajectories`), or
            losses that were recorded: a sequence of numbers, the first before any step (default: None,
            those of `eight`).
        problem: ``problem()`` makes the problem anew for each optimizer and returns ``(parameters, loss)``. For
            torch's optimizers and oxistep's ``parameters`` is a list of tensors and ``loss()`` a tensor of one
            element, on which ``backward`` is called; for those of ``oxistep.numpy`` a list of arrays, and
            ``loss()`` returns ``(loss, gradients)``. Make it the same each time: seed what is random (default:
            None, the `bowl` from (4, 3)).
        steps: how many steps each takes; it stops early where the loss becomes NaN or infinite (default: 100).
        log: whether the axis of the loss is logarithmic (default: None, if all losses are positive and span a
            factor of 50).
        title: above the picture (default: None).
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: with the losses at the end in the legend, the lowest first.

    Raises:
        TypeError: an entry of `optimizers` makes no optimizer.
        ValueError: losses that were recorded are not a sequence of numbers; `steps` or the ending of `output` makes
            no sense.

    Example:
        >>> import numpy as np
        >>> import oxistep.numpy as optim
        >>> from oxistep.viz import compare
        >>> def problem():
        ...     w = np.array([5.0, 5.0])
        ...     return [w], lambda: (float(w @ w), [2 * w])
        >>> figure = compare({"SGD, lr 0.1": lambda p: optim.SGD(p, lr=0.1), "noted": [50, 20, 10]}, problem, steps=20)
        >>> len(figure.axes[0].lines)
        2
    """
    path = style.checked_output(output)
    checked_steps(steps)
    chosen = eight() if optimizers is None else by_name(optimizers)
    if not chosen:
        raise ValueError("there is no optimizer to compare")
    if problem is None and title is None and any(map(callable, chosen.values())):
        title = r"$f(x_1, x_2) = x_1^2 + 10\,x_2^2$ from (4, 3)"
    curves = {name: _losses(name, what, problem, steps) for name, what in chosen.items()}
    figure = style.new_figure(style.WIDTH, 4.8)
    axes = style.plain_axes(figure)
    order = sorted(curves, key=lambda name: _last(curves[name]))
    looks = {name: style.line(k) for k, name in enumerate(curves)}
    low, high = _limits(axes, list(curves.values()), log)
    for k, name in enumerate(order):
        losses, look = curves[name], looks[name]
        every = max(1, len(losses) // 10)
        axes.plot(
            np.clip(losses, low if axes.get_yscale() == "log" else None, None),
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            markevery=(k * every // len(order), every),  # markers of curves that coincide stand apart
            markersize=5,
            linewidth=1.6,
            label=f"{name}: {_end(losses)}",
        )
    axes.set_ylim(low, high)
    axes.set_xlabel("steps", fontsize=style.LABEL)
    axes.set_ylabel("loss", fontsize=style.LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    style.legend_of(figure, [f"{name}: {_end(curves[name])}" for name in order], title="loss at the end")
    if title:
        axes.set_title(title, fontsize=style.TITLE)
    return style.write(figure, path)


def _losses(name: str, what: Make | ArrayLike, problem: Problem | None, steps: int) -> NDArray[np.float64]:
    """Up to the first that is not finite, which is left out."""
    if not callable(what):
        losses = recorded(name, what, "the losses of a training")
        if losses.ndim != 1 or not len(losses):
            raise ValueError(f"the losses {name!r} must be a sequence of numbers, got shape {losses.shape}")
    else:
        with np.errstate(all="ignore"):
            losses = np.array(_train(name, what, problem, steps), np.float64)
    finite = np.isfinite(losses)
    return losses if finite.all() else np.append(losses[: int(finite.argmin())], np.nan)


def _train(name: str, make: Make, problem: Problem | None, steps: int) -> list[float]:
    if problem is None:
        optimizer, parameters = built(name, make, [np.array(START, np.float32)], _bowl_tensors)
        surface = Surface(bowl)
        if takes_arrays(optimizer):
            [x] = parameters
            return _with_arrays(optimizer, lambda: (float(bowl(*x)), [surface.gradient(x).astype(x.dtype)]), steps)
        return _with_tensors(optimizer, lambda: bowl(*parameters[0]), steps)
    parameters, loss = problem()
    optimizer = make(parameters)
    if not hasattr(optimizer, "step"):
        raise TypeError(f"{name!r} must make an optimizer of a list of parameters, not {type(optimizer).__name__}")
    set_to_train(optimizer)
    return (_with_arrays if takes_arrays(optimizer) else _with_tensors)(optimizer, loss, steps)


def _bowl_tensors() -> list[Any]:
    import torch

    return [torch.tensor(checked_start(START).tolist(), requires_grad=True)]


def _with_arrays(optimizer: Any, loss: Callable[[], Any], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        value, gradients = loss()
        losses.append(float(value))
        if not np.isfinite(losses[-1]):
            return losses
        optimizer.step(gradients)
    with tested(optimizer):
        return [*losses, float(loss()[0])]


def _with_tensors(optimizer: Any, loss: Callable[[], Any], steps: int) -> list[float]:
    losses: list[float] = []
    noted: list[float] = []

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        noted.append(value.item())
        return value

    for _ in range(steps):
        optimizer.step(closure)
        losses.append(noted[0])  # of several evaluations in a step (L-BFGS), the first is where the step began
        noted.clear()
        if not np.isfinite(losses[-1]):
            return losses
    with tested(optimizer):
        return [*losses, loss().item()]


def _last(losses: NDArray[np.float64]) -> float:
    return float(losses[-1]) if np.isfinite(losses[-1]) else float("inf")


def _end(losses: NDArray[np.float64]) -> str:
    return f"{losses[-1]:.3g}" if np.isfinite(losses[-1]) else f"diverges in step {len(losses) - 1}"


def _limits(axes: Axes, curves: list[NDArray[np.float64]], log: bool | None) -> tuple[float, float]:
    """Of the axis, whose scale is set: from the lowest loss to a little above the highest at the start."""
    finite = np.concatenate([losses[np.isfinite(losses)] for losses in curves])
    starts = [losses[0] for losses in curves if np.isfinite(losses[0])]
    if not starts:
        return 0.0, 1.0
    first = max(starts)
    positive = finite[finite > 0]
    if log is None:
        log = positive.size == finite.size and bool(np.max(positive) >= LOGARITHMIC * np.min(positive))
    if log and positive.size:
        axes.set_yscale("log")
        low = max(float(positive.min()), DEEPEST * first) if first > 0 else float(positive.min())
        high = min(float(positive.max()), first * ABOVE) if first > 0 else float(positive.max())
        return low / 1.5, high * 1.5
    low = float(finite.min())
    high = min(float(finite.max()), first + (ABOVE - 1) * max(first - low, 0.0) or float(finite.max()))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
