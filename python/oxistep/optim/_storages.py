"""What torch's part of a step will touch must lie where torch's operations think it does: they do not look."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def check_storages(optimizer: Any, left: Iterable[tuple[int, Tensor]]) -> None:
    """Refuses parameters whose own, gradient's or states' storage was freed or shrunk (``untyped_storage().resize_``).

    torch's for-loop would read and write there all the same, and the process may end. So it would where it adds a
    coalesced sparse tensor without dense dimensions to one that begins inside its storage: it counts the offset twice.

    Args:
        optimizer: the optimizer.
        left: the parameters, each with the index of its group.

    Raises:
        RuntimeError: naming the group and the parameter.
    """
    for g, p in left:
        refuse_freed(optimizer, g, p)
        if _is_added_elsewhere(p):
            raise RuntimeError(
                f"torch would add the sparse gradient of {place(optimizer, g, p)}, which has no dense dimensions, "
                "to memory that is not the parameter's, since this begins inside its storage: clone it, or give "
                "the gradient a dense dimension; nothing was updated"
            )


def refuse_freed(optimizer: Any, g: int, p: Tensor) -> None:
    """Refuses a parameter whose own, gradient's or states' storage was freed or shrunk, as ``check_storages`` says."""
    entry = optimizer.state[p] if p in optimizer.state else {}
    states = entry.values() if isinstance(entry, Mapping) else ()
    for whole in (p, getattr(p, "grad", None), *states):
        tensor = local_of(whole)
        if type(tensor) in _PLAIN and (missing := missing_bytes(tensor)):
            raise RuntimeError(
                f"a tensor of {place(optimizer, g, p)} (the parameter, its gradient or a state) reaches "
                f"{missing} bytes beyond its storage of {tensor.untyped_storage().nbytes()} bytes, which was freed "
                "or resized; nothing was updated"
            )


def local_of(value: Any) -> Any:
    """The local shard of a DTensor; anything else itself."""
    return getattr(value, "_local_tensor", value)


def is_dtensor(value: Any) -> bool:
    """Whether it has a local shard. (Asking so imports nothing of torch.distributed.)"""
    return hasattr(value, "_local_tensor")


def place(optimizer: Any, g: int, p: Tensor) -> str:
    """What an error calls a parameter."""
    params = optimizer.param_groups[g]["params"]
    i = next((i for i, q in enumerate(params) if q is p), "?")
    return f"param_groups[{g}]['params'][{i}]"


def missing_bytes(tensor: Tensor) -> int:
    """How many bytes a tensor on the CPU reaches beyond its storage."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.numel():
        return 0
    try:
        has = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # wrapped by a transform: there is none
        return 0
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return max(0, int(tensor.storage_offset() + reach + 1) * tensor.element_size() - has)


def _is_added_elsewhere(p: Tensor) -> bool:
    grad = getattr(p, "grad", None)
    if type(grad) is not Tensor or not grad.is_sparse or grad.dense_dim() or p.device.type != "cpu":
        return False
    return type(p) in _PLAIN and int(p.storage_offset()) != 0 and p.is_contiguous()
