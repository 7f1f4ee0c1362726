"""The rules by which a gradient is called anomalous. Each is one comparison that a reader can repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from oxistep.diagnostics._history import Floats, History
from oxistep.diagnostics._named import real, whole

# How many steps must have been recorded before a norm is compared with the median of those before it.
_ENOUGH = 10


class Anomaly(NamedTuple):
    """A gradient that a rule found wrong. Its text says what, where and when.

    Example:
        >>> from oxistep.diagnostics import Anomaly
        >>> str(Anomaly(3, "fc.weight", "vanishing", 2e-9, "largest magnitude 2e-09, below 1e-06"))
        'step 3, fc.weight: vanishing (largest magnitude 2e-09, below 1e-06)'
    """

    step: int
    """Number of the update."""
    name: str
    """Name of the parameter."""
    kind: str
    """``"not finite"``, ``"exploding"``, ``"vanishing"`` or ``"dead"``."""
    value: float
    """The figure that was compared: how many elements are not finite, a magnitude, a norm, or a number of updates."""
    detail: str
    """The comparison in words."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.name}: {self.kind} ({self.detail})"


class Rules:
    """The thresholds, checked."""

    def __init__(self, exploding: Any, growth: Any, vanishing: Any, dead_after: Any) -> None:
        self.exploding = real(exploding, "exploding")
        self.growth = real(growth, "growth", above=1.0)
        self.vanishing = real(vanishing, "vanishing", above=None)
        self.dead_after = whole(dead_after, "dead_after")

    def find(self, history: History, steps: int | None) -> list[Anomaly]:
        """Anomalies of the last ``steps`` updates (``None``: of all that are kept), oldest first."""
        numbers, values = history.last()
        wanted = range(len(numbers))[-steps if steps else None :] if steps != 0 else range(0)
        field = {name: values[:, :, k] for k, name in enumerate(history.fields)}
        found = []
        for t in wanted:
            row = {name: column[t] for name, column in field.items()}
            usual = _medians(field["norm"][:t])
            dead = _all_zero_for(field["zeros"][: t + 1])
            for i, kind, value, detail in self._judge(row, usual, dead):
                found.append(Anomaly(int(numbers[t]), history.names[i], kind, value, detail))
        return found

    def _judge(
        self, row: dict[str, Floats], usual: Floats | None, dead: Sequence[int]
    ) -> list[tuple[int, str, float, str]]:
        """Layer, kind, value and detail of each anomaly in one update."""
        found = []
        broken = row["nan"] + row["inf"]
        with np.errstate(invalid="ignore"):  # NaN: no gradient, hence no anomaly
            grown = row["norm"] > self.growth * usual if usual is not None else np.zeros(len(broken), bool)
            suspects = (broken > 0) | (row["largest"] > self.exploding) | grown | (row["largest"] < self.vanishing)
        for i in np.flatnonzero(suspects).tolist():
            largest, norm = float(row["largest"][i]), float(row["norm"][i])
            if broken[i] > 0:
                counts = f"{row['nan'][i]:.0f} NaN, {row['inf'][i]:.0f} inf of {row['elements'][i]:.0f}"
                found.append((i, "not finite", float(broken[i]), counts))
            if largest > self.exploding:
                detail = f"largest magnitude {largest:.3g}, above {self.exploding:g}"
                found.append((i, "exploding", largest, detail))
            elif grown[i] and usual is not None:
                detail = f"norm {norm:.3g}, above {self.growth:g} times its median of {usual[i]:.3g}"
                found.append((i, "exploding", norm, detail))
            if 0 < largest < self.vanishing:
                detail = f"largest magnitude {largest:.3g}, below {self.vanishing:g}"
                found.append((i, "vanishing", largest, detail))
        for i, updates in enumerate(dead):
            if updates >= self.dead_after:
                found.append((i, "dead", float(updates), f"all zero for {updates} update{'s' * (updates > 1)}"))
        return sorted(found, key=lambda anomaly: anomaly[0])


def _medians(norms: Floats) -> Floats | None:
    """Each layer's median over the updates before this one; ``None`` while there are too few. Zero does not count."""
    if len(norms) < _ENOUGH:
        return None
    known = np.where((norms > 0) & np.isfinite(norms), norms, np.nan)
    enough = (~np.isnan(known)).sum(axis=0) >= _ENOUGH
    medians: Floats = np.full(norms.shape[1], np.nan)
    if enough.any():
        medians[enough] = np.nanmedian(known[:, enough], axis=0)
    return medians


def _all_zero_for(zeros: Floats) -> list[int]:
    """For how many updates, up to the last one, each layer has been zero throughout."""
    broken = zeros[::-1] != 1.0
    return [int(n) for n in np.where(broken.any(axis=0), broken.argmax(axis=0), len(zeros))]
