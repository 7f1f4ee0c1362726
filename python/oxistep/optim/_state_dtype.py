"""``state_dtype``: states kept in float32 for parameters of a half type.

torch keeps the states of a bfloat16 parameter in bfloat16, where a running mean of squares with a decay of 0.999 cannot
move any more: the change is less than half a unit in the last place. The option must survive what torch does to states:
``load_state_dict`` casts them to the parameter's dtype, ``deepcopy`` and ``pickle`` keep three attributes only.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._averages import AVERAGE, COUNT, dtype_of
from oxistep.optim._compact import Kinds, is_compact, is_in_another_form, reformed
from oxistep.optim._kept import KEY, Kept, kept_of
from oxistep.optim._storages import place

__all__ = ["form_states", "in_state_dtype", "loaded_in_their_dtypes", "refuse_narrow_states", "restore_dtypes"]

_HALF = (torch.float16, torch.bfloat16)
_NARROWER = {torch.float32: (torch.bfloat16,)}
"""What ``state_dtype`` may have kept the states of a parameter in, which does not tell that it was of another type."""


def in_state_dtype(optimizer: Any, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``state`` that have a parameter's half type, in the dtype asked for."""
    kept = optimizer.__dict__.get(KEY)
    dtype = None if kept is None else kept.state_dtype
    if not isinstance(dtype, torch.dtype) or p.dtype not in _HALF or p.device.type != "cpu":
        return {}
    return {key: value.to(dtype) for key, value in state.items() if isinstance(value, Tensor) and value.dtype in _HALF}


def cast_states(optimizer: Any) -> None:
    """Casts the states that a constructor of torch's has made."""
    for p, state in optimizer.state.items():
        state.update(in_state_dtype(optimizer, p, state))


def form_states(optimizer: Any, kinds: Callable[[dict[str, Any]], Kinds]) -> None:
    """As ``cast_states``; with other settings for fewer bytes, in the form that they ask for."""
    if not is_compact(optimizer):
        cast_states(optimizer)
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p in optimizer.state:
                optimizer.state[p] = reformed(optimizer, p, group, kinds(group), optimizer.state[p])


def refuse_narrow_states(
    optimizer: Any, left: Iterable[tuple[int, Tensor]], narrows_states: Callable[[dict[str, Any]], bool]
) -> None:
    """Refuses what torch would update: its step makes states in the parameter's dtype, and takes no others.

    Args:
        optimizer: the optimizer.
        left: the parameters that torch would update, each with the index of its group.
        narrows_states: whether torch's step makes states in the parameter's dtype in a group.

    Raises:
        RuntimeError: naming the group and the parameter.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.state_dtype is None:
        return
    for g, p in left:
        if p.grad is None or p.dtype not in _HALF or p.device.type != "cpu":
            continue
        if narrows_states(optimizer.param_groups[g]):
            raise RuntimeError(
                f"state_dtype={kept.state_dtype}: the {p.dtype} parameter {place(optimizer, g, p)} is left to torch's "
                "step, which keeps states in the parameter's dtype (oxistep.explain tells why it is torch's); "
                "nothing was updated"
            )


def loaded_in_their_dtypes(optimizer: Any, scalars: tuple[str, ...], load: Callable[[], None]) -> None:
    """Loads as ``load`` does; with ``state_dtype``, states are cast to it from what was saved, not by way of a half.

    torch casts every state but ``step`` to the parameter's dtype, also the scalars that it keeps in float32 itself
    (``mu_product``, ``eta``, ``mu``). Loaded into parameters of the dtype that they were saved from, those stay what
    they were: else a resumed run would not go on as the one that was saved.
    """
    # (whether there is anything to do, is known when it is seen what is loaded)
    kept = kept_of(optimizer)
    # The last of the pre-hooks sees what will be loaded; `__setstate__` runs before the post-hooks.
    handle = optimizer.register_load_state_dict_pre_hook(lambda _, loading: setattr(kept, "loading", loading))
    try:
        load()
    finally:
        handle.remove()
        kept.loading = None


def restore_dtypes(
    optimizer: Any, scalars: tuple[str, ...], kinds: Callable[[dict[str, Any]], Kinds], counts_for_noise: bool
) -> None:
    """What ``__setstate__`` does to the states that are being loaded, after torch has cast them.

    Args:
        optimizer: the optimizer.
        scalars: states of one number, besides ``step``, that are not kept in the parameter's dtype.
        kinds: what the states of a parameter of a group are.
        counts_for_noise: ``step`` is a state only where something is rounded at random.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.loading is None:
        return
    loading, kept.loading = kept.loading, None
    ids = chain.from_iterable(group["params"] for group in loading["param_groups"])
    params = ((group, p) for group in optimizer.param_groups for p in group["params"])
    if kept.ema_warmup and any(AVERAGE in entry for entry in loading["state"].values()):
        for group in optimizer.param_groups:
            group.setdefault(COUNT, 1 << 30)  # what was averaged without a warm-up has a past
    for saved_id, (group, p) in zip(ids, params, strict=True):
        saved = loading["state"].get(saved_id, {})
        if AVERAGE in saved:
            saved = _with_its_average(kept, p, saved, optimizer.state[p])
        if saved and (is_compact(optimizer) or is_in_another_form(saved)):
            optimizer.state[p] = reformed(optimizer, p, group, kinds(group), saved, counts_for_noise)
            continue
        for key, value in in_state_dtype(optimizer, p, optimizer.state.get(p, {})).items():
            optimizer.state[p][key] = saved[key].to(dtype=value.dtype, device=p.device)
        if saved and _of_dtype(saved, (p.dtype, kept.state_dtype, *_NARROWER.get(p.dtype, ())), scalars):
            for key in scalars:
                value, loaded = saved.get(key), optimizer.state[p].get(key)
                # what torch need not cast it hands on as it is, and whoever loads in place counts on that
                if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                    optimizer.state[p][key] = value.detach().clone().to(loaded.device)


def _with_its_average(kept: Kept, p: Tensor, saved: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Keeps the average of a parameter as it was saved, in ``loaded`` and in what is returned, if averages are kept."""
    if kept.ema is None:
        loaded.pop(AVERAGE, None)
        return {name: value for name, value in saved.items() if name != AVERAGE}
    average, now = saved[AVERAGE], loaded.get(AVERAGE)
    dtype = dtype_of(p)
    if isinstance(average, Tensor) and (not isinstance(now, Tensor) or not average.dtype == now.dtype == dtype):
        loaded[AVERAGE] = average.detach().clone().to(device=p.device, dtype=dtype)
    return {**saved, AVERAGE: loaded.get(AVERAGE, average)}


def _of_dtype(saved: dict[str, Any], dtypes: tuple[torch.dtype | None, ...], scalars: tuple[str, ...]) -> bool:
    """Whether saved states, scalars left aside, are of some dtype."""
    left_out = ("step", AVERAGE, *scalars)
    states = [value for key, value in saved.items() if key not in left_out and isinstance(value, Tensor)]
    return all(value.dtype in dtypes for value in states)
