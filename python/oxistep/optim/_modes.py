"""When a whole step is torch's, whatever its tensors are: the user wants it so, or a mode wants to see operations."""

import os

import torch
from torch.utils._device import DeviceContext

__all__ = ["FORCED", "because", "want_operations"]

_backend = os.environ.get("OXISTEP_BACKEND", "native")
if _backend not in ("native", "torch"):
    raise ValueError(f"OXISTEP_BACKEND: expected 'native' or 'torch', got {_backend!r}")

FORCED = _backend == "torch"
"""OXISTEP_BACKEND=torch leaves everything to torch. Read as an attribute of this module, so that tests can set it."""

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack


def want_operations() -> bool:
    """Whether an active mode intercepts torch's operations, so that only torch's step shows it what it came for."""
    if _dispatch_modes():
        return True
    # `torch.set_default_device` is a mode too, but only of functions that make tensors
    return any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(_function_modes()))


def because() -> str | None:
    """Why every operation is torch's now; ``None`` if kernels may be used."""
    if FORCED:
        return "OXISTEP_BACKEND=torch"
    if want_operations():
        return "a mode is active that wants to see torch's operations"
    return None
