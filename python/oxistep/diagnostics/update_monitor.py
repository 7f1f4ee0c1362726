"""What the optimizer does to each parameter: the size of updates, and the effective learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from oxistep.diagnostics._history import Floats, History
from oxistep.diagnostics._named import named, so_many, whole
from oxistep.diagnostics._table import number, table

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

# What is kept; the other fields follow from these.
_KEPT = ("update", "parameter", "gradient")
FIELDS = (*_KEPT, "ratio", "effective_lr")

_watched: WeakSet[Any] = WeakSet()


def _refuse_release(optimizer: Any) -> None:
    """Raises if parameters are stepped in backward: there is nothing left to measure in ``step`` then."""
    kept = getattr(optimizer, "__dict__", {}).get("_oxistep")
    if getattr(kept, "release", None) is not None:
        raise ValueError(
            "UpdateMonitor measures what step() does, and step_in_backward has the parameters stepped before; call "
            "remove() of what step_in_backward returned, or do without the monitor"
        )


class UpdateMonitor:
    """Follows, for every parameter, how far each step of an optimizer moves it.

    Of each parameter and step: ``update`` (norm of the difference between the parameter after the step and before
    it), ``parameter`` (norm before the step), ``gradient`` (norm of the gradient as the rule takes it: unscaled, and
    clipped by ``max_grad_norm``), ``ratio`` (``update / parameter``: about 1e-3 is a common rule of thumb for
    weights, much less means that they hardly learn, much more that they are thrown about) and ``effective_lr``
    (``update / gradient``: the learning rate with which plain gradient descent would have made a step of the same
    length. For SGD without momentum and weight decay it is ``lr``). Norms are Euclidean, in float64. A parameter that
    was not updated, having no gradient, has NaN. With ``weights=`` the update is that of the float32 numbers, before
    they are rounded to what is kept: what ``"stochastic"`` adds to bfloat16 parameters at random is not in it.

    Native element-wise optimizers of ``oxistep.optim`` and those of ``oxistep.numpy`` measure inside the step, on
    tiles that are in the cache anyway; the parameters come out with the same bits as without a monitor. What torch
    updates, Adafactor, Muon, LBFGS and optimizers of ``torch.optim`` are compared with a copy of the parameter, which
    takes its memory once more. With a sparse gradient the native path counts the rows that it names. A step that
    ``skip_nonfinite`` leaves out is not recorded. Without a monitor a step costs what it always costs.

    Args:
        optimizer: of ``oxistep.optim``, ``torch.optim`` or ``oxistep.numpy``. One monitor at a time.
        names: the model, or ``model.named_parameters()``, to name parameters by (default: the names that the
            optimizer was given, else ``param_groups[g]['params'][i]``).
        history: how many steps are kept (default: 256), 24 bytes each for every parameter.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: if the optimizer has a monitor already.

    Example:
        >>> import torch, oxistep
        >>> from oxistep.diagnostics import UpdateMonitor
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = oxistep.SGD([w], lr=0.1)
        >>> monitor = UpdateMonitor(optimizer, names={"w": w})
        >>> (w * w / 2).sum().backward()
        >>> optimizer.step()
        >>> row = monitor.rows()[0]
        >>> row["name"], row["parameter"], round(row["ratio"], 6), round(row["effective_lr"], 6)
        ('w', 5.0, 0.1, 0.1)
        >>> monitor.remove()
    """

    def __init__(self, optimizer: Any, *, names: Any = None, history: int = 256) -> None:
        groups = getattr(optimizer, "param_groups", None)
        register = getattr(optimizer, "register_step_pre_hook", None)
        of_numpy = register is None and hasattr(type(optimizer), "_oxistep_watch")
        if not isinstance(groups, list) or (register is None and not of_numpy):
            raise TypeError(
                f"expected an optimizer of oxistep.optim, torch.optim or oxistep.numpy, got {type(optimizer).__name__}"
            )
        if optimizer in _watched:
            raise ValueError("this optimizer has a monitor already; call its remove() first")
        _refuse_release(optimizer)
        self._optimizer = optimizer
        self._known = {} if names is None else {id(p): name for name, p in zip(*named(names)[:2], strict=True)}
        self._history = History(history, self._names(), _KEPT)
        self._handles: list[Any] = []
        self._plan: Any = None
        self._copies: dict[int, tuple[Any, Any]] = {}
        if of_numpy:
            optimizer._oxistep_watch = self
        else:
            self._handles = [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]
        _watched.add(optimizer)

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the order of tables and arrays: group by group."""
        return list(self._history.names)

    def remove(self) -> None:
        """Leave the optimizer alone from now on; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._plan is not None:
            self._plan.watch(None)
            self._plan = None
        if getattr(self._optimizer, "_oxistep_watch", None) is self:
            del self._optimizer._oxistep_watch
        self._copies.clear()
        _watched.discard(self._optimizer)

    def _names(self) -> list[str]:
        groups = self._optimizer.param_groups
        return [
            self._known.get(id(p)) or (group["param_names"][i] if group.get("param_names") else _place(g, i))
            for g, group in enumerate(groups)
            for i, p in enumerate(group["params"])
        ]

    def _row(self) -> Floats:
        """What the next step is written into; raises where a group was added."""
        count = sum(len(group["params"]) for group in self._optimizer.param_groups)
        if count != len(self._history.names):
            raise ValueError(
                f"the optimizer has {count} parameters now, had {len(self._history.names)} when its monitor was "
                "made; remove() it and make another"
            )
        return self._history.next()

    # What torch's hooks call, and through the native plan `_copy`.

    def _before(self, optimizer: Any, *_: Any) -> None:
        _refuse_release(optimizer)
        self._copies.clear()
        self._row()  # raises before anything is changed
        plan = self._native_plan()
        if plan is not self._plan:
            if self._plan is not None:
                self._plan.watch(None)
            if plan is not None:
                plan.watch(self)
            self._plan = plan
        if plan is None:
            groups = optimizer.param_groups
            self._copy([(g, i) for g, group in enumerate(groups) for i in range(len(group["params"]))])

    def _native_plan(self) -> Any:
        """The plan that will take the step, if one will."""
        from oxistep._core import Plan
        from oxistep.optim import _modes
        from oxistep.optim._definition import plan_of
        from oxistep.optim._native import NativeStep

        if not isinstance(self._optimizer, NativeStep) or _modes.because():
            return None
        plan = plan_of(self._optimizer)
        return plan if isinstance(plan, Plan) else None

    def _copy(self, places: list[tuple[int, int]]) -> None:
        """Copies parameters that no kernel measures, before they are written."""
        groups, starts = self._optimizer.param_groups, self._starts()
        for g, i in places:
            p = groups[g]["params"][i]
            self._copies[starts[g] + i] = (p, p.detach().clone())

    def _after(self, *_: Any) -> None:
        row = self._row()
        row.fill(np.nan)
        taken = self._plan is None or self._plan.updates(row, self._starts())
        if taken:
            from oxistep.diagnostics._torch import norms_of

            for k, (p, old) in self._copies.items():
                row[k] = norms_of(p, old)
            self._history.commit(None)
        self._copies.clear()

    def _starts(self) -> list[int]:
        starts = [0]
        for group in self._optimizer.param_groups:
            starts.append(starts[-1] + len(group["params"]))
        return starts

    # What is shown.

    def values(self, field: str) -> tuple[NDArray[np.int64], Floats]:
        """One field's history.

        Args:
            field: such as ``"ratio"``, see the class.

        Returns:
            tuple: the steps, of shape (steps,), and the values, of shape (steps, parameters), oldest first.

        Raises:
            ValueError: for a field that is not measured.
        """
        if field not in FIELDS:
            raise ValueError(f"field: expected one of {', '.join(FIELDS)}, got {field!r}")
        steps, values = self._history.last()
        return steps, _all_fields(values)[:, :, FIELDS.index(field)]

    def rows(self, last: int | None = 1) -> list[dict[str, Any]]:
        """The measurements as dicts, for ``pandas.DataFrame`` and loggers: one for each step and parameter.

        Args:
            last: how many steps (default: 1); ``None`` for all that are kept.

        Returns:
            list: dicts with ``step``, ``name`` and the fields of the class.
        """
        steps, values = self._history.last(None if last is None else whole(last, "last", least=0))
        return [
            {"step": int(step), "name": name, **dict(zip(FIELDS, map(float, numbers), strict=True))}
            for step, update in zip(steps, _all_fields(values), strict=True)
            for name, numbers in zip(self._history.names, update, strict=True)
        ]

    def table(self) -> str:
        """The last step as a table, a line for each parameter; drawn by rich where that is installed."""
        rows = self.rows()
        if not rows:
            return f"UpdateMonitor of {so_many(len(self._history.names))}, no step yet"
        cells = [
            [row["name"], *(number(row[field]) if row[field] == row[field] else "" for field in FIELDS)] for row in rows
        ]
        return table(f"Updates of step {rows[0]['step']}", ["name", *FIELDS], cells, ("name",))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<UpdateMonitor of {len(self._history.names)} parameters, {self._history.count} steps>"

    def __len__(self) -> int:
        """How many steps are kept."""
        return len(self._history)

    def __bool__(self) -> bool:
        return True

    def plot(self, field: str = "ratio", *, output: str | Path | None = None) -> Figure:
        """A heat map of one field, parameters x steps, with its lines below; needs matplotlib.

        Args:
            field: what is drawn (default: ``"ratio"``).
            output: write the picture there, as for `oxistep.viz.updates` (default: None).

        Returns:
            matplotlib.figure.Figure: to show, or to save with ``savefig``.

        Raises:
            ModuleNotFoundError: without matplotlib.
            ValueError: before the first step; for a field that is not measured, or an ``output`` that is no picture.
        """
        from oxistep.viz import updates

        return updates(self, field, output=output)


def _all_fields(kept: Floats) -> Floats:
    update, parameter, gradient = kept[..., 0], kept[..., 1], kept[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Floats = np.stack([update, parameter, gradient, update / parameter, update / gradient], axis=-1)
    return ratios


def _place(g: int, i: int) -> str:
    return f"param_groups[{g}]['params'][{i}]"
