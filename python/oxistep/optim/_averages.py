"""``ema=``: a running average of each parameter, moved in the pass that updates it.

It stands in ``optimizer.state[p]`` under ``param_ema``: float32 for a parameter of a half type, else of the parameter's
dtype; so whatever saves states saves it. It begins as the parameter before its first step. Kernels move the averages of
most parameters that they update; those that they do not, and those of parameters that had no gradient in a step, are
moved here by torch's ``lerp_``.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._kept import KEY, Kept

__all__ = [
    "AVERAGE",
    "COUNT",
    "averaged",
    "begin",
    "ema_state_dict",
    "end",
    "end_of_one",
    "left_to_torch",
    "made_average",
    "move_all",
    "refuse_while_swapped",
]

AVERAGE = "param_ema"
COUNT = "ema_step"
"""In each group, with ``ema_warmup=True``: how often the averages have moved."""

_HALF = (torch.float16, torch.bfloat16)
_PIECE = 1 << 18
"""Elements that are swapped at a time."""


def made_average(p: Tensor) -> Tensor:
    """The average that a parameter begins with: a copy of it."""
    with torch.no_grad():
        dtype = torch.float32 if p.dtype in _HALF else p.dtype
        like: Tensor = torch.empty_like(p.detach(), dtype=dtype, memory_format=torch.preserve_format)
        return like.copy_(p.detach())


def _weight(optimizer: Any, kept: Kept) -> float:
    """How far averages move in the next step."""
    decay = kept.ema
    assert decay is not None
    if kept.ema_warmup:
        # timm's ModelEmaV3: the first average is the parameter itself, later ones of ever more steps
        before = max((group.get(COUNT, 0) for group in optimizer.param_groups), default=0)
        decay = min(decay, 1.0 - (1.0 + before) ** (-2.0 / 3.0))
    return 1.0 - decay


def begin(optimizer: Any, plan: Any, kept: Kept) -> None:
    """What comes before each step.

    Raises:
        RuntimeError: inside ``averaged()``.
    """
    if kept.swapped:
        refuse_while_swapped()
    if kept.ema_warmup:
        plan.average(_weight(optimizer, kept))


def refuse_while_swapped() -> None:
    """Raises where a step comes inside ``averaged()``."""
    raise RuntimeError(
        "step: the parameters are their averages inside `with optimizer.averaged():`; leave it before the next "
        "step; nothing was updated"
    )


def end_of_one(optimizer: Any, plan: Any, p: Tensor, kept: Kept) -> None:
    """As ``end``, where one parameter is stepped for itself, by a stand-in for its optimizer."""
    if plan.averaged() == 0:
        average = optimizer.state[p].get(AVERAGE)
        if average is not None:
            with torch.no_grad():
                average.lerp_(p.detach().to(average.dtype), _weight(optimizer, kept))


def end(optimizer: Any, plan: Any, kept: Kept) -> None:
    """What comes after each step: the averages that no kernel has moved."""
    count = plan.averaged()
    if count is None:
        return  # it was skipped, or torch's as a whole
    if count < sum(len(group["params"]) for group in optimizer.param_groups):
        move_all(optimizer, set(plan.averaged_ids()))
    elif kept.ema_warmup:
        _count(optimizer)


def move_all(optimizer: Any, moved: Iterable[int] = ()) -> None:
    """Moves the averages of all parameters whose ids are not among ``moved``."""
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.ema is None:
        return
    weight, moved = _weight(optimizer, kept), set(moved)
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) not in moved and p in optimizer.state:
                    average = optimizer.state[p].get(AVERAGE)
                    if average is not None:
                        average.lerp_(p.detach().to(average.dtype), weight)
    if kept.ema_warmup:
        _count(optimizer)


def _count(optimizer: Any) -> None:
    if optimizer.__dict__[KEY].is_part:
        return  # of an iteration, whose end counts
    for group in optimizer.param_groups:
        group[COUNT] = group.get(COUNT, 0) + 1


def left_to_torch(optimizer: Any, params: Iterable[Tensor]) -> Callable[[], None]:
    """Averages of parameters that torch is about to update for the first time. What is returned stores them, after the
    step: torch makes states where an entry is empty.
    """
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.ema is None:
        return lambda: None
    lack = [p for p in params if p.grad is not None and not (p in optimizer.state and AVERAGE in optimizer.state[p])]
    made = [made_average(p) for p in lack]

    def store() -> None:
        for p, average in zip(lack, made, strict=True):
            optimizer.state[p][AVERAGE] = average

    return store


# ---- in place of the parameters ----


@contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """What ``optimizer.averaged()`` returns."""
    kept = _with_averages(optimizer, "averaged")
    if kept.swapped:
        raise RuntimeError("averaged: the parameters are their averages already")
    undo: list[Callable[[], None]] = []
    handle = optimizer.register_state_dict_pre_hook(_refuse_to_save)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    kept.swapped = True
    try:
        with torch.no_grad():
            for p in params:
                average = optimizer.state[p].get(AVERAGE) if p in optimizer.state else None
                if average is not None:
                    undo.append(_swap(_local(p.detach()), _local(average)))
        yield
    finally:
        with torch.no_grad():
            for back in reversed(undo):
                back()
        parts = () if kept.release is None else kept.release.plans()
        for plan in (*kept.plans.values(), *parts):
            plan.note(params)
        handle.remove()
        kept.swapped = False


def _local(tensor: Any) -> Tensor:
    """The local shard of a DTensor, or the tensor itself."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


def _swap(p: Tensor, average: Tensor) -> Callable[[], None]:
    """Puts an average in the place of its parameter; what is returned puts both back."""
    if p.dtype != average.dtype:
        # rounded, the average would not come back
        own = p.clone()
        p.copy_(average)

        def back() -> None:
            p.copy_(own)

        return back
    _exchange(p, average)
    return lambda: _exchange(p, average)


def _exchange(a: Tensor, b: Tensor) -> None:
    """Exchanges what two tensors hold, piece by piece."""
    if a.is_contiguous() and b.is_contiguous() and a.dim():
        a, b = a.view(-1), b.view(-1)
        pieces = [(a[k : k + _PIECE], b[k : k + _PIECE]) for k in range(0, a.numel(), _PIECE)]
    else:
        pieces = [(a, b)]
    for one, other in pieces:
        held = one.clone()
        one.copy_(other)
        other.copy_(held)


def _refuse_to_save(optimizer: Any) -> None:
    raise RuntimeError(
        "state_dict: inside `with optimizer.averaged():` the optimizer holds the parameters in place of their "
        "averages; save the model there, and the optimizer outside"
    )


def ema_state_dict(optimizer: Any) -> dict[str, Tensor]:
    """What ``optimizer.ema_state_dict()`` returns."""
    kept = _with_averages(optimizer, "ema_state_dict")
    if kept.swapped:
        raise RuntimeError(
            "ema_state_dict: the averages are in the place of the parameters; take it outside averaged()"
        )
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        names = group.get("param_names") or [str(len(found) + i) for i in range(len(group["params"]))]
        for name, p in zip(names, group["params"], strict=True):
            entry = optimizer.state[p] if p in optimizer.state else {}
            found[name] = entry.get(AVERAGE, p.detach())
    return found


def _with_averages(optimizer: Any, method: str) -> Kept:
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.ema is None:
        raise RuntimeError(f"{method}: this optimizer keeps no averages; give ema=0.999, say, to its constructor")
    return kept  # type: ignore[no-any-return]
