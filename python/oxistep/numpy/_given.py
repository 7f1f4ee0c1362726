"""What the parameters of a group were given in, and whether arrays in there have been replaced since.

``params["W"] = params["W"] - ...`` makes a new array, of which an optimizer that holds the old one knows nothing: from
then on it would train what nobody uses. So the containers are kept and looked at before each step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence, ValuesView
from typing import Any

from oxistep.numpy._structure import Branch, Flat, expression_of
from oxistep.numpy._types import Array, Params

Seen = tuple[Collection[Any], list[Any]]
"""A container (a mapping, or what stands for its values), and what it held when it was last looked at."""


class Given:
    """The container of a group's parameters.

    Attributes:
        arrays: the parameters, in order.
        names: for each its path; none for a plain list.
        branch: how gradients are structured; none for a plain list, and for a dict of arrays by strings.
        seen: each container that can be changed, and what it held.
    """

    def __init__(self, params: Params) -> None:
        root = params if isinstance(params, Mapping | list | tuple | ValuesView) else list(params)
        flat = Flat(root)
        self._root: Any = root
        self._private = None if root is params else root  # nobody else can change it
        self.arrays: list[Any] = flat.arrays
        self.names: list[str] | None = None
        self.branch: Branch | None = flat.branch
        self._paths = flat.paths
        if isinstance(root, Mapping) or not flat.branch.flat:
            self.names = flat.names
        if flat.branch.flat and (self.names is None or flat.branch.keys == tuple(self.names)):
            self.branch = None
        self._keys = flat.branch.keys
        self._look(flat)

    def _look(self, flat: Flat) -> None:
        self._containers = [one for one in flat.containers if one is not self._private]
        self._held = [list(values_of(container)) for container in self._containers]

    @property
    def seen(self) -> list[Seen]:
        """Each container that can be changed, and what it held."""
        return list(zip(self._containers, self._held, strict=True))

    @property
    def keys(self) -> tuple[Any, ...] | None:
        """The keys of the outermost container; none for a sequence."""
        return self._keys

    def expression(self, i: int) -> str:
        """How code reaches an array: ``params['layers'][0]['W']``."""
        return f"params{expression_of(self._paths[i])}"

    def told(self, i: int) -> str:
        """What errors call an array that is looked for: how code reaches it, and its name if that reads otherwise."""
        named = self.names is not None and len(self._paths[i]) > 1
        return self.expression(i) + (f" (named {self.names[i]!r})" if named and self.names else "")

    def replaced(self, known: Sequence[Array]) -> dict[int, Any]:
        """The arrays that are others now, by their place.

        Args:
            known: arrays that may be there as well, parameters of other groups.

        Raises:
            ValueError: for one that is gone, or new and unknown.
        """
        if self._root is None:
            return {}
        flat = Flat(self._root)
        now = dict(zip(flat.paths, flat.arrays, strict=True))
        for i, path in enumerate(self._paths):
            if path not in now:
                raise ValueError(
                    f"{self.told(i)} is gone from what the parameters were given in, but the optimizer still has "
                    "it; make a new optimizer without it, or give it the gradient None and leave it where it is"
                )
        ours = set(self._paths)
        ids = set(map(id, known))
        for path, array in now.items():
            if path not in ours and id(array) not in ids:
                raise ValueError(
                    f"params{expression_of(path)} is new, and the optimizer does not train it; "
                    "optimizer.add_param_group({'params': {name: array}}) adds it"
                )
        return {
            i: now[path]
            for i, (path, array) in enumerate(zip(self._paths, self.arrays, strict=True))
            if now[path] is not array
        }

    def take(self, arrays: Mapping[int, Array]) -> None:
        """From now on these are the arrays, by their place; nothing that is there now is news any more."""
        for i, array in arrays.items():
            self.arrays[i] = array
        if self._root is not None:
            self._look(Flat(self._root))

    def put(self, i: int, array: Array) -> None:
        """Puts another array into the place of one, there as well where the parameters were given."""
        old, self.arrays[i] = self.arrays[i], array
        self.exchange(old, array)
        for held in self._held:
            held[:] = [array if value is old else value for value in held]

    def exchange(self, old: Any, array: Array) -> None:
        """Puts an array into the place of something else, where the parameters were given."""
        for container in self._containers:
            items = container.items() if isinstance(container, Mapping) else enumerate(container)
            places = [place for place, value in list(items) if value is old]
            for place in places:
                if isinstance(container, MutableMapping | list):
                    container[place] = array

    def __getstate__(self) -> dict[str, Any]:
        # Views cannot be copied, nor what they are views of be found.
        kept = dict(self.__dict__)
        if isinstance(self._root, ValuesView) or any(isinstance(one, ValuesView) for one in self._containers):
            kept |= {"_root": None, "_containers": [], "_held": []}
        return kept


def values_of(container: Any) -> Any:
    """What a container holds."""
    if isinstance(container, dict):
        return container.values()
    return list(container.values()) if isinstance(container, Mapping) else container
