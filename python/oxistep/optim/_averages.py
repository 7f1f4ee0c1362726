"""``ema=``: a running average of each parameter, moved in the pass that updates it.

It stands in ``optimizer.state[p]`` under ``param_ema``: float32 for a parameter of a half type, else of the parameter's
dtype; so whatever saves states saves it. It begins as the parameter before its first step. Kernels move the averages of
most parameters that they update; those that they do not, and those of parameters that had no gradient in a step, are
moved here by torch's ``lerp_``.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._compact import exact
from oxistep.optim._digits import keeps_digits, note, unedited
from oxistep.optim._kept import KEY, Kept
from oxistep.optim._storages import local_of, missing_bytes, place, refuse_freed

__all__ = [
    "AVERAGE",
    "COUNT",
    "averaged",
    "begin",
    "check_all",
    "dtype_of",
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


def dtype_of(p: Tensor) -> torch.dtype:
    """The dtype of a parameter's average."""
    return torch.float32 if p.dtype in _HALF else p.dtype


def made_average(optimizer: Any, p: Tensor) -> Tensor:
    """The average that a parameter begins with: a copy of what it stands for."""
    entry = optimizer.state[p] if p in optimizer.state else {}
    with torch.no_grad():
        average: Tensor = torch.empty_like(p.detach(), dtype=dtype_of(p), memory_format=torch.preserve_format)
        return average.copy_(exact(p, entry) if keeps_digits(optimizer) else p.detach())


def _move(optimizer: Any, p: Tensor, weight: float) -> None:
    """Moves an average, if there is one, towards what its parameter stands for."""
    entry = optimizer.state[p] if p in optimizer.state else {}
    average = entry.get(AVERAGE)
    if average is not None:
        average.lerp_(exact(p, entry) if keeps_digits(optimizer) else p.detach().to(average.dtype), weight)


def _averages_of(optimizer: Any) -> Iterator[tuple[int, Tensor, dict[str, Any]]]:
    """The parameters that have an average, once each, with their groups and entries."""
    seen = set()
    for g, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in seen and p in optimizer.state and optimizer.state[p].get(AVERAGE) is not None:
                seen.add(id(p))
                yield g, p, optimizer.state[p]


def check_all(optimizer: Any) -> None:
    """Refuses averages that torch could not move, before anything is written.

    Raises:
        RuntimeError: naming the parameter.
    """
    for g, p, entry in _averages_of(optimizer):
        average = entry[AVERAGE]
        fits = (
            isinstance(average, Tensor)
            and average.shape == p.shape
            and average.dtype == dtype_of(p)
            and average.device == p.device
            and average.layout == torch.strided
            and hasattr(average, "_local_tensor") == hasattr(p, "_local_tensor")
            and getattr(average, "placements", None) == getattr(p, "placements", None)
            and (torch.is_inference_mode_enabled() or not average.is_inference())
            and not any(stride == 0 < size - 1 for stride, size in zip(average.stride(), average.shape, strict=True))
        )
        if not fits:
            told = f"{tuple(average.shape)}, {average.dtype}" if isinstance(average, Tensor) else repr(average)[:40]
            raise RuntimeError(
                f"ema: the average of {place(optimizer, g, p)} does not fit it: expected a {dtype_of(p)} tensor of "
                f"shape {tuple(p.shape)}, placed as the parameter is, got {told}; delete "
                f"optimizer.state[p]['{AVERAGE}'] to begin anew; nothing was updated"
            )
        refuse_freed(optimizer, g, p)


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
    if kept.torn is not None:
        return
    if (plan.averaged() or 0) < sum(len(group["params"]) for group in optimizer.param_groups):
        check_all(optimizer)  # some will be moved here, after the step
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
        with torch.no_grad():
            _move(optimizer, p, _weight(optimizer, kept))


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
        for _, p, _ in _averages_of(optimizer):
            if id(p) not in moved:
                _move(optimizer, p, weight)
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
    made = [made_average(optimizer, p) for p in lack]

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
    check_all(optimizer)
    undo: list[Callable[[], None]] = []
    as_stepped = unedited(optimizer, (p for group in optimizer.param_groups for p in group["params"]))
    allow_saving = _forbid_saving(optimizer, kept)
    kept.swapped = True
    try:
        with torch.no_grad():
            for g, p, entry in _averages_of(optimizer):
                _swap(p, local_of(entry[AVERAGE]), place(optimizer, g, p), undo)
        yield
    finally:
        failed: list[BaseException] = []
        with torch.no_grad():
            for back in reversed(undo):
                try:
                    back()
                except Exception as error:  # the others shall come back
                    failed.append(error)
        note(optimizer, as_stepped)
        allow_saving()
        kept.swapped = False
        if failed:
            raise failed[0]


def _swap(p: Tensor, average: Tensor, name: str, undo: list[Callable[[], None]]) -> None:
    """Puts an average in the place of its parameter; what puts both back is added to ``undo`` before it is needed."""
    before = local_of(p.detach())

    def follow() -> None:
        """Somebody may have given the parameter other memory meanwhile."""
        now = local_of(p.detach())
        if now.data_ptr() != before.data_ptr() or now.dtype != before.dtype:
            now.copy_(before)

    def exchange(one: Tensor, other: Tensor, held: Tensor) -> None:
        one.copy_(other)
        other.copy_(held)

    def write_back(one: Tensor, other: Tensor) -> None:
        _refuse_freed_inside(name, one, other)
        exchange(one, other, one.clone())

    def write_own(own: Tensor) -> None:
        _refuse_freed_inside(name, before)
        before.copy_(own)

    undo.append(follow)  # is called last
    if before.dtype != average.dtype:
        # rounded, the average would not come back
        undo.append(partial(write_own, before.clone()))
        before.copy_(average)
        return
    for one, other in _pieces(before, average):
        held = one.clone()
        undo.append(partial(write_back, one, other))
        exchange(one, other, held)


def _refuse_freed_inside(name: str, *tensors: Tensor) -> None:
    """torch would write beyond memory that was freed."""
    if any(map(missing_bytes, tensors)):
        raise RuntimeError(
            f"averaged: the memory of {name} or of its average was freed or resized inside `with "
            "optimizer.averaged():`, so the parameter cannot come back; load it from a checkpoint"
        )


def _pieces(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not (a.is_contiguous() and b.is_contiguous() and a.dim()):
        return [(a, b)]
    a, b = a.view(-1), b.view(-1)
    return [(a[k : k + _PIECE], b[k : k + _PIECE]) for k in range(0, a.numel(), _PIECE)]


def _forbid_saving(optimizer: Any, kept: Kept) -> Callable[[], None]:
    """Lets ``state_dict`` raise. What is returned ends that."""
    handle = optimizer.register_state_dict_pre_hook(_refuse_to_save)
    if type(optimizer).state_dict is torch.optim.Optimizer.state_dict or "state_dict" in optimizer.__dict__:
        return handle.remove  # type: ignore[no-any-return]
    # a subclass's own, which may call no hooks
    own = optimizer.state_dict

    def refusing(*args: Any, **kwargs: Any) -> Any:
        if kept.swapped:
            _refuse_to_save(optimizer)
        return own(*args, **kwargs)  # somebody kept this one

    optimizer.__dict__["state_dict"] = refusing

    def allow() -> None:
        handle.remove()
        optimizer.__dict__.pop("state_dict", None)

    return allow


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
