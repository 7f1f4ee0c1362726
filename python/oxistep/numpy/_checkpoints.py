"""Checkpoints of the NumPy optimizers: state dicts in the structure of torch.optim, with arrays for tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np

from oxistep._torn import Torn
from oxistep.numpy._hyper import Check, is_whole
from oxistep.numpy._types import Array, Group, State, kind, short

# How torch runs a step. It does not change what is computed, so a checkpoint loads without these.
_TORCH_ONLY = {"foreach", "fused", "capturable", "differentiable"}
_SCALARS = ("step",)


class Checkpoints:
    """What an optimizer saves and loads."""

    # What a subclass declares: every key a state may have, and those of them that are one number; the hyperparameters
    # that old checkpoints lack, because torch had not invented them, with what their absence means.
    _oxistep_state_keys: ClassVar[tuple[str, ...]]
    _oxistep_scalars: ClassVar[tuple[str, ...]] = _SCALARS
    _oxistep_added_later: ClassVar[Group]
    _oxistep_checks: ClassVar[dict[str, Check]]

    _oxistep_torn: Torn | None = None
    """Set when a step broke off half-way, which takes a defect in a kernel; cleared by `load_state_dict`."""

    param_groups: list[Group]
    state: list[list[State]]
    step_count: int

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state in the structure of torch.optim, with arrays for tensors.

        Returns:
            ``{"state": {0: {...}, ...}, "param_groups": [...], "step_count": n}``. Parameters are numbered
            through all groups; one without a state is left out. ``step_count`` is ours, torch passes over it.
            A function as learning rate cannot be saved: its group has ``"lr": None``.

        As in torch, the arrays are the optimizer's own and change with the next step: save them at once, or
        take a ``copy.deepcopy``. For ``torch.optim``'s ``load_state_dict`` turn each array into a tensor
        (``torch.as_tensor``); the other way needs nothing, because ours reads tensors.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> w = np.zeros(2)
            >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
            >>> optimizer.step([np.ones(2)])
            >>> optimizer.state_dict()["state"]
            {0: {'momentum_buffer': array([1., 1.])}}
        """
        packed_groups: list[Group] = []
        packed_state: dict[int, State] = {}
        first = 0
        for group, states in zip(self.param_groups, self.state, strict=True):
            packed = {key: value for key, value in group.items() if key != "params"}
            if callable(packed.get("lr")):
                packed["lr"] = None
            packed["params"] = list(range(first, first + len(group["params"])))
            packed_groups.append(packed)
            packed_state.update({i: dict(state) for i, state in enumerate(states, first) if state})
            first += len(group["params"])
        return {"state": packed_state, "param_groups": packed_groups, "step_count": self.step_count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of this class or of torch.optim's class of the same name.

        Everything is copied, and states get the dtype and layout of their parameter. The group dicts are
        replaced by new ones, as in torch. Parameters are matched by name where both sides have names, else by
        position. torch's ``foreach``, ``fused``, ``capturable`` and ``differentiable`` are left out: they do
        not change what is computed.

        Learning rates: a saved number replaces what the optimizer has. A function was saved as None; then the
        function that the optimizer has stays, and if it has none, `step` raises until
        ``param_groups[k]["lr"]`` is set. ``step_count``, if the dict lacks it (as torch's do), becomes the
        largest ``step`` of the states, or 0 where there is none; set it yourself if a learning rate function
        needs another.

        Args:
            state_dict: the dict. Its arrays may be anything that NumPy can read, also torch's CPU tensors.

        Raises:
            TypeError: an entry has a wrong type.
            ValueError: the number of groups or parameters, names, hyperparameters, states or shapes do not
                fit. Whatever is raised, nothing has been changed.
        """
        if isinstance(state_dict, np.ndarray) and state_dict.shape == () and state_dict.dtype == object:
            state_dict = state_dict.item()  # of np.savez(optimizer=optimizer.state_dict())
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {kind(state_dict)}")
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(f"state_dict must have 'state' and 'param_groups', got {list(state_dict)}")
        saved_groups, saved_states = state_dict["param_groups"], state_dict["state"]
        if not isinstance(saved_groups, list | tuple) or not isinstance(saved_states, Mapping):
            raise TypeError("'state' of a state_dict must be a dict and its 'param_groups' a list")
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved_groups)}, the optimizer has {len(self.param_groups)}"
            )

        groups: list[Group] = []
        states: list[list[State]] = []
        known = set()
        for k, saved in enumerate(saved_groups):
            group = self._oxistep_loaded_group(saved, k)
            ids = _ids_in_our_order(self.param_groups[k], saved, k)
            groups.append(group)
            states.append([self._oxistep_loaded_state(saved_states.get(key), group, k, i) for i, key in enumerate(ids)])
            known.update(ids)
        if unknown := saved_states.keys() - known:
            raise ValueError(f"loaded state dict has states for {short(unknown)}, which are in none of its groups")

        count = state_dict.get("step_count")
        if count is None:
            count = max((int(state["step"]) for row in states for state in row if "step" in state), default=0)
        elif not is_whole(count) or count < 0:
            raise ValueError(f"step_count must be a whole number, not negative, got {count!r}")

        self.param_groups = groups
        self.state = states
        self.step_count = int(count)
        self._oxistep_torn = None

    # What a subclass may say about its states and groups.

    def _oxistep_first_state(self, array: Array, group: Group) -> State:
        """Return the state of a parameter that has never had a gradient."""
        return {}

    def _oxistep_numbers(self) -> Collection[str]:
        """The names of states of one number."""
        return self._oxistep_scalars

    def _oxistep_required_state(self, group: Group) -> tuple[str, ...]:
        """Return the keys that a state in `group` must have once it exists."""
        return self._oxistep_state_keys

    def _oxistep_saved_group(self, saved: Mapping[str, Any]) -> Group:
        """Return a group of a checkpoint in today's terms."""
        return {**self._oxistep_added_later, **{key: value for key, value in saved.items() if key not in _TORCH_ONLY}}

    def _oxistep_checked(self, given: Group, where: str = "") -> Group:
        raise NotImplementedError

    def _oxistep_name(self, group: Group, k: int, i: int) -> str:
        raise NotImplementedError

    def _oxistep_loaded_group(self, saved: Any, k: int) -> Group:
        where = f" in param_groups[{k}] of the loaded state dict"
        if not isinstance(saved, Mapping):
            raise TypeError(f"expected a dict{where}, got {kind(saved)}")
        ours = self.param_groups[k]
        saved = self._oxistep_saved_group(saved)
        if missing := [key for key in ("params", *self._oxistep_checks) if key not in saved]:
            raise ValueError(f"{short(missing)} missing{where}; was it saved by {type(self).__name__}?")
        if len(saved["params"]) != len(ours["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                f"group: {len(saved['params'])} parameters{where}, the optimizer has {len(ours['params'])}"
            )

        hyper = {key: _plain(saved[key]) for key in self._oxistep_checks}
        was_function = "lr" in hyper and hyper["lr"] is None
        hyper = self._oxistep_checked({**hyper, "lr": 0.0} if was_function else hyper, where)
        if was_function:
            hyper["lr"] = ours["lr"] if callable(ours["lr"]) else None
        names = {"param_names": ours["param_names"]} if "param_names" in ours else {}
        known = {"params", "param_names", *self._oxistep_checks}
        labels = {key: deepcopy(value) for key, value in saved.items() if key not in known}
        return {"params": ours["params"], **names, **hyper, **labels}

    def _oxistep_loaded_state(self, saved: Any, group: Group, k: int, i: int) -> State:
        array, name = group["params"][i], self._oxistep_name(group, k, i)
        if saved is not None and not isinstance(saved, Mapping):
            raise TypeError(f"loaded state of {name} must be a dict, got {kind(saved)}")
        # torch's SGD saves None for a buffer that does not exist yet.
        saved = {key: value for key, value in (saved or {}).items() if value is not None}
        if not saved:
            return self._oxistep_first_state(array, group)
        if unknown := [key for key in saved if key not in self._oxistep_state_keys]:
            raise ValueError(
                f"loaded state of {name} has {short(unknown)}, that of {type(self).__name__} has "
                f"{short(self._oxistep_state_keys)}; was it saved by another optimizer?"
            )
        if missing := [key for key in self._oxistep_required_state(group) if key not in saved]:
            raise ValueError(f"loaded state of {name} lacks {short(missing)}")
        return {key: loaded_array(value, key, array, name, self._oxistep_scalars) for key, value in saved.items()}


def new_step() -> Array:
    """Return the step counter of a parameter."""
    return new_scalar(0.0)


def new_scalar(value: float) -> Array:
    """Return a state of one number: 0-dimensional float32, as torch has it."""
    return np.full((), value, np.float32)


def _ids_in_our_order(ours: Group, saved: Mapping[str, Any], k: int) -> list[Any]:
    """Return the saved ids of a group in the order of our parameters."""
    ids = list(saved["params"])
    our_names, saved_names = ours.get("param_names"), saved.get("param_names")
    if our_names is None or saved_names is None or our_names == list(saved_names):
        return ids
    if set(our_names) != set(saved_names) or len(saved_names) != len(ids):
        raise ValueError(
            f"the parameters in param_groups[{k}] of the loaded state dict are {short(saved_names)}, those "
            f"of the optimizer {short(our_names)}; delete 'param_names' there to match them by position"
        )
    by_name = dict(zip(saved_names, ids, strict=True))
    return [by_name[name] for name in our_names]


def _plain(value: Any) -> Any:
    """Turn what a checkpoint may have for numbers, 0-dimensional arrays and tensors, into numbers."""
    if isinstance(value, tuple | list):
        return tuple(_plain(element) for element in value)
    return value.item() if getattr(value, "shape", None) == () else value


def loaded_array(value: Any, key: str, parameter: Array, name: str, scalars: Sequence[str] = _SCALARS) -> Array:
    """Return a copy of a loaded state, for a step counter and the like or else in the parameter's dtype and layout."""
    what = f"loaded {key} of {name}"
    try:
        read = np.asanyarray(value)
    except Exception as error:  # whatever a foreign __array__ raises: bfloat16, another device, a ragged list
        raise TypeError(f"{what} cannot be read as a NumPy array: {error}") from error
    if read.dtype.kind not in "fiu" or (type(read) is not np.ndarray and isinstance(read, np.ma.MaskedArray)):
        raise TypeError(f"{what} must be an array of numbers, got {kind(read)} of {read.dtype}")
    loaded = new_step() if key in scalars else np.empty_like(parameter, subok=False)
    if read.shape != loaded.shape:
        raise ValueError(f"{what} has shape {read.shape}, expected {loaded.shape}")
    if key == "step" and not 0 <= read < np.inf:
        raise ValueError(f"{what} must be a number of steps, got {value!r}")
    loaded[...] = read
    return loaded
