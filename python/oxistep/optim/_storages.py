"""Tensors that torch's part of a step will touch must have memory: torch's operations do not look."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def check_storages(optimizer: Any, left: Iterable[tuple[int, Tensor]]) -> None:
    """Refuses parameters whose own, gradient's or states' storage was freed or shrunk (``untyped_storage().resize_``).

    torch's for-loop would read and write there all the same, and the process may end.

    Args:
        optimizer: the optimizer.
        left: the parameters, each with the index of its group.

    Raises:
        RuntimeError: naming the group and the parameter.
    """
    for g, p in left:
        entry = optimizer.state[p] if p in optimizer.state else {}
        states = entry.values() if isinstance(entry, Mapping) else ()
        for tensor in (p, getattr(p, "grad", None), *states):
            if type(tensor) in _PLAIN and (missing := _missing_bytes(tensor)):
                params = optimizer.param_groups[g]["params"]
                i = next((i for i, q in enumerate(params) if q is p), "?")
                raise RuntimeError(
                    f"a tensor of param_groups[{g}]['params'][{i}] (the parameter, its gradient or a state) reaches "
                    f"{missing} bytes beyond its storage of {tensor.untyped_storage().nbytes()} bytes, which was freed "
                    "or resized; nothing was updated"
                )


def _missing_bytes(tensor: Tensor) -> int:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.numel():
        return 0
    try:
        has = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # wrapped by a transform: there is none
        return 0
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return max(0, int(tensor.storage_offset() + reach + 1) * tensor.element_size() - has)
