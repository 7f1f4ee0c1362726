"""Asking torch whether it takes a step, on copies, before anything is written.

torch finds out while it steps, when its own step has written half of what it writes. Two things can be wrong:

- Numbers. torch computes the constants of a step in Python, which raises where IEEE arithmetic goes on to infinity or
  NaN (``betas`` of one after construction, a learning rate beyond what the dtype holds), and in complex numbers under a
  root of a negative one. None of this depends on tensors: three elements are enough. (But for Adafactor with a learning
  rate below zero, which its constructor refuses.)
- Tensors: a state that is missing, or of a shape or a dtype that does not go with the parameter's. This depends on
  shapes and dtypes, and on no value.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._compact import is_compact, plain_names
from oxistep.optim._kept import kept_of
from oxistep.optim._storages import local_of, place

__all__ = ["rehearse_numbers", "rehearse_tensors"]

# Copies of larger parameters have other sizes: different ones where theirs differ, so that what can be broadcast stays
# what it is.
_MOST_COPIED = 1 << 16


def rehearse_numbers(optimizer: Any, definition: Any, g: int, p: Tensor, state: dict[str, Any] | None) -> None:
    """Takes torch's step on a parameter of three elements in the place of ``p``.

    Raises:
        What torch raises, with its text and the group and its hyperparameters.
    """
    if p.grad is not None and p.grad.is_sparse and p.grad._nnz() == 0:
        return  # torch passes such a parameter by
    twin = torch.zeros(3, dtype=p.dtype)
    if p.grad is not None and p.grad.is_sparse:
        twin.grad = torch.sparse_coo_tensor(
            torch.arange(3)[None], torch.ones(3, dtype=p.dtype), (3,), check_invariants=False
        )
    else:
        twin.grad = torch.ones(3, dtype=p.dtype)
    group, state = optimizer.param_groups[g], state or {}
    if is_compact(optimizer):
        state = plain_names(state, definition.kinds(optimizer, group), kept_of(optimizer).weights)
    # a sign of each kind: Rprop treats them differently
    values = torch.tensor([1.0, -1.0, 0.0], dtype=p.dtype)
    small = {
        key: (value.clone() if value.dim() == 0 and key in _SCALARS else values.clone())
        if isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }
    try:
        _step(optimizer, definition, group, twin, small)
    except Exception as error:
        numbers = {key: value for key, value in {**group, **small}.items() if _is_number(value)}
        told = ", ".join(f"{key}={value}" for key, value in numbers.items())
        raise type(error)(f"{error} (torch's step of param_groups[{g}], with {told}; nothing was updated)") from error


def rehearse_tensors(optimizer: Any, definition: Any, g: int, p: Tensor) -> None:
    """Takes torch's step on copies of ``p``, its gradient and its states, once for all that look alike.

    Raises:
        What torch raises, with a note that names the parameter.
    """
    entry = optimizer.state[p] if p in optimizer.state else {}
    group, grad, named = optimizer.param_groups[g], p.grad, p
    if hasattr(p, "_local_tensor"):
        # torch's step of DTensors may communicate, and the other ranks need not rehearse it
        p, grad = local_of(p), local_of(grad)
        entry = {key: local_of(value) for key, value in entry.items()} if isinstance(entry, Mapping) else entry
    looks = (definition.rule, _look(p), _look(grad), _looks(entry), _looks(group))
    tried = kept_of(optimizer).tried
    if looks in tried:
        return
    try:
        like = _Copies(p)
        twin = like.copy(p)
        twin.grad = like.copy(grad)
        small = {key: like.copy(value) for key, value in entry.items()} if isinstance(entry, Mapping) else entry
    except Exception:
        return  # what cannot even be copied is for torch's step to judge
    try:
        _step(optimizer, definition, group, twin, small)
    except Exception as error:
        sizes = "" if like.exact else ", asked with smaller copies, whose sizes it names"
        error.add_note(f"This is torch's step of {place(optimizer, g, named)}{sizes}. Nothing was updated.")
        raise
    if len(tried) > 4096:  # shapes that never come again must not pile up
        tried.clear()
    tried.add(looks)


def _step(optimizer: Any, definition: Any, group: dict[str, Any], twin: Tensor, state: Any) -> None:
    """torch's step of one parameter, by an object of torch's class that has the settings, but no parameter or state."""
    rehearsing = object.__new__(definition.torch)
    rehearsing.__dict__.update(optimizer.__dict__)
    for scaling in ("grad_scale", "found_inf"):
        rehearsing.__dict__.pop(scaling, None)
    rehearsing.param_groups = [
        {key: False if key in ("foreach", "fused") else value for key, value in group.items()} | {"params": [twin]}
    ]
    rehearsing.state = defaultdict(dict)
    if state or not isinstance(state, dict):
        rehearsing.state[twin] = state
    definition.torchs_step(rehearsing)


_SCALARS = ("step", "eta", "mu", "mu_product")


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_number, value))
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Copies:
    """Copies of the tensors of one parameter, small ones if it is large."""

    def __init__(self, p: Tensor) -> None:
        self.exact = p.numel() <= _MOST_COPIED
        self._sizes = {0: 0, 1: 1}

    def copy(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.copy(value)
        if value.is_sparse or value.numel() <= 1 or (self.exact and value.numel() <= _MOST_COPIED):
            return _clone(value.detach())
        self.exact = False
        small = [self._sizes.setdefault(n, len(self._sizes)) for n in value.shape]
        return _clone(torch.ones(small, dtype=value.dtype, device=value.device), _expanded(value))


def _clone(t: Tensor, expanded: tuple[int, ...] | None = None) -> Tensor:
    """A copy that is expanded as ``t`` is, or along other dimensions: torch does not write to what is."""
    expanded = _expanded(t) if expanded is None else expanded
    if not expanded:
        return t.clone()
    once = t
    for dim in expanded:
        once = once.narrow(dim, 0, 1)
    return once.clone().expand(t.shape)


def _expanded(t: Tensor) -> tuple[int, ...]:
    """The dimensions along which all elements are one place of memory."""
    if t.layout != torch.strided:
        return ()
    return tuple(dim for dim, (n, stride) in enumerate(zip(t.shape, t.stride(), strict=True)) if n > 1 and stride == 0)


def _look(value: Any) -> Any:
    """What of a value decides whether torch takes it."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.layout, value.device, _expanded(value)
    return type(value)


def _looks(values: Any) -> Any:
    """The same of all values of a group or a state but its parameters; flags count as they are."""
    if not isinstance(values, Mapping):
        return type(values)
    return tuple(
        (key, value if isinstance(value, bool) or value is None else _look(value))
        for key, value in values.items()
        if key != "params"
    )
