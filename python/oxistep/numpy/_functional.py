"""Optimizers as two functions, for programs that keep no objects: ``init`` and ``update``."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any, TypeVar

import numpy as np

from oxistep.numpy._structure import rebuilt
from oxistep.numpy._types import Array, kind, short

Tree = TypeVar("Tree")

_KEYS = ("step_count", "group", "state")


class FunctionalState(dict[str, Any]):
    """What goes from one update to the next: a dict of plain dicts, numbers and arrays.

    ``state["state"]`` has for each parameter, by its path, the states that its optimizer keeps (empty until its first
    gradient), ``state["group"]`` the numbers that some optimizers count with, and ``state["step_count"]`` the updates.
    """

    # The optimizer of the last update, so that the next need not make one. It is no item: copies and pickles lack it.
    _bound: Any = None

    def __reduce__(self) -> tuple[type[FunctionalState], tuple[dict[str, Any]]]:
        return FunctionalState, (dict(self),)


def is_state(value: object) -> bool:
    """Whether it is a state of functions: as they returned it, or a plain dict with the same items."""
    return isinstance(value, FunctionalState) or (type(value) is dict and value.keys() == set(_KEYS))


class Functional:
    """An optimizer as two functions; made by ``Adam.functional(lr=0.01)``, and so with every class but few.

    Args:
        cls: the class of ``oxistep.numpy``.
        hyperparameters: its arguments.
    """

    def __init__(self, cls: Any, hyperparameters: Mapping[str, Any]) -> None:
        if hasattr(cls, "train"):
            raise TypeError(
                f"{cls.__name__} is trained and tested at two points, between which its train() and eval() move the "
                "parameters; make an optimizer of it"
            )
        self._class, self._hyperparameters = cls, dict(hyperparameters)
        cls([np.zeros(1)], **hyperparameters)  # which says what is wrong with them

    def init(self, params: Any) -> FunctionalState:
        """Return the state with which `params` go into their first update.

        Args:
            params: arrays in a list, a dict, or containers of these at any depth; or one array.

        Raises:
            TypeError: for what cannot be a parameter.
            ValueError: for an array that cannot be written.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import Adam
            >>> Adam.functional(lr=0.1).init({"w": np.zeros(2)})
            {'step_count': 0, 'group': {}, 'state': {'w': {}}}
        """
        optimizer = self._made(params)
        state = FunctionalState(
            step_count=0,
            group=optimizer._oxistep_group_numbers(optimizer.param_groups[0]),
            state=dict(zip(names_of(optimizer), optimizer.state[0], strict=True)),
        )
        state._bound = (self, params, optimizer)
        return state

    def update(self, params: Tree, grads: Any, state: dict[str, Any], *, copy: bool = False) -> tuple[Tree, Any]:
        """Take one step.

        Args:
            params: what `init` was called with, or the same structure of other arrays.
            grads: the gradients in the same structure; None for an array or a container leaves that as it is.
            state: what `init` or the last update returned.
            copy: leave `params` and `state` as they are, and return others (default: False, which changes the arrays
                in place and returns the same objects).

        Returns:
            tuple: parameters and state.

        Raises:
            TypeError: what the ``step`` of the class raises; if the arguments are seen to stand in another order.
            ValueError: what that raises; if the state is that of other parameters. Whatever is raised, nothing has been
                changed.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> sgd = SGD.functional(lr=0.5)
            >>> w = np.array([1.0, 2.0])
            >>> state = sgd.init(w)
            >>> w, state = sgd.update(w, np.array([1.0, 1.0]), state)
            >>> w
            array([0.5, 1.5])
        """
        _check_order(params, grads, state)
        _check(state)
        if copy:
            params = rebuilt(params, _copied)
            state = FunctionalState(
                step_count=state["step_count"],
                group=dict(state["group"]),
                state={
                    name: {key: _copied(value) for key, value in entry.items()}
                    for name, entry in state["state"].items()
                },
            )
        optimizer = self._bound(params, state)
        optimizer.step([grads] if isinstance(params, np.ndarray) else grads)
        state["state"].update(zip(names_of(optimizer), optimizer.state[0], strict=True))
        state["group"] = optimizer._oxistep_group_numbers(optimizer.param_groups[0])
        state["step_count"] = optimizer.step_count
        if isinstance(state, FunctionalState):
            state._bound = (self, params, optimizer)
        return params, state

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._hyperparameters.items())
        return f"{self._class.__name__}.functional({given})"

    def _made(self, params: Any) -> Any:
        optimizer = self._class([params] if isinstance(params, np.ndarray) else params, **self._hyperparameters)
        if optimizer._oxistep_grouped:
            raise TypeError("params: expected arrays in a structure, got param groups; call one functional for each")
        return optimizer

    def _bound(self, params: Any, state: dict[str, Any]) -> Any:
        """An optimizer of these parameters with this state."""
        entries = state["state"]
        if (last := getattr(state, "_bound", None)) is not None:
            by, of, optimizer = last
            if by is self and of is params and optimizer.step_count == state["step_count"]:
                known = optimizer.state[0]
                same = len(entries) == len(known) and all(map(is_, entries.values(), known))
                if same and optimizer._oxistep_live.is_as_it_was():
                    optimizer.param_groups[0].update(state["group"])
                    return optimizer
        optimizer = self._made(params)
        names = names_of(optimizer)
        if unknown := entries.keys() - set(names):
            raise ValueError(f"state has {short(sorted(unknown))}, which are not among params: {short(names)}")
        for i, name in enumerate(names):
            if entries.get(name):
                optimizer.state[0][i] = entries[name]
        optimizer.param_groups[0].update(state["group"])
        optimizer.step_count = state["step_count"]
        return optimizer


def _check_order(params: Any, grads: Any, state: Any) -> None:
    """Refuses arguments that stand where others should, as far as that shows."""
    for name, value in (("params", params), ("grads", grads)):
        if isinstance(value, FunctionalState):
            raise TypeError(
                f"{name} is the state that init returned: the order is update(params, grads, state) (optax has "
                "update(grads, state, params))"
            )
    last = getattr(state, "_bound", None)
    # a gradient that is the parameter has a reason if the parameter is in its own place as well
    if last is not None and grads is last[1] and params is not grads:
        raise TypeError(
            "grads is what the last call had as params: the order is update(params, grads, state) (optax has "
            "update(grads, state, params))"
        )


def _check(state: Any) -> None:
    if not isinstance(state, dict):
        raise TypeError(f"state must be the dict that init returned, got {kind(state)}")
    if any(key not in state for key in _KEYS):
        raise ValueError(f"state must have {short(_KEYS)}, as init returns it, got {short(state)}")


def names_of(optimizer: Any) -> list[str]:
    """What the states of its parameters are called."""
    group = optimizer.param_groups[0]
    names: list[str] = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
    return names


def _copied(array: Array) -> Array:
    return np.array(array, copy=True, order="K", subok=False)
