"""What the parameters of an optimizer are called in errors and tables. Knows nothing of torch."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

__all__ = ["name_of", "names_of"]

# How many names or ranges an error tells.
_MOST = 8


def name_of(groups: Sequence[dict[str, Any]], g: int, i: int) -> str:
    """The name of a parameter, or its place among groups that were given without names."""
    names = groups[g].get("param_names") if g < len(groups) else None
    return names[i] if names and i < len(names) else f"param_groups[{g}]['params'][{i}]"


def names_of(groups: Sequence[dict[str, Any]], params: Iterable[Any]) -> str:
    """The names of some parameters of an optimizer, by group and index where they have none."""
    wanted = set(map(id, params))
    told = []
    for g, group in enumerate(groups):
        places = [i for i, p in enumerate(group["params"]) if id(p) in wanted]
        if names := group.get("param_names"):
            told += [repr(names[i]) for i in places]
            continue
        for _, run in groupby(enumerate(places), key=lambda at: at[1] - at[0]):
            first, *rest = [i for _, i in run]
            told.append(f"param_groups[{g}]['params'][{f'{first}:{rest[-1] + 1}' if rest else first}]")
    return ", ".join(told if len(told) <= _MOST else [*told[:_MOST], f"and {len(told) - _MOST} more"])
