"""The learning-rate range test: which rates are worth trying."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxistep.diagnostics._named import callable_as, is_tensor, real, whole
from oxistep.diagnostics._snapshot import Snapshot
from oxistep.diagnostics._table import number, table

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

# A slope is taken over this many neighbours of the smoothed loss: fewer would follow what noise is left.
_NEIGHBOURS = 3
# A fall of the smoothed loss smaller than this, relative to where it began, is taken for noise,
_FALL = 0.01
# and so is one smaller than this many standard deviations of what the smoothing leaves of the losses' scatter.
_DEVIATIONS = 5.0


@dataclass(frozen=True, eq=False)
class LRRange:
    """What :func:`lr_range_test` recorded."""

    rates: NDArray[np.float64]
    """Learning rates, one for each step taken, growing."""
    losses: NDArray[np.float64]
    """The loss at each, before the step with that rate."""
    smoothed: NDArray[np.float64]
    """Its exponential average, corrected for its start."""
    suggestion: float | None
    """The rate at which the smoothed loss falls most steeply; ``None`` if it does not fall by more than its scatter."""
    diverged_at: float | None
    """The rate at which the test was stopped; ``None`` if it reached the end."""

    def rows(self) -> list[dict[str, float]]:
        """One dict for each step: ``rate``, ``loss``, ``smoothed``."""
        columns = zip(self.rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)
        return [{"rate": rate, "loss": loss, "smoothed": smoothed} for rate, loss, smoothed in columns]

    def __str__(self) -> str:
        rows = self.rows()
        shown = rows[:: max(1, len(rows) // 20)]
        cells = [[number(row[key]) for key in ("rate", "loss", "smoothed")] for row in shown]
        ended = "no divergence" if self.diverged_at is None else f"diverged at {self.diverged_at:.3g}"
        suggested = (
            "no rate: the loss did not fall by more than its scatter"
            if self.suggestion is None
            else f"lr = {self.suggestion:.3g}"
        )
        title = f"Learning-rate range test: {len(rows)} step{'s' * (len(rows) != 1)}, {ended}, suggests {suggested}"
        return table(title, ["rate", "loss", "smoothed"], cells)

    def plot(self, *, output: str | Path | None = None) -> Figure:
        """The loss over the rate, with the suggestion; needs matplotlib.

        Args:
            output: write the picture there, as for `oxistep.viz.lr_range` (default: None).

        Returns:
            matplotlib.figure.Figure: to show, or to save with ``savefig``.

        Raises:
            ModuleNotFoundError: without matplotlib.
            ValueError: ``output`` ends in no kind of picture.
        """
        from oxistep.viz import lr_range

        return lr_range(self, output=output)


def lr_range_test(
    closure: Callable[..., Any],
    optimizer: Any = None,
    *,
    model: Any = None,
    lr_min: float = 1e-6,
    lr_max: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    generators: Iterable[Any] = (),
) -> LRRange:
    """Train for some steps with a growing learning rate, watch the loss, and put everything back.

    The rate of step k is ``lr_min (lr_max / lr_min)^(k / (steps - 1))``. With several parameter groups the largest
    rate is this one, and the others keep their proportion to it. The test ends early when the smoothed loss is not
    finite or has grown beyond ``divergence`` times the best so far (counted from zero, or for negative losses from
    the best). Afterwards parameters, gradients, optimizer state, param groups, buffers of ``model``, and the random
    numbers of torch (all devices), NumPy and Python are what they were, bit for bit, also if the closure raises.

    Not put back: what the closure changes besides, such as the place in a data loader.

    Args:
        closure: with an optimizer of ``oxistep.optim`` or ``torch.optim`` what its ``step`` takes: clear the
            gradients, compute the loss, call ``backward``, return the loss. With one of ``oxistep.numpy``: return
            ``(loss, gradients)``. Without an optimizer it is called as ``closure(lr)``, does a whole step, and
            nothing but random numbers is put back.
        optimizer: the optimizer (default: None).
        model: a ``torch.nn.Module`` whose other parameters and buffers (running means, say) are put back too
            (default: None).
        lr_min: first rate (default: 1e-6).
        lr_max: last rate (default: 10).
        steps: how many (default: 100).
        smoothing: share of the average that a step keeps, 0 to below 1 (default: 0.9); 0 does not smooth.
        divergence: how many times its best the smoothed loss may be (default: 4).
        generators: ``torch.Generator``, ``numpy.random.Generator`` or ``random.Random`` that the closure draws from,
            to be put back as well (default: ()).

    Returns:
        LRRange: rates, losses and a suggestion, the steepest descent of the smoothed loss over the logarithm of the
        rate. It is a place to start from, not an optimum.

    Raises:
        TypeError: for what is no optimizer, number or loss.
        ValueError: for numbers out of range.

    Example:
        >>> import torch, oxistep
        >>> from oxistep.diagnostics import lr_range_test
        >>> w = torch.full((10,), 5.0, requires_grad=True)
        >>> optimizer = oxistep.SGD([w], lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (w * w).sum()
        ...     loss.backward()
        ...     return loss
        >>> found = lr_range_test(closure, optimizer, lr_min=1e-4, lr_max=10)
        >>> found.suggestion is not None and 0.001 < found.suggestion < 1
        True
        >>> found.diverged_at is not None and found.diverged_at > 1
        True
        >>> w[0].item(), optimizer.param_groups[0]["lr"], w.grad
        (5.0, 0.1, None)

    Reference:
        Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3.
    """
    lr_min, lr_max = real(lr_min, "lr_min"), real(lr_max, "lr_max")
    if not lr_min < lr_max < math.inf:
        raise ValueError(f"lr_max: expected a finite number above lr_min = {lr_min:g}, got {lr_max:g}")
    steps = whole(steps, "steps", least=2)
    smoothing, divergence = real(smoothing, "smoothing", above=None), real(divergence, "divergence", above=1.0)
    if smoothing >= 1:
        raise ValueError(f"smoothing: expected a number from 0 to below 1, got {smoothing:g}")

    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, best, diverged_at = 0.0, math.inf, None
    take = _step_of(closure, optimizer)
    with Snapshot(optimizer, model, tuple(generators)) as snapshot:
        for k in range(steps):
            rate = lr_min * (lr_max / lr_min) ** (k / (steps - 1))
            snapshot.set_rate(rate)
            loss = _as_number(take(rate))
            average = smoothing * average + (1 - smoothing) * loss
            now = average / (1 - smoothing ** (k + 1))
            rates.append(rate)
            losses.append(loss)
            smoothed.append(now)
            if not math.isfinite(loss) or (k and now - min(best, 0.0) > divergence * max(abs(best), 1e-300)):
                diverged_at = rate
                break
            best = min(best, now)
    suggestion = _steepest(rates, losses, smoothed, smoothing)
    return LRRange(np.array(rates), np.array(losses), np.array(smoothed), suggestion, diverged_at)


def _step_of(closure: Callable[..., Any], optimizer: Any) -> Callable[[float], Any]:
    """One step at a given rate, which returns the loss before it."""
    callable_as(closure, "closure")
    if optimizer is None:
        return closure
    if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
        raise TypeError(
            f"expected an optimizer of oxistep.optim, torch.optim or oxistep.numpy, got {type(optimizer).__name__}"
        )
    if hasattr(optimizer, "register_step_pre_hook"):
        return lambda _: optimizer.step(closure)

    def with_arrays(_: float) -> Any:
        given = closure()
        if not isinstance(given, tuple) or len(given) != 2:
            raise TypeError("closure: with an optimizer of oxistep.numpy it must return (loss, gradients)")
        loss, grads = given
        optimizer.step(grads)
        return loss

    return with_arrays


def _as_number(loss: Any) -> float:
    try:
        return float(loss.detach() if is_tensor(loss) else loss)
    except (TypeError, ValueError):
        raise TypeError(f"closure: expected a loss, a single number, got {type(loss).__name__}") from None


def _steepest(rates: list[float], losses: list[float], smoothed: list[float], smoothing: float) -> float | None:
    """The rate of the steepest descent before the smoothed loss is at its lowest; None if that is noise."""
    finite = np.isfinite(smoothed)
    known = np.array(smoothed)[: int(finite.argmin()) if not finite.all() else None]
    lowest = int(known.argmin()) if len(known) else 0
    if lowest < _NEIGHBOURS:
        return None
    # the first averages are of few losses: what they do is scatter
    settled = min(math.ceil(1 / (1 - smoothing)), lowest // 2)
    begin = float(np.mean(losses[: settled + 1]))
    noise = _scatter(losses[: lowest + 1]) * math.sqrt((1 - smoothing) / (1 + smoothing))
    if begin - known[lowest] <= max(_FALL * abs(begin), _DEVIATIONS * noise):
        return None
    logs = np.log(rates)
    half = _NEIGHBOURS // 2
    places = range(max(half, settled), lowest + 1 - half)
    slopes = [(known[k + half] - known[k - half]) / (logs[k + half] - logs[k - half]) for k in places]
    return rates[places[int(np.argmin(slopes))]]


def _scatter(losses: list[float]) -> float:
    """The standard deviation of the losses around their course, from the median step between neighbours."""
    return float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))
