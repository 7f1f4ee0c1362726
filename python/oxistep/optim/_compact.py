"""States and weights in fewer bytes: what an entry of ``optimizer.state`` then holds, and turning it into another form.

A state in 8 bits stands under two names, ``exp_avg_codes`` (uint8, one for each element in the order of memory) and
``exp_avg_headers`` (float32, one for each block of 256). What is kept beside a parameter of a half type is
``residual``, ``compensation`` or ``master``. All are plain tensors, so whatever saves tensors saves them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from oxistep import _core
from oxistep.optim._kept import KEY, Kept, kept_of
from oxistep.optim._new_states import lean_states, zero_step
from oxistep.optim._storages import place

__all__ = [
    "LEAST",
    "bytes_of",
    "check_parameters",
    "forget_parameters",
    "is_compact",
    "is_in_another_form",
    "keep_in",
    "made_compact",
    "master_of",
    "plain_entry",
    "reformed",
    "refuse_left",
    "weights_changed",
]

LEAST = 4096
"""A tensor of fewer elements keeps its states as numbers."""

CODES, HEADERS = "_codes", "_headers"
_COMPANIONS = {"kahan": "compensation", "residual8": "residual", "residual16": "residual", "master": "master"}
_HALF = (torch.float16, torch.bfloat16)
_BLOCK = _core.block_of_codes()

Kind = tuple[str, str | None, bool]
"""What a state is: ``"exact"``, ``"signed"``, ``"magnitude"``, or ``"relative"`` to the state of that name or, if true,
its root."""
Kinds = Mapping[str, Kind]

EXACT: Kind = ("exact", None, False)


def is_compact(optimizer: Any) -> bool:
    """Whether a setting asks for fewer bytes, or more of them beside the weights."""
    kept = optimizer.__dict__.get(KEY)
    return kept is not None and _asks(kept)


def _asks(kept: Kept) -> bool:
    return kept.weights is not None or kept.state_dtype not in (None, torch.float32)


def keep_in(optimizer: Any, plan: Any, kinds: Kinds) -> Any:
    """Tells a plan what the settings ask."""
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and _asks(kept):
        plan.keep(kept.weights, kept.state_dtype not in (None, torch.float32), kept.seed, list(kinds.items()))
    return plan


def forget_parameters(optimizer: Any, kinds: Callable[[], Kinds]) -> None:
    """What parameters were after the last step no longer counts: states were loaded."""
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and kept.weights is not None:
        for plan in kept.plans.values():
            keep_in(optimizer, plan, kinds())


def check_parameters(optimizer: Any, group: dict[str, Any]) -> None:
    """Refuses parameters whose weights cannot be kept as the setting says.

    Raises:
        ValueError: naming the setting and the parameter.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.weights is None:
        return
    fits = _HALF if kept.weights in ("kahan", "master") else (torch.bfloat16,)
    for p in group["params"]:
        if p.dtype not in fits:
            wanted = " or ".join(str(dtype) for dtype in reversed(fits))
            g = next((k for k, other in enumerate(optimizer.param_groups) if other is group), 0)
            raise ValueError(
                f"weights={kept.weights!r}: expected parameters of {wanted}, got {p.dtype} for "
                f"{place(optimizer, g, p)}"
                + ("; its digits are all there" if p.dtype in (torch.float32, torch.float64) else "")
            )


def _may_be_compact(p: Tensor) -> bool:
    """Whether the settings apply to a parameter."""
    return p.device.type == "cpu" and p.dtype in (torch.float32, *_HALF)


def refuse_left(optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
    """Refuses what torch would update: it knows no states in fewer bytes.

    Raises:
        RuntimeError: naming the parameter, before anything is updated.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is None or not _asks(kept):
        return
    setting = f"weights={kept.weights!r}" if kept.weights is not None else f"state_dtype={kept.state_dtype!r}"
    for g, p in left:
        if p.grad is not None and p.dtype != torch.float64 and not p.is_complex():
            raise RuntimeError(
                f"{setting}: the {p.dtype} parameter {place(optimizer, g, p)} on {p.device} is left to torch's step, "
                "which cannot keep it so (oxistep.explain tells why it is torch's); nothing was updated"
            )


# ---- making states ----


def made_compact(
    optimizer: Any,
    p: Tensor,
    group: dict[str, Any],
    kinds: Kinds,
    make: Callable[[], dict[str, Any]],
    of_shard: bool = False,
) -> dict[str, Any]:
    """New states of a parameter, which ``make`` makes as numbers, in the form that the settings ask for."""
    if not _may_be_compact(p):
        return make()
    with lean_states():  # states of zeros take no memory until it is known how they are kept
        state = make()
    weights = kept_of(optimizer).weights
    if of_shard and weights in _COMPANIONS:
        raise RuntimeError(
            f"weights={weights!r}: expected plain tensors, got a DTensor, beside whose shards nothing is kept yet; "
            'give weights="stochastic", or float32 parameters; nothing was updated'
        )
    return _formed(optimizer, p, group, kinds, state, of_shard=of_shard)


def _wanted(kept: Kept, p: Tensor, kind: Kind, of_shard: bool) -> torch.dtype | None:
    """The dtype that a state is kept in; ``None``: in codes. (Those of shards would have other shapes than these.)"""
    if kept.state_dtype is None:
        return p.dtype
    if kept.state_dtype == torch.float32 or kind == EXACT:
        return torch.float32
    if kept.state_dtype == "8bit":
        return None if p.numel() >= LEAST and _is_dense(p) and not of_shard else torch.float32
    return kept.state_dtype


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or torch.empty_like(p, memory_format=torch.preserve_format).stride() == p.stride()


def _formed(
    optimizer: Any,
    p: Tensor,
    group: dict[str, Any],
    kinds: Kinds,
    entry: dict[str, Any],
    counts_for_noise: bool = False,
    of_shard: bool = False,
) -> dict[str, Any]:
    """An entry in the form that the settings ask for."""
    kept = kept_of(optimizer)
    formed: dict[str, Any] = {}
    draws = kept.weights in ("stochastic", "residual8")
    for name in sorted(_names(entry), key=lambda name: kinds.get(name, EXACT)[0] == "relative"):
        kind = kinds.get(name, EXACT)
        value = entry.get(name)
        if value is not None and not (isinstance(value, Tensor) and value.shape == p.shape and _is_state(name, value)):
            formed[name] = value
            continue
        wanted = _wanted(kept, p, kind, of_shard)
        draws |= (wanted is None and kind[0] != "relative") or (wanted == torch.bfloat16 and kind[0] == "magnitude")
        if wanted is not None:
            value = _numbers(entry, name, kinds, p) if value is None else value
            formed[name] = _materialised(value, p, wanted)
        elif value is None:
            for suffix in (CODES, HEADERS):
                formed[name + suffix] = entry[name + suffix].detach().clone()
        else:
            formed.update(_packed(name, value, kind, _divisor(formed, kind, kinds, p), p, kept.seed))
    if kept.weights is not None:
        formed.update(_companion(kept.weights, p, entry))
    if draws and "step" not in formed:
        formed["step"] = zero_step(p, group)
    elif counts_for_noise and not draws:
        formed.pop("step", None)
    return formed


def _is_state(name: str, value: Tensor) -> bool:
    return name != "step" and value.is_floating_point() and not value.is_complex()


def _names(entry: Mapping[str, Any]) -> list[str]:
    """The names of what an entry holds, without what stands beside the parameter."""
    names = []
    for key in entry:
        if key.endswith(CODES):
            names.append(key.removesuffix(CODES))
        elif not key.endswith(HEADERS) and key not in _COMPANIONS.values():
            names.append(key)
    return names


def _materialised(value: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
    """A state in its own memory, laid out as its parameter."""
    if value.numel() > 1 and all(stride == 0 for stride in value.stride()):
        start = value.flatten()[0].item()
        state = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return state.fill_(start)
    if value.dtype == dtype and value.stride() == p.stride():
        return value
    return torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value)


def _packed(name: str, value: Tensor, kind: Kind, of: Tensor | None, p: Tensor, seed: int) -> dict[str, Tensor]:
    codes = torch.zeros(p.numel(), dtype=torch.uint8)
    headers = torch.zeros(-(-p.numel() // _BLOCK), dtype=torch.float32)
    is_zero = all(stride == 0 for stride in value.stride()) and value.flatten()[0].item() == 0
    if not is_zero:
        flat = _in_memory_order(_materialised(value, p, torch.float32), p)
        _core.pack_codes(flat, codes, headers, kind[0], of, kind[2], seed)
    return {name + CODES: codes, name + HEADERS: headers}


def _in_memory_order(value: Tensor, p: Tensor) -> Tensor:
    """The elements of a tensor that is laid out as a dense parameter, as they follow each other."""
    return value.as_strided((p.numel(),), (1,))


def _divisor(entry: Mapping[str, Any], kind: Kind, kinds: Kinds, p: Tensor) -> Tensor | None:
    """The numbers, in the order of memory, of the state that a relative one is relative to."""
    if kind[0] != "relative" or kind[1] is None:
        return None
    return _in_memory_order(_materialised(_numbers(entry, kind[1], kinds, p), p, torch.float32), p)


def _numbers(entry: Mapping[str, Any], name: str, kinds: Kinds, p: Tensor) -> Tensor:
    """A state as numbers, laid out as its parameter."""
    if name in entry:
        state: Tensor = entry[name]
        return state
    kind = kinds.get(name, EXACT)
    out = torch.empty(p.numel(), dtype=torch.float32)
    of = _divisor(entry, kind, kinds, p)
    _core.unpack_codes(entry[name + CODES], entry[name + HEADERS], out, kind[0], of, kind[2])
    return out.as_strided(p.shape, p.stride())


# ---- weights ----


def _companion(weights: str, p: Tensor, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """What stands beside a parameter, from what stood beside it or, if nothing did, from itself."""
    name = _COMPANIONS.get(weights)
    if name is None:
        return {}
    like = {"memory_format": torch.preserve_format}
    exact = _exact(p, entry)
    if weights == "master":
        return {name: _materialised(exact.detach().clone(), p, torch.float32)}
    if weights == "kahan":
        return {name: (exact - p.detach().float()).to(p.dtype)}
    dtype = torch.int16 if weights == "residual16" else torch.uint8
    if name in entry and entry[name].dtype == dtype:
        return {name: entry[name].detach().clone()}
    rest = exact.view(torch.int32) - (p.detach().view(torch.int16).to(torch.int32) << 16)
    if weights == "residual8":
        return {name: (rest >> 8).clamp(-128, 127).to(torch.int8).view(torch.uint8)}
    return {name: torch.empty_like(p, dtype=dtype, **like).copy_(rest.clamp(-32768, 32767))}  # type: ignore[arg-type]


def _exact(p: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """The number that a parameter and what stands beside it stand for, in float32."""
    p = p.detach()
    if (master := entry.get("master")) is not None:
        return torch.where(master.to(p.dtype).view(torch.int16) == p.view(torch.int16), master, p.float())
    if (compensation := entry.get("compensation")) is not None:
        return p.float() + compensation.float()
    if (residual := entry.get("residual")) is not None:
        rest = residual.view(torch.int8).to(torch.int32) << 8 if residual.dtype == torch.uint8 else residual
        return ((p.view(torch.int16).to(torch.int32) << 16) + rest.to(torch.int32)).view(torch.float32)
    return p.float()


def master_of(optimizer: Any, p: Tensor) -> Tensor:
    """What ``optimizer.master(p)`` returns."""
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.weights not in _COMPANIONS:
        raise RuntimeError(
            'master: this optimizer keeps no digits beside its parameters; give weights="residual16", "residual8", '
            '"kahan" or "master" to its constructor'
        )
    if not any(p is other for group in optimizer.param_groups for other in group["params"]):
        raise ValueError("master: expected a parameter of this optimizer")
    return _exact(p, optimizer.state.get(p, {})).clone()


def weights_changed(optimizer: Any, p: Tensor) -> None:
    """Somebody changed a parameter: what stands beside it starts anew."""
    entry = optimizer.state.get(p, {})
    with torch.no_grad():
        if "master" in entry:
            entry["master"].copy_(p)
        for name in ("residual", "compensation"):
            if name in entry:
                entry[name].zero_()


# ---- checkpoints ----


def is_in_another_form(saved: Mapping[str, Any]) -> bool:
    """Whether an entry of a checkpoint holds what torch's classes do not have."""
    return any(key.endswith(CODES) or key in _COMPANIONS.values() for key in saved)


def plain_entry(entry: Mapping[str, Any], kinds: Kinds, p: Tensor, dtype: torch.dtype | None) -> dict[str, Any]:
    """An entry as torch's class would have it: states as numbers of that dtype (``None``: of their own)."""
    plain: dict[str, Any] = {}
    for name in _names(entry):
        value: Any = _numbers(entry, name, kinds, p)
        is_state = isinstance(value, Tensor) and value.shape == p.shape and _is_state(name, value)
        plain[name] = value.to(dtype) if is_state and dtype is not None else value
    return plain


def reformed(
    optimizer: Any,
    p: Tensor,
    group: dict[str, Any],
    kinds: Kinds,
    saved: Mapping[str, Any],
    counts_for_noise: bool = False,
) -> dict[str, Any]:
    """A saved entry, of whatever form, in the form that the settings of an optimizer ask for.

    Args:
        optimizer: the optimizer.
        p: the parameter.
        group: its group.
        kinds: what its states are.
        saved: the entry.
        counts_for_noise: ``step`` is there only where something is rounded at random.
    """
    own = {key: value.detach().to(p.device) if isinstance(value, Tensor) else value for key, value in saved.items()}
    kept = optimizer.__dict__.get(KEY)
    if kept is None or not _asks(kept) or not _may_be_compact(p):
        if counts_for_noise:
            own.pop("step", None)
        narrow = kept is not None and kept.state_dtype == torch.float32 and p.dtype in _HALF
        return plain_entry(own, kinds, p, torch.float32 if narrow else p.dtype)
    return _formed(optimizer, p, group, kinds, own, counts_for_noise, of_shard=hasattr(p, "_local_tensor"))


def bytes_of(optimizer: Any, p: Tensor) -> float | None:
    """Bytes an element of a parameter with its states; ``None`` if it has none yet, or the settings ask for nothing."""
    entry = optimizer.state.get(p)
    if not is_compact(optimizer) or not entry or not p.numel():
        return None
    tensors = [p, *(value for value in entry.values() if isinstance(value, Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / p.numel()
