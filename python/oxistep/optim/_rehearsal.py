"""Asking torch whether it takes the numbers of a step: on copies of a few elements, before anything is written.

torch computes the constants of a step in Python, which raises where IEEE arithmetic goes on to infinity or NaN
(``betas`` of one after construction, a learning rate beyond what the dtype holds), and in complex numbers under a root
of a negative one. By then its own step has written half of what it writes. None of this depends on the values of
tensors. (But for Adafactor with a learning rate below zero, which its constructor refuses.)
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rehearse(optimizer: Any, step: Callable[[Any], Any], g: int, p: Tensor, state: dict[str, Any] | None) -> None:
    """Takes torch's step on a parameter of three elements in the place of ``p``.

    Raises:
        What torch raises, with its text and the group and its hyperparameters.
    """
    if p.grad is not None and p.grad.is_sparse and p.grad._nnz() == 0:
        return  # torch passes such a parameter by
    group = optimizer.param_groups[g]
    twin = torch.zeros(3, dtype=p.dtype)
    if p.grad is not None and p.grad.is_sparse:
        twin.grad = torch.sparse_coo_tensor(
            torch.arange(3)[None], torch.ones(3, dtype=p.dtype), (3,), check_invariants=False
        )
    else:
        twin.grad = torch.ones(3, dtype=p.dtype)
    # a sign of each kind: Rprop treats them differently
    values = torch.tensor([1.0, -1.0, 0.0], dtype=p.dtype)
    small = {
        key: (value.clone() if value.dim() == 0 and key in _SCALARS else values.clone())
        if isinstance(value, Tensor)
        else value
        for key, value in (state or {}).items()
    }
    # an object of torch's class that shares the settings, but neither parameters nor states
    rehearsing = object.__new__(optimizer._torch)
    rehearsing.__dict__.update(optimizer.__dict__)
    for scaling in ("grad_scale", "found_inf"):
        rehearsing.__dict__.pop(scaling, None)
    rehearsing.param_groups = [{**group, "params": [twin], "foreach": False, "fused": False}]
    rehearsing.state = defaultdict(dict, {twin: small} if small else {})
    try:
        step(rehearsing)
    except Exception as error:
        numbers = {key: value for key, value in {**group, **small}.items() if _is_number(value)}
        told = ", ".join(f"{key}={value}" for key, value in numbers.items())
        raise type(error)(f"{error} (torch's step of param_groups[{g}], with {told}; nothing was updated)") from error


_SCALARS = ("step", "eta", "mu", "mu_product")


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_number, value))
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, int | float) and not isinstance(value, bool)
