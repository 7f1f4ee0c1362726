"""What parameters were given in: gradients are read in the same structure, and replaced arrays are noticed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import is_
from typing import Any

import numpy as np

from oxistep.numpy._given import Given, Seen, values_of
from oxistep.numpy._parameters import check_parameter
from oxistep.numpy._replace import blank, carried
from oxistep.numpy._structure import by_key, in_order
from oxistep.numpy._types import Array, Grad, Group, State, kind


class Live:
    """All containers, beside what they held."""

    __slots__ = ("given", "seen")

    def __init__(self, given: list[Given]) -> None:
        self.given = given
        self.look()

    def look(self) -> None:
        """Begins anew with what is there."""
        self.seen: list[Seen] = [one for given in self.given for one in given.seen]

    def is_as_it_was(self) -> bool:
        """Whether every container holds the objects that it held."""
        for container, held in self.seen:
            values = values_of(container)
            if len(values) != len(held) or not all(map(is_, values, held)):
                return False
        return True

    def __reduce__(self) -> tuple[type[Live], tuple[list[Given]]]:
        return Live, (self.given,)


class Containers:
    """What an optimizer knows of the structures that its parameters lie in."""

    param_groups: list[Group]
    state: list[list[State]]

    _oxistep_grouped: bool
    """Whether gradients come as one list (or dict) per group, or as that of the only group."""
    _oxistep_live: Live
    _oxistep_follow: bool

    def replace(self, old: Array | str, new: Array) -> None:
        """Train another array in the place of one, and carry its state over: for arrays that grow or shrink.

        Where the arrays differ in shape, the state of what both have is kept, what `new` has more begins as it would
        with a new parameter (with zeros, for nearly all rules), and what it has less is forgotten. Values are not
        copied: `new` comes with its own. Where the parameters were given in a dict or a list, `new` takes the place of
        `old` in there as well.

        Args:
            old: the array that is a parameter, or its name.
            new: the array that is to be one, of any shape and of float64, float32 or float16.

        Raises:
            TypeError: if `new` cannot be a parameter.
            ValueError: if `old` is none, or `new` is one already, or cannot be written; if `new` has another number of
                dimensions and there is a state to carry over. Whatever is raised, nothing has been changed.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> params = {"E": np.zeros((2, 2))}
            >>> optimizer = SGD(params, lr=0.1, momentum=0.9)
            >>> optimizer.step({"E": np.ones((2, 2))})
            >>> grown = np.zeros((3, 2))
            >>> grown[:2] = params["E"]
            >>> optimizer.replace("E", grown)
            >>> params["E"] is grown
            True
            >>> optimizer.state[0][0]["momentum_buffer"][:, 0]
            array([1., 1., 0.])
        """
        k, i = self._oxistep_find(old)
        group = self.param_groups[k]
        name = self._oxistep_name(group, k, i)
        before: Array = group["params"][i]
        if new is before:
            return
        check_parameter(new, name)
        self._oxistep_unknown(new, name)
        entry = self.state[k][i]
        state = {}
        if entry:
            begun = self._oxistep_begun(new, group, entry, before)
            state = carried(entry, begun, (before, new), name, self._oxistep_numbers())
        elif before.shape != new.shape or before.dtype != new.dtype:
            state = self._oxistep_first_state(new, group)
        group["params"][i] = new
        self.state[k][i] = state
        given = self._oxistep_live.given
        if k < len(given) and i < len(given[k].arrays):
            given[k].put(i, new)

    def _oxistep_begun(self, new: Array, group: Group, state: State, old: Array) -> State:
        """The state with which `new` would begin, for the keys of the state of `old`."""
        return blank(new, state, old, self._oxistep_numbers())

    def _oxistep_numbers(self) -> Collection[str]:
        """The names of states of one number."""
        raise NotImplementedError

    def _oxistep_first_state(self, array: Array, group: Group) -> State:
        raise NotImplementedError

    def _oxistep_name(self, group: Group, k: int, i: int) -> str:
        raise NotImplementedError

    def _oxistep_find(self, old: Array | str) -> tuple[int, int]:
        """The group and the place of a parameter."""
        for look_again in (self._oxistep_follow, False):
            for k, group in enumerate(self.param_groups):
                for i, array in enumerate(group["params"]):
                    if array is old or (isinstance(old, str) and group.get("param_names", ())[i : i + 1] == [old]):
                        return k, i
            if look_again:  # it may have come since the last step
                self._oxistep_see_containers()
        what = repr(old) if isinstance(old, str) else "old"
        raise ValueError(f"{what} is no parameter of this optimizer; give the array itself, or its name")

    def _oxistep_unknown(self, new: Any, name: str) -> None:
        """Refuses an array that is a parameter already."""
        for k, group in enumerate(self.param_groups):
            for i, array in enumerate(group["params"]):
                if array is new:
                    other = self._oxistep_name(group, k, i)
                    raise ValueError(f"some parameters appear more than once: {name} would be {other}")

    def _oxistep_listed(self, grads: Any) -> list[list[Grad]]:
        """The gradients of each group, in the order of its parameters, none of which has been replaced."""
        live = self._oxistep_live
        if not live.is_as_it_was():
            self._oxistep_see_containers()
        groups, given = self.param_groups, live.given
        if not self._oxistep_grouped:
            return [_list_of_group(grads, groups[0], given[0], "grads")]
        if isinstance(grads, Mapping):
            grads = self._oxistep_split(grads)
        if not isinstance(grads, list | tuple):
            raise TypeError(
                f"grads must be a list with one list (or dict) of gradients for each of the {len(groups)} "
                f"groups, got {kind(grads)}"
            )
        if len(grads) != len(groups):
            raise ValueError(
                f"grads must have one list (or dict) of gradients for each of the {len(groups)} groups, got "
                f"{len(grads)} entries"
            )
        return [
            _list_of_group(grads[k], group, of, f"grads[{k}]")
            for k, (group, of) in enumerate(zip(groups, given, strict=False))
        ]

    def _oxistep_split(self, grads: Mapping[Any, Any]) -> Any:
        """One dict with the gradients of all groups as one dict for each, if the keys of all groups are known."""
        keys = [given.keys for given in self._oxistep_live.given]
        together = [key for of_group in keys if of_group is not None for key in of_group]
        if None in keys or len(set(together)) < len(together):
            return grads
        by_key(grads, together, "grads")
        return [{key: grads[key] for key in of_group or ()} for of_group in keys]

    def _oxistep_see_containers(self) -> None:
        """Looks at what has become of the containers: follows an array that has been replaced, or refuses it."""
        live = self._oxistep_live
        known = [array for group in self.param_groups for array in group["params"]]
        found = [given.replaced(known) for given in live.given]
        followed = [
            {i: self._oxistep_followed(given, k, i, new) for i, new in replaced.items()}
            for k, (given, replaced) in enumerate(zip(live.given, found, strict=True))
        ]
        for k, (given, arrays) in enumerate(zip(live.given, followed, strict=True)):
            params = self.param_groups[k]["params"]
            for i, array in arrays.items():
                place = next((j for j, one in enumerate(params) if one is given.arrays[i]), i)
                params[place] = array
                if array is not found[k][i]:
                    given.exchange(found[k][i], array)
            given.take(arrays)
        live.look()

    def _oxistep_followed(self, given: Given, k: int, i: int, new: Any) -> Array:
        """The array in the place of another, if the optimizer is to follow it and can."""
        old, expression = given.arrays[i], given.expression(i)
        if not self._oxistep_follow:
            old_array = f"optimizer.param_groups[{k}]['params'][{i}]"
            which = repr(given.names[i]) if given.names else old_array
            makes = "" if isinstance(new, np.ndarray) else f"{expression} = np.array({expression}) and "
            raise ValueError(
                f"{given.told(i)} has been replaced by another array, which the optimizer does not train; write "
                f"{expression}[...] = ... to change an array in place, and {makes}optimizer.replace({which}, "
                f"{expression}) once to train the one that is there now; or make the optimizer with follow=True (the "
                f"old array is in {old_array})"
            )
        if old.ndim == 0 and isinstance(new, np.generic | float | int):
            new = np.array(new, old.dtype)  # what NumPy makes of `b - step`, without dimensions, is a number
        check_parameter(new, expression, expression)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise ValueError(
                f"{expression} has been replaced by an array of shape {new.shape} and dtype {new.dtype}, was "
                f"{old.shape} and {old.dtype}; optimizer.replace(old, new) carries the state over"
            )
        self._oxistep_unknown(new, expression)
        followed: Array = new
        return followed


def _list_of_group(grads: Any, group: Group, given: Given, what: str) -> list[Grad]:
    """The gradients of one group as a list in the order of its parameters."""
    if given.branch is not None:
        listed: list[Grad] = []
        given.branch.read(grads, what, listed)
        return listed
    names = group.get("param_names")
    # What nearly all steps are given, without a further call.
    if names is None:
        if type(grads) is list and len(grads) == len(group["params"]):
            return grads
        return in_order(grads, len(group["params"]), what)
    if type(grads) is dict and len(grads) == len(names):
        try:
            return [grads[name] for name in names]
        except KeyError:
            pass  # which is told below
    return by_key(grads, names, what)
