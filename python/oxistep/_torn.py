"""What is left of an optimizer when a step broke off after its first write.

That takes a defect in a kernel or, for Muon, which works in several rounds, an operation of torch's that fails between
two of them. From then on the optimizer refuses to step, until ``load_state_dict`` has replaced its states. This module
knows nothing of torch.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

__all__ = ["Torn", "names_of", "text_of"]

# How many names or ranges an error tells.
_MOST = 8


class Torn:
    """Stands where the native plan of an optimizer stood, and refuses to step."""

    def __init__(self, text: str) -> None:
        self.text = text

    def step(self, *_: Any) -> None:
        """Refuses.

        Raises:
            RuntimeError: always, with what happened and the remedy.
        """
        raise RuntimeError(f"this optimizer takes no step: {self.text}")


def text_of(cause: str, names: str) -> str:
    """What happened, to which parameters, and the remedy."""
    return (
        f"{cause}, and may have left half written or not updated: {names or 'nothing that has a name'}, with their "
        "states. Load the parameters and then, with load_state_dict, the optimizer from a checkpoint; until then this "
        "optimizer refuses to step"
    )


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
