"""Statistics of every gradient after backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxistep._core import GradientStatistics
from oxistep.diagnostics._history import Floats, History
from oxistep.diagnostics._named import named, nested, so_many, whole
from oxistep.diagnostics._table import number, table
from oxistep.diagnostics.anomalies import Anomaly, Rules

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

FIELDS: tuple[str, ...] = GradientStatistics.fields()


class GradientMonitor:
    """Follows mean, variance, norm and more of every parameter's gradient, and names what looks wrong.

    Call :meth:`update` after ``backward``, or let :meth:`attach` do so before every step of an optimizer. One native
    pass over the gradients' memory, less than ``torch.nn.utils.clip_grad_norm_`` takes; nothing of a gradient's size
    is made, and the history is one array made at the start. The same bits whatever the number of threads.

    Of each gradient: ``elements`` (how many), ``mean``, ``variance`` (over the number of elements, not one less),
    ``norm`` (Euclidean), ``smallest`` (the smallest magnitude that is not zero; 0 if all are), ``largest``
    (magnitude), ``zeros`` (share of elements, 0 to 1), ``nan`` and ``inf`` (how many). With NaN or infinities among
    the elements, ``mean``, ``variance``, ``norm``, ``smallest`` and ``largest`` are those of the finite ones; if none
    is finite they are NaN. A parameter without a gradient has NaN everywhere. Sums are in float64 (float64 elements
    beyond 1e150 have an infinite norm and variance). A complex element counts as two reals, its parts. Of a sparse
    gradient only the stored values count, as backward leaves them: rows named twice are not summed.

    Anomalies, see :meth:`anomalies`:

    - ``not finite``: there is a NaN or an infinity.
    - ``exploding``: ``largest > exploding``; or ``norm > growth`` times the median of this parameter's norms in the
      updates before that are kept, once there are ten.
    - ``vanishing``: ``0 < largest < vanishing``.
    - ``dead``: every element has been zero in the last ``dead_after`` updates.

    Args:
        parameters: a ``torch.nn.Module``; or tensors, or NumPy arrays, as a dict from name, as pairs of name and
            tensor (``model.named_parameters()``), or alone, then named by their place; NumPy arrays also in containers
            inside each other, then named by their path. Of NumPy arrays only the names are kept.
        history: how many updates are kept (default: 256), 72 bytes each for every parameter.
        exploding: largest magnitude that is not suspicious (default: 1e3); ``math.inf`` switches the rule off.
        growth: largest growth of a norm over its median that is not suspicious (default: 100).
        vanishing: smallest ``largest`` that is not suspicious (default: 1e-6); 0 switches the rule off.
        dead_after: how many updates in a row must be zero throughout (default: 3).

    Raises:
        TypeError: for what is no module, tensor or array; tensors mixed with arrays; a threshold that is no number.
        ValueError: without parameters; for two of one name; a threshold out of range.

    Example:
        >>> import torch
        >>> from oxistep.diagnostics import GradientMonitor
        >>> model = torch.nn.Linear(2, 1)
        >>> monitor = GradientMonitor(model)
        >>> model(torch.tensor([[3.0, -4.0]])).sum().backward()
        >>> monitor.update()
        >>> row = monitor.rows()[0]
        >>> row["name"], row["norm"], row["mean"]
        ('weight', 5.0, -0.5)
        >>> monitor.anomalies()
        []

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983 (how the variance is summed).
        Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010 (why to look).
    """

    def __init__(
        self,
        parameters: Any,
        *,
        history: int = 256,
        exploding: float = 1e3,
        growth: float = 100.0,
        vanishing: float = 1e-6,
        dead_after: int = 3,
    ) -> None:
        names, objects, self._of_torch = named(parameters)
        flat = nested(parameters)
        self._branch = None if flat is None else flat.branch
        self._rules = Rules(exploding, growth, vanishing, dead_after)
        self._history = History(history, names, FIELDS)
        self._native = GradientStatistics()
        self._parameters: list[Any] = []
        if self._of_torch:
            import oxistep.optim  # noqa: F401  torch's threads are used from here on

            self._parameters = objects

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the order of tables and arrays."""
        return list(self._history.names)

    def update(self, grads: Any = None, *, step: int | None = None) -> None:
        """Look at the gradients now.

        Args:
            grads: for NumPy, the gradients: a dict with the names of the parameters, or a list in their order, or
                containers inside each other as the parameters were in; ``None`` for one that has none. Any float
                dtype, layout and shape. For torch leave it out: ``.grad`` is read.
            step: number of this update (default: one more than the last; the first is 0).

        Raises:
            TypeError: for ``grads`` missing with NumPy or given with torch; for an array that is not of float16,
                float32 or float64.
            ValueError: for gradients missing or unknown. Whatever is raised, nothing was recorded.
        """
        row = self._history.next()
        if self._of_torch:
            if grads is not None:
                raise TypeError("grads: a monitor of torch tensors reads their .grad; call update() without")
            if left := self._native.of_tensors(self._parameters, row, True):
                from oxistep.diagnostics._torch import statistics_of

                for i in left:
                    row[i] = statistics_of(self._parameters[i].grad, self._native)
        else:
            self._native.of_arrays(self._listed(grads), self._history.names, row)
        self._history.commit(step)

    def _listed(self, grads: Any) -> list[Any]:
        names = self._history.names
        if self._branch is not None and grads is not None:
            listed: list[Any] = []
            self._branch.read(grads, "grads", listed)
            return listed
        if isinstance(grads, Mapping):
            if missing := [name for name in names if name not in grads]:
                raise ValueError(f"grads lacks {missing[0]!r}; None stands for no gradient")
            if unknown := [name for name in grads if name not in names]:
                raise ValueError(f"grads has {unknown[0]!r}, which is no parameter of this monitor")
            return [grads[name] for name in names]
        if isinstance(grads, Sequence) and not isinstance(grads, str):
            if len(grads) != len(names):
                raise ValueError(f"grads must have {len(names)} entries, one for each parameter, got {len(grads)}")
            return list(grads)
        raise TypeError(
            f"grads: expected a dict or a list of arrays, got {type(grads).__name__}; NumPy arrays have no .grad, "
            "so call update(grads)"
        )

    def attach(self, optimizer: Any) -> Any:
        """Call :meth:`update` before every step of a torch optimizer (of ``oxistep.optim`` or ``torch.optim``).

        Args:
            optimizer: whose steps follow the gradients that are watched.

        Returns:
            torch's handle: its ``remove()`` ends this.

        Raises:
            TypeError: for an optimizer without ``register_step_pre_hook``; for NumPy call ``update(grads)`` yourself.

        Example:
            >>> import torch, oxistep
            >>> from oxistep.diagnostics import GradientMonitor
            >>> w = torch.ones(2, requires_grad=True)
            >>> optimizer = oxistep.SGD([w], lr=0.1)
            >>> monitor = GradientMonitor({"w": w})
            >>> handle = monitor.attach(optimizer)
            >>> for _ in range(3):
            ...     optimizer.zero_grad()
            ...     (w * w).sum().backward()
            ...     optimizer.step()
            >>> [round(row["norm"], 4) for row in monitor.rows(None)]
            [2.8284, 2.2627, 1.8102]
        """
        register = getattr(optimizer, "register_step_pre_hook", None)
        if register is None or not self._of_torch:
            raise TypeError(
                f"{type(optimizer).__name__}: only torch optimizers with a monitor of torch tensors have hooks; "
                "call monitor.update(grads) before the step"
            )
        return register(lambda *_: self.update())

    def anomalies(self, last: int | None = 1) -> list[Anomaly]:
        """What the rules find in the last updates, oldest first; empty if all is well.

        Args:
            last: how many updates are looked at (default: 1); ``None`` for all that are kept.
        """
        return self._rules.find(self._history, _count(last))

    def values(self, field: str) -> tuple[NDArray[np.int64], Floats]:
        """One field's history.

        Args:
            field: such as ``"norm"``, see the class.

        Returns:
            tuple: the steps, of shape (updates,), and the values, of shape (updates, parameters), oldest first.

        Raises:
            ValueError: for a field that is not measured.
        """
        if field not in FIELDS:
            raise ValueError(f"field: expected one of {', '.join(FIELDS)}, got {field!r}")
        steps, values = self._history.last()
        return steps, values[:, :, FIELDS.index(field)]

    def rows(self, last: int | None = 1) -> list[dict[str, Any]]:
        """The measurements as dicts, for ``pandas.DataFrame`` and loggers: one for each update and parameter.

        Args:
            last: how many updates (default: 1); ``None`` for all that are kept.

        Returns:
            list: dicts with ``step``, ``name``, the fields of the class, and ``anomaly``: kinds joined by a comma, or
                empty.
        """
        last = _count(last)
        kinds: dict[tuple[int, str], str] = {}
        for anomaly in self._rules.find(self._history, last):
            place = (anomaly.step, anomaly.name)
            kinds[place] = f"{kinds[place]}, {anomaly.kind}" if place in kinds else anomaly.kind
        steps, values = self._history.last(last)
        return [
            {
                "step": int(step),
                "name": name,
                **dict(zip(FIELDS, map(float, numbers), strict=True)),
                "anomaly": kinds.get((int(step), name), ""),
            }
            for step, update in zip(steps, values, strict=True)
            for name, numbers in zip(self._history.names, update, strict=True)
        ]

    def table(self) -> str:
        """The last update as a table, a line for each parameter; drawn by rich where that is installed."""
        rows = self.rows()
        if not rows:
            return f"GradientMonitor of {so_many(len(self._history.names))}, no update yet"
        cells = [
            [
                row["name"],
                f"{row['elements']:,.0f}",
                *(number(row[field]) for field in ("mean", "variance", "norm", "smallest", "largest")),
                f"{100 * row['zeros']:.1f} %",
                f"{row['nan']:.0f}",
                f"{row['inf']:.0f}",
                row["anomaly"],
            ]
            if row["elements"] == row["elements"]
            else [row["name"], "no gradient", *[""] * 9]
            for row in rows
        ]
        return table(f"Gradients at step {rows[0]['step']}", ["name", *FIELDS, "anomaly"], cells, ("name", "anomaly"))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<GradientMonitor of {len(self._history.names)} parameters, {self._history.count} updates>"

    def __len__(self) -> int:
        """How many updates are kept."""
        return len(self._history)

    def __bool__(self) -> bool:
        return True

    def clear(self) -> None:
        """Forget the history."""
        self._history.clear()

    def plot(self, field: str = "norm", *, output: str | Path | None = None) -> Figure:
        """A heat map of one field, parameters x steps, with its lines below; needs matplotlib.

        Args:
            field: what is drawn (default: ``"norm"``).
            output: write the picture there, as for `oxistep.viz.gradients` (default: None).

        Returns:
            matplotlib.figure.Figure: to show, or to save with ``savefig``.

        Raises:
            ModuleNotFoundError: without matplotlib.
            ValueError: before the first update; for a field that is not measured, or an ``output`` that is no picture.
        """
        from oxistep.viz import gradients

        return gradients(self, field, output=output)


def _count(last: int | None) -> int | None:
    return None if last is None else whole(last, "last", least=0)
