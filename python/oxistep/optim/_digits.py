"""Reading and writing parameters beside which something is kept (``weights=``), without losing a digit.

A step takes a parameter that somebody changed for a new one: what stands beside it starts anew. Those of ours that
change parameters between steps (``averaged()``, schedule-free optimizers, wrappers) do so by what is here, which keeps
what stands beside them, and tells the plan that the change is known.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._compact import COMPANIONS, exact
from oxistep.optim._kept import KEY
from oxistep.optim._storages import is_dtensor, local_of

__all__ = ["keeps_digits", "master_of", "note", "now", "refuse_in_averaged", "unedited", "write"]


def keeps_digits(optimizer: Any) -> bool:
    """Whether digits are kept beside the parameters of an optimizer. (A rule of a user's may have states of the same
    names.)
    """
    kept = vars(optimizer).get(KEY)
    return kept is not None and kept.weights in COMPANIONS


def _plan_of(optimizer: Any, p: Tensor) -> Any:
    """What takes the steps of a parameter now; None: there was none yet."""
    kept = vars(optimizer)[KEY]
    if kept.torn is not None:
        return None
    return kept.plans.get(type(optimizer)) if kept.release is None else kept.release.plan_of(p)


def _is_edited(optimizer: Any, p: Tensor) -> bool:
    """Whether somebody changed a parameter since the last step, and no step has seen it yet."""
    plan = _plan_of(optimizer, p)
    return plan is not None and plan.edited(p)


def unedited(optimizer: Any, params: Iterable[Tensor]) -> list[Tensor]:
    """Those of these parameters that nobody has changed since the last step: to what stands beside them they belong.
    None, if nothing is kept.
    """
    return [p for p in params if not _is_edited(optimizer, p)] if keeps_digits(optimizer) else []


def note(optimizer: Any, params: list[Tensor]) -> None:
    """Parameters were changed, and are again what they were, or what stands beside them was changed with them."""
    for p in params:
        if (plan := _plan_of(optimizer, p)) is not None:
            plan.note([p])


def now(optimizer: Any, p: Tensor) -> Tensor:
    """What a parameter stands for: in float32 if digits are kept beside it, else the parameter itself."""
    if not keeps_digits(optimizer):
        return p.detach()
    entry = optimizer.state[p] if p in optimizer.state else {}
    if _is_edited(optimizer, p):  # of a master, each element tells whether it still belongs to the parameter
        entry = {"master": entry.get("master")}
    return exact(p, entry)


def write(optimizer: Any, p: Tensor, value: Tensor) -> None:
    """Lets a parameter, with what stands beside it, stand for a number, which has the dtype that ``now`` returns.

    ``"residual16"`` and ``"master"`` hold a float32 number to the bit, the others as many digits as they have.
    """
    with torch.no_grad():
        name = COMPANIONS[vars(optimizer)[KEY].weights] if keeps_digits(optimizer) else None
        entry = optimizer.state[p] if p in optimizer.state else {}
        beside = local_of(entry.get(name))
        own, whole = local_of(p.detach()), local_of(value)
        if not isinstance(beside, Tensor) or beside.shape != own.shape:
            p.copy_(value)  # no step has begun it yet
            return
        rounded, rest = _split(whole, own.dtype, beside.dtype)
        own.copy_(rounded)
        beside.copy_(rest)
        if is_dtensor(p):  # what was done to its shard alone does not show
            torch.autograd.graph.increment_version(p)
    note(optimizer, [p])


def _split(value: Tensor, dtype: torch.dtype, beside: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float32 number as a parameter of that dtype, and what stands beside it, which its own dtype tells."""
    if beside == torch.float32:
        return value.to(dtype), value
    if beside == dtype:
        rounded = value.to(dtype)
        rest = value - rounded.float()
        return rounded, torch.where(rest.isfinite(), rest, 0.0)
    # as the kernels have it: rounded half up in its bits; what is no number becomes the quiet one without a rest
    bits = value.view(torch.int32)
    bits = torch.where(value.isnan(), bits & -0x80000000 | 0x7FC00000, bits)
    if beside == torch.uint8:  # which holds the upper half of the rest
        bits = torch.where(value.isfinite(), bits + 0x80, bits) & -0x100
    upper = (bits + 0x8000) >> 16
    rest = bits - (upper << 16)
    rounded = upper.to(torch.int16).view(dtype)
    return rounded, rest if beside == torch.int16 else (rest >> 8).to(torch.int8).view(torch.uint8)


def master_of(optimizer: Any, p: Tensor) -> Tensor:
    """What ``optimizer.master(p)`` returns."""
    if not keeps_digits(optimizer):
        raise RuntimeError(
            'master: this optimizer keeps no digits beside its parameters; give weights="residual16", "residual8", '
            '"kahan" or "master" to its constructor'
        )
    refuse_in_averaged(optimizer, "master")
    if not any(p is other for group in optimizer.param_groups for other in group["params"]):
        raise ValueError("master: expected a parameter of this optimizer")
    return now(optimizer, p).clone()


def refuse_in_averaged(optimizer: Any, method: str) -> None:
    """Refuses what reads or writes parameters where they are their averages.

    Raises:
        RuntimeError: naming the method.
    """
    kept = vars(optimizer).get(KEY)
    if kept is not None and kept.swapped:
        raise RuntimeError(
            f"{method}: the parameters are their averages inside `with optimizer.averaged():`; leave it before"
        )
