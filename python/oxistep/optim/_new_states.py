"""The tensors that new states are made of."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oxistep import _core
from oxistep.optim._kept import kept_of

__all__ = ["filled", "lean_states", "out_of_the_way", "zero_step", "zeros"]

# States of fewer elements are not worth asking for large pages.
_LARGE = 1 << 20
# How often to try for a better place. Memory that nobody writes costs only addresses, if it is not set aside at once.
_OTHER_PLACES = 3


def scalar_dtype(group: dict[str, Any]) -> torch.dtype:
    """The dtype of ``step``: float32, or float64 where that is torch's default, unless fused."""
    if not group.get("fused") and torch.get_default_dtype() == torch.float64:
        return torch.float64
    return torch.float32


def zero_step(p: Tensor, group: dict[str, Any]) -> Tensor:
    """A step counter at zero; on the CPU whatever the default device, unless fused."""
    return torch.zeros((), dtype=scalar_dtype(group), device=p.device if group.get("fused") else "cpu")


_lean = threading.local()


@contextmanager
def lean_states() -> Iterator[None]:
    """Meanwhile states of zeros, or without values, are one zero in memory, in the shape of their parameter."""
    _lean.asked = True
    try:
        yield
    finally:
        _lean.asked = False


def _is_lean() -> bool:
    return getattr(_lean, "asked", False)


def _one_zero(p: Tensor) -> Tensor:
    return torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape)


def filled(optimizer: Any, p: Tensor, value: float, like: Tensor | None = None) -> Tensor:
    """A state that begins with a number, laid out as ``like`` or its parameter; its imaginary part is the same.

    With ``state_dtype=`` that of a half type is float32: the number counts as it is, not as a half type has it.
    """
    number = complex(value, value) if p.is_complex() else value
    is_half = p.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if is_half and kept_of(optimizer).state_dtype is not None else p.dtype
    if _is_lean():
        return torch.full((), number, dtype=dtype, device=p.device).expand(p.shape)
    return torch.full_like(p if like is None else like, number, dtype=dtype, memory_format=torch.preserve_format)


def zeros(p: Tensor) -> Tensor:
    """A state of zeros laid out as its parameter; if it is large, on large pages and in nobody's way in the caches."""
    if _is_lean():
        return _one_zero(p)
    if p.device.type == "cpu" and p.numel() >= _LARGE:
        state = out_of_the_way(p, lambda: torch.empty_like(p, memory_format=torch.preserve_format))
        return state if _core.zero_large(state, p) else state.zero_()
    return torch.zeros_like(p, memory_format=torch.preserve_format)


def out_of_the_way(p: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """A state without values, which ``empty`` makes; if it is large, in nobody's way in the caches.

    Those that would be in the way are held until another place is found.
    """
    if _is_lean():
        return _one_zero(p)
    held = [empty()]
    # memory that torch may fill is not for holding: it would cost more than addresses
    if p.device.type != "cpu" or p.numel() < _LARGE or torch.are_deterministic_algorithms_enabled():
        return held[-1]
    tensors = [p] if p.grad is None else [p, p.grad]
    while len(held) <= _OTHER_PLACES and _core.in_the_way(held[-1], tensors):
        try:
            held.append(empty())
        except RuntimeError:
            break  # no memory is promised beyond what is there
    return held[-1]
