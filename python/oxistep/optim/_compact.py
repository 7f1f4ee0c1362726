"""States and weights in fewer bytes: what an entry of ``optimizer.state`` then holds, and turning it into another form.

A state in 8 bits stands under two names, ``exp_avg_codes`` (uint8, in the shape of the parameter) and
``exp_avg_headers`` (float32, one for each block of 256). What is kept beside a parameter of a half type is
``residual``, ``compensation`` or ``master``. All are plain tensors, so whatever saves tensors saves them; of a DTensor
all are DTensors, and what is done here is done to local shards (``_dtensors`` says how headers are placed).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from oxistep import _core
from oxistep.optim._kept import KEY, Kept, StateDType, kept_of
from oxistep.optim._new_states import lean_states, zero_step
from oxistep.optim._storages import is_dtensor, local_of, place

__all__ = [
    "COMPANIONS",
    "DRAWN",
    "EXACT",
    "LEAST",
    "Kinds",
    "blocks_of",
    "bytes_of",
    "check_parameters",
    "exact",
    "dtype_kept",
    "forget_parameters",
    "is_compact",
    "is_in_another_form",
    "keep_in",
    "made_compact",
    "names_of_headers",
    "plain_entry",
    "plain_names",
    "reformed",
    "refuse_left",
    "weights_changed",
]

LEAST = 4096
"""A tensor of fewer elements keeps its states as numbers."""

CODES, HEADERS = "_codes", "_headers"
COMPANIONS = {"kahan": "compensation", "residual8": "residual", "residual16": "residual", "master": "master"}
_HALF = (torch.float16, torch.bfloat16)
_BLOCK = _core.block_of_codes()

Kind = tuple[str, str | None, bool]
"""What a state is: ``"exact"``, ``"signed"``, ``"magnitude"``, ``"fine"``, or ``"relative"`` to the state of that
name or, if true, its root."""
Kinds = Mapping[str, Kind]

EXACT: Kind = ("exact", None, False)
DRAWN = ("magnitude", "fine")
"""What is rounded with fair odds in bfloat16 too."""


def is_compact(optimizer: Any) -> bool:
    """Whether a setting asks for fewer bytes, or more of them beside the weights."""
    kept = optimizer.__dict__.get(KEY)
    return kept is not None and _asks(kept)


def _asks(kept: Kept) -> bool:
    return kept.weights is not None or kept.state_dtype not in (None, torch.float32)


def keep_in(optimizer: Any, plan: Any, kinds_of: Callable[[dict[str, Any]], Kinds]) -> Any:
    """Tells a plan what the settings ask.

    Args:
        optimizer: the optimizer.
        plan: its plan.
        kinds_of: what the states of a group are, if a user wrote the rule; else nothing.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and (_asks(kept) or kept.ema is not None):
        of_groups = [list(kinds_of(group).items()) for group in optimizer.param_groups] if _asks(kept) else []
        fair = kept.state_dtype not in (None, torch.float32)
        plan.keep(kept.weights, fair, kept.seed, of_groups, None if kept.ema is None else 1.0 - kept.ema)
    return plan


def forget_parameters(optimizer: Any, kinds_of: Callable[[dict[str, Any]], Kinds]) -> None:
    """What parameters were after the last step, and what groups there were, no longer counts.

    Plans stay what they are: somebody may watch their steps.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and (_asks(kept) or kept.ema is not None) and kept.torn is None:
        for plan in kept.plans.values():
            keep_in(optimizer, plan, kinds_of)


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
            if p.grad.layout == torch.sparse_coo:
                raise RuntimeError(
                    f"{setting} does not support sparse gradients: expected a dense gradient for "
                    f"{place(optimizer, g, p)}, got a sparse one. Make the embedding without sparse=True, or give its "
                    "weight to an optimizer of its own without this setting; nothing was updated"
                )
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
    whole: Any = None,
) -> dict[str, Any]:
    """New states of a parameter, which ``make`` makes as numbers, in the form that the settings ask for; ``whole``: the
    DTensor whose local shard it is.
    """
    if not _may_be_compact(p):
        return make()
    with lean_states():  # states of zeros take no memory until it is known how they are kept
        state = make()
    weights = kept_of(optimizer).weights
    if weights is not None and COMPANIONS.get(weights) in kinds:
        name = COMPANIONS[weights]
        raise RuntimeError(
            f"weights={weights!r} keeps {name!r} beside each parameter, and this rule has a state of that name: give "
            "the state another one; nothing was updated"
        )
    key = p if whole is None else whole
    formed = _formed(optimizer, p, group, kinds, state, blocks=_blocks_asked(optimizer, key))
    # what is there already, beside a state that begins later, stays
    entry = optimizer.state[key] if key in optimizer.state else {}
    return {name: value for name, value in formed.items() if entry.get(name) is None}


def blocks_of(p: Tensor, *, estimates: bool = False) -> int:
    """How many headers a state of a parameter has that is kept in codes; 0: it is kept as numbers.

    Raises:
        RuntimeError: for a DTensor whose local shard cannot have codes, unless this is but an estimate.
    """
    if is_dtensor(p):
        from oxistep.optim._dtensors import blocks_of_shards

        return blocks_of_shards(p, LEAST, estimates=estimates)  # type: ignore[arg-type]
    return _blocks(p) if p.numel() >= LEAST and p.is_contiguous() else 0


def _blocks_asked(optimizer: Any, p: Tensor) -> int:
    return blocks_of(p) if kept_of(optimizer).state_dtype == "8bit" else 0


def _blocks(p: Tensor) -> int:
    return -(-p.numel() // _BLOCK)


def dtype_kept(state_dtype: StateDType, p: Tensor, kind: Kind, blocks: int) -> torch.dtype | None:
    """The dtype that a state is kept in; ``None``: in codes, with ``blocks`` headers."""
    if state_dtype is None:
        return p.dtype
    if state_dtype == torch.float32 or kind == EXACT:
        return torch.float32
    if isinstance(state_dtype, str):
        coded = None if kind[0] != "fine" else torch.bfloat16
        return coded if blocks else torch.float32
    return state_dtype


def _formed(
    optimizer: Any,
    p: Tensor,
    group: dict[str, Any],
    kinds: Kinds,
    entry: Mapping[str, Any],
    counts_for_noise: bool = False,
    *,
    blocks: int,
) -> dict[str, Any]:
    """An entry in the form that the settings ask for; states in codes have ``blocks`` headers."""
    kept = kept_of(optimizer)
    formed: dict[str, Any] = {}
    draws = kept.weights in ("stochastic", "residual8")
    for name in sorted(_names(entry, kinds, kept.weights), key=lambda name: kinds.get(name, EXACT)[0] == "relative"):
        kind = kinds.get(name, EXACT)
        value = entry.get(name)
        if name in entry and not _is_state(value, name, kinds, p):
            formed[name] = value
            continue
        wanted = dtype_kept(kept.state_dtype, p, kind, blocks)
        draws |= (wanted is None and kind[0] != "relative") or (wanted == torch.bfloat16 and kind[0] in DRAWN)
        if wanted is not None:
            value = _numbers(entry, name, kinds, p) if value is None else value
            formed[name] = _materialised(value, p, wanted)
        elif value is None and entry[name + CODES].shape == p.shape:
            for suffix in (CODES, HEADERS):
                formed[name + suffix] = entry[name + suffix].detach().clone()
        else:
            value = _numbers(entry, name, kinds, p) if value is None else value
            # zeros are zeros, relative to whatever: the divisor would be a temporary of the parameter's size
            of = None if _is_zero(value) else _divisor(formed, kind, kinds, p)
            formed.update(_packed(name, value, kind, of, p, (kept.seed, blocks)))
    if kept.weights is not None:
        formed.update(_companion(kept.weights, p, entry))
    if draws and "step" not in formed:
        formed["step"] = zero_step(p, group)
    elif counts_for_noise and not draws:
        formed.pop("step", None)
    return formed


def _is_state(value: Any, name: str, kinds: Kinds, p: Tensor) -> bool:
    """Whether it is a state of the parameter's shape: numbers of one element, as `step`, stay as they are."""
    return name in kinds and isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point()


def _names(entry: Mapping[str, Any], kinds: Kinds, weights: str | None) -> list[str]:
    """The names of what an entry holds, without what stands beside a parameter. (Users have names that end as ours.)"""
    names = []
    for key in entry:
        base = key.removesuffix(CODES).removesuffix(HEADERS)
        if base != key and base in kinds:
            if key.endswith(CODES):
                names.append(base)
        elif key in kinds or weights is None or key not in COMPANIONS.values():
            names.append(key)
    return names


def plain_names(entry: Mapping[str, Any], kinds: Kinds, weights: str | None) -> dict[str, Any]:
    """An entry under the names that its states have as numbers, whatever they are kept as."""
    return {name: entry.get(name, entry.get(name + CODES)) for name in _names(entry, kinds, weights)}


def _materialised(value: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
    """A state in its own memory, laid out as its parameter."""
    if value.numel() > 1 and all(stride == 0 for stride in value.stride()):
        start = value.flatten()[0].item()
        state = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return state.fill_(start)
    if value.dtype == dtype and value.stride() == p.stride():
        return value
    return torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format).copy_(value)


def _is_zero(value: Tensor) -> bool:
    """Whether it is one zero, expanded, as new states are."""
    if not value.numel():
        return True
    return all(stride == 0 for stride in value.stride()) and value.flatten()[0].item() == 0


def _packed(
    name: str, value: Tensor, kind: Kind, of: Tensor | None, p: Tensor, seed_and_blocks: tuple[int, int]
) -> dict[str, Tensor]:
    seed, blocks = seed_and_blocks
    codes = torch.zeros(p.shape, dtype=torch.uint8, device="cpu")
    headers = torch.zeros(blocks, dtype=torch.float32, device="cpu")
    if not _is_zero(value):
        numbers = _materialised(value, p, torch.float32)
        _core.pack_codes(numbers, codes, headers[: _blocks(p)], kind[0], of, kind[2], seed)
    return {name + CODES: codes, name + HEADERS: headers}


def _divisor(entry: Mapping[str, Any], kind: Kind, kinds: Kinds, p: Tensor) -> Tensor | None:
    """The numbers of the state that a relative one is relative to."""
    if kind[0] != "relative" or kind[1] is None:
        return None
    return _numbers(entry, kind[1], kinds, p).to(torch.float32).cpu().contiguous()


def _numbers(entry: Mapping[str, Any], name: str, kinds: Kinds, p: Tensor) -> Tensor:
    """A state as numbers."""
    if name in entry:
        state: Tensor = entry[name]
        return state
    kind = kinds.get(name, EXACT)
    codes, headers = (entry[name + suffix].cpu().contiguous() for suffix in (CODES, HEADERS))
    headers = headers.flatten()[: _blocks(codes)]  # those of a shard have room for more
    out = torch.empty(codes.shape, dtype=torch.float32, device="cpu")
    _core.unpack_codes(codes, headers, out, kind[0], _divisor(entry, kind, kinds, p), kind[2])
    return out


# ---- weights ----


def _companion(weights: str, p: Tensor, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """What stands beside a parameter, from what stood beside it or, if nothing did, from itself."""
    name = COMPANIONS.get(weights)
    if name is None:
        return {}
    if p.dtype not in _HALF:
        raise RuntimeError(
            f"weights={weights!r}: expected a parameter of a half type, got {p.dtype} since it was added"
        )
    like = {"memory_format": torch.preserve_format}
    dtypes = {"residual16": torch.int16, "residual8": torch.uint8, "kahan": p.dtype, "master": torch.float32}
    dtype = dtypes[weights]
    own = entry.get(name)
    if own is not None and own.dtype == dtype and own.shape == p.shape:
        # the parameter that it belongs to may be loaded later
        return {name: torch.empty_like(p, dtype=dtype, **like).copy_(own)}  # type: ignore[arg-type]
    if not any(entry.get(other) is not None for other in COMPANIONS.values()):
        # nothing is lost yet: no temporary, since a first step must not need more memory than all others
        if weights == "master":
            return {name: p.detach().float()}
        return {name: torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)}
    whole = exact(p, entry)
    if weights == "master":
        return {name: _materialised(whole.detach().clone(), p, torch.float32)}
    if weights == "kahan":
        rest = whole - p.detach().float()
        return {name: torch.where(rest.isfinite(), rest, 0.0).to(p.dtype)}
    rest = whole.view(torch.int32) - (p.detach().view(torch.int16).to(torch.int32) << 16)
    if weights == "residual8":
        return {name: (rest >> 8).clamp(-128, 127).to(torch.int8).view(torch.uint8)}
    return {name: torch.empty_like(p, dtype=dtype, **like).copy_(rest.clamp(-32768, 32767))}  # type: ignore[arg-type]


def exact(p: Tensor, entry: Mapping[str, Tensor]) -> Tensor:
    """The number that a parameter and what stands beside it stand for, in float32."""
    if is_dtensor(p):
        of_shards = {name: entry[name] for name in COMPANIONS.values() if entry.get(name) is not None}
        return _in_shards(p, of_shards, {}, lambda p, entry: {"master": exact(p, entry)})["master"]  # type: ignore[no-any-return]
    p = p.detach()
    if p.dtype not in _HALF:
        return p.float()
    # as the kernels have it: what cannot belong to a parameter, which somebody changed then, is left out
    if (master := entry.get("master")) is not None:
        near = master.to(p.dtype).view(torch.int16) == p.view(torch.int16)
        if p.dtype == torch.bfloat16:
            distance = master.view(torch.int32).long() - (p.view(torch.int16).to(torch.int32) << 16).long()
            near |= distance.abs() <= 0x8000
        return torch.where(near, master, p.float())
    if (compensation := entry.get("compensation")) is not None:
        rest = compensation.float()
        return torch.where(rest.abs() <= p.float().abs() * 2.0**-8, p.float() + rest, p.float())
    if (residual := entry.get("residual")) is not None:
        small = residual.view(torch.int8).to(torch.int32) << 8 if residual.dtype == torch.uint8 else residual.int()
        joined = ((p.view(torch.int16).to(torch.int32) << 16) + small).view(torch.float32)
        leaves = ((p == 0) & (small < 0)) | (~p.isfinite() & (small > 0))
        return torch.where(leaves, p.float(), joined)
    return p.float()


def weights_changed(optimizer: Any, p: Tensor) -> None:
    """Somebody changed a parameter: what stands beside it starts anew. (Kernels see for each element whether a master
    still belongs to it.)
    """
    entry = optimizer.state.get(p, {})
    with torch.no_grad():
        for name in ("residual", "compensation"):
            if name in entry:
                local_of(entry[name]).zero_()


# ---- checkpoints ----


def is_in_another_form(saved: Mapping[str, Any]) -> bool:
    """Whether an entry of a checkpoint may hold states in codes."""
    return any(key.endswith(CODES) for key in saved)


def plain_entry(
    entry: Mapping[str, Any], kinds: Kinds, p: Tensor, dtype: torch.dtype, weights: str | None
) -> dict[str, Any]:
    """An entry as torch's class would have it: states as numbers of that dtype."""
    if is_dtensor(p):
        return _in_shards(p, entry, kinds, lambda p, entry: plain_entry(entry, kinds, p, dtype, weights))
    plain: dict[str, Any] = {}
    for name in _names(entry, kinds, weights):
        value: Any = _numbers(entry, name, kinds, p)
        plain[name] = value.to(dtype=dtype, device=p.device) if _is_state(value, name, kinds, p) else value
    return plain


def names_of_headers(kinds: Kinds) -> set[str]:
    """The names under which headers of states in codes stand. (A state of a user's rule may be called so.)"""
    return {name + HEADERS for name in kinds} - set(kinds)


def _in_shards(
    p: Any,
    entry: Mapping[str, Any],
    kinds: Kinds,
    make: Callable[[Tensor, Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """What ``make`` makes of the local shards of a DTensor and its entry, as DTensors."""
    from oxistep.optim._dtensors import in_shards

    local = local_of(p).detach()
    headers = names_of_headers(kinds)
    codes = {name + CODES for name in kinds} - set(kinds)
    ours = {*kinds, *codes, *headers, *COMPANIONS.values()}
    of_shards = {key: local_of(value) if key in ours else value for key, value in entry.items()}
    made = make(local, of_shards)
    # numbers of one element are no DTensors; everything else of ours is, whatever it was made of
    others = {key for key, value in made.items() if key not in ours or not isinstance(value, Tensor)}
    others |= {key for key in made if key in entry and made[key] is entry[key]}
    return in_shards(p, p, made, others, headers)


def _refuse_other_shards(p: Any, saved: Mapping[str, Any], kinds: Kinds) -> None:
    """Refuses states in codes, and what else is of the parameter's shape, of other shards than the parameter has.

    Raises:
        ValueError: naming the state.
    """
    headers = names_of_headers(kinds)
    for key, value in saved.items():
        is_code = key.removesuffix(CODES) in kinds and key not in kinds
        is_ours = key in headers or is_code or key in kinds or key in COMPANIONS.values()
        if not is_ours or not isinstance(value, Tensor) or not (value.dim() or is_dtensor(value)):
            continue
        if is_dtensor(p):
            from oxistep.optim._dtensors import refuse_cut

            refuse_cut(p, key, value, key in headers)
        elif is_dtensor(value) or (key in headers and value.shape != (_blocks(p),)):
            raise ValueError(
                f"load_state_dict: state {key!r}: expected what belongs to a whole tensor of shape {tuple(p.shape)}, "
                f"got {'a DTensor' if is_dtensor(value) else f'headers of shape {tuple(value.shape)}'}, which belong "
                "to shards. Save what oxistep.plain_state_dict(optimizer) returns, and load that"
            )


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
    own = {key: value.detach() if isinstance(value, Tensor) else value for key, value in saved.items()}
    _refuse_other_shards(p, own, kinds)
    kept = optimizer.__dict__.get(KEY)
    if kept is None or not _asks(kept) or not _may_be_compact(p):
        if counts_for_noise:
            own.pop("step", None)
        narrow = kept is not None and kept.state_dtype == torch.float32 and p.dtype in _HALF
        weights = None if kept is None else kept.weights
        return plain_entry(own, kinds, p, torch.float32 if narrow else p.dtype, weights)
    blocks = _blocks_asked(optimizer, p)

    def form(p: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
        return _formed(optimizer, p, group, kinds, entry, counts_for_noise, blocks=blocks)

    return _in_shards(p, own, kinds, form) if is_dtensor(p) else form(p, own)


def bytes_of(optimizer: Any, p: Tensor) -> float | None:
    """Bytes an element of a parameter with its states; ``None`` if it has none yet, or the settings ask for nothing."""
    entry = optimizer.state.get(p)
    if not is_compact(optimizer) or not entry or not p.numel():
        return None
    tensors = [p, *(value for value in entry.values() if isinstance(value, Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / p.numel()
