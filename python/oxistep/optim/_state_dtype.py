"""``state_dtype``: states kept in float32 for parameters of a half type.

torch keeps the states of a bfloat16 parameter in bfloat16, where a running mean of squares with a decay of 0.999 cannot
move any more: the change is less than half a unit in the last place. The option must survive what torch does to states:
``load_state_dict`` casts them to the parameter's dtype, ``deepcopy`` and ``pickle`` keep three attributes only.
"""

import inspect
from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from oxistep.optim._all_or_nothing import AllOrNothing
from oxistep.optim._storages import place

_HALF = (torch.float16, torch.bfloat16)
_PARAMETER = inspect.Parameter(
    "state_dtype", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="torch.dtype | None"
)


class StateDtype(AllOrNothing):
    """An optimizer whose constructor takes ``state_dtype`` after torch's arguments."""

    __signature__: ClassVar[inspect.Signature] = inspect.signature(torch.optim.Optimizer)

    _scalars: ClassVar[tuple[str, ...]] = ()
    """States of one number, besides ``step``, that are not kept in the parameter's dtype."""

    _state_dtype: torch.dtype | None = None
    """None: torch's own dtypes. Kept on the instance, since distributed checkpoints read every key of a group."""

    def __init__(self, *args: Any, state_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        if state_dtype not in (None, torch.float32):
            raise ValueError(
                f"state_dtype: expected torch.float32 (for parameters of a half type) or None, got {state_dtype}"
            )
        if state_dtype is not None:
            self._state_dtype = state_dtype
        super().__init__(*args, **kwargs)
        for p, state in self.state.items():  # Adagrad makes its states in the constructor
            state.update(self._in_state_dtype(p, state))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shows torch's signature with ours after it."""
        super().__init_subclass__(**kwargs)
        if "_torch" in cls.__dict__:
            signature = inspect.signature(cls._torch)  # type: ignore[attr-defined]
            cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), _PARAMETER])
        elif "__init__" in cls.__dict__:  # a user's class shows its own
            signature = inspect.signature(cls.__init__)
            cls.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])

    def _in_state_dtype(self, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """The entries of ``state`` that have a parameter's half type, in the dtype asked for."""
        if self._state_dtype is None or p.dtype not in _HALF or p.device.type != "cpu":
            return {}
        return {
            key: value.to(self._state_dtype)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.dtype in _HALF
        }

    def _narrows_states(self, group: dict[str, Any]) -> bool:
        """Whether torch's step makes states in the parameter's dtype in this group."""
        return True

    def _refuse_narrow_states(self, left: Iterable[tuple[int, Tensor]]) -> None:
        """Refuses what torch would update: its step makes states in the parameter's dtype, and takes no others.

        Raises:
            RuntimeError: naming the group and the parameter.
        """
        if self._state_dtype is None:
            return
        for g, p in left:
            if p.grad is None or p.dtype not in _HALF or p.device.type != "cpu":
                continue
            if self._narrows_states(self.param_groups[g]):
                raise RuntimeError(
                    f"state_dtype={self._state_dtype}: the {p.dtype} parameter {place(self, g, p)} is left to torch's "
                    "step, which keeps states in the parameter's dtype (oxistep.explain tells why it is torch's); "
                    "nothing was updated"
                )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._state_dtype is not None:
            state["_state_dtype"] = self._state_dtype
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; with ``state_dtype``, states are cast to it from what was saved, not by way of a half type.

        torch casts every state but ``step`` to the parameter's dtype, also the scalars that it keeps in float32 itself
        (``mu_product``, ``eta``, ``mu``). Loaded into parameters of the dtype that they were saved from, those stay
        what they were: else a resumed run would not go on as the one that was saved.
        """
        if self._state_dtype is None and not self._scalars:
            super().load_state_dict(state_dict)
            return
        # The last of the pre-hooks sees what will be loaded; `__setstate__` runs before the post-hooks.
        handle = self.register_load_state_dict_pre_hook(lambda _, loading: self.__dict__.update(_loading=loading))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        loading = self.__dict__.pop("_loading", None)
        if loading is None:
            return
        ids = chain.from_iterable(group["params"] for group in loading["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, p in zip(ids, params, strict=True):
            saved = loading["state"].get(saved_id, {})
            for key, value in self._in_state_dtype(p, self.state.get(p, {})).items():
                self.state[p][key] = saved[key].to(dtype=value.dtype, device=p.device)
            if saved and _of_dtype(saved, (p.dtype, self._state_dtype), self._scalars):
                for key in self._scalars:
                    value, loaded = saved.get(key), self.state[p].get(key)
                    # what torch need not cast it hands on as it is, and whoever loads in place counts on that
                    if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                        self.state[p][key] = value.detach().clone().to(loaded.device)


def _of_dtype(saved: dict[str, Any], dtypes: tuple[torch.dtype | None, ...], scalars: tuple[str, ...]) -> bool:
    """Whether saved states, scalars left aside, are of some dtype."""
    states = [value for key, value in saved.items() if key not in ("step", *scalars) and isinstance(value, Tensor)]
    return all(value.dtype in dtypes for value in states)
