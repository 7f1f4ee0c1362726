"""Names and objects of what a user calls the parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from oxistep.numpy._structure import Flat, is_container


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor. Does not import torch: without it there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def nested(parameters: Any) -> Flat | None:
    """NumPy arrays in containers inside each other, laid out flat; None for everything else."""
    if not is_container(parameters):
        return None
    values = parameters.values() if isinstance(parameters, Mapping) else parameters
    if not any(map(is_container, values)):
        return None
    flat = Flat(parameters)
    return flat if all(isinstance(array, np.ndarray) for array in flat.arrays) else None


def named(parameters: Any) -> tuple[list[str], list[Any], bool]:
    """Names, objects, and whether they are torch's.

    ``parameters`` may be a ``torch.nn.Module``, a dict from name to tensor or array, pairs of names and these, or
    only these; arrays also in containers inside each other.
    """
    if callable(getattr(parameters, "named_parameters", None)):
        pairs = list(parameters.named_parameters())
        if not pairs:
            raise ValueError(f"{type(parameters).__name__} has no parameters")
    elif (flat := nested(parameters)) is not None:
        pairs = list(zip(flat.names, flat.arrays, strict=True))
    elif isinstance(parameters, Mapping):
        pairs = list(parameters.items())
    elif isinstance(parameters, np.ndarray) or is_tensor(parameters):
        pairs = [("0", parameters)]
    elif isinstance(parameters, Iterable) and not isinstance(parameters, str):
        pairs = [
            item if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) else (str(i), item)
            for i, item in enumerate(parameters)
        ]
    else:
        raise TypeError(
            "expected a torch module, a dict or an iterable of named tensors or arrays, "
            f"got {type(parameters).__name__}"
            + ("; give the model whose parameters it has" if hasattr(parameters, "param_groups") else "")
        )
    if not pairs:
        raise ValueError("expected at least one parameter, got none")
    names = [name for name, _ in pairs]
    if strange := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"names of parameters must be str, got {strange[0]!r}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands for two parameters")
    objects = [value for _, value in pairs]
    torchs = [is_tensor(value) for value in objects]
    for name, value, of_torch in zip(names, objects, torchs, strict=True):
        if not of_torch and not isinstance(value, np.ndarray):
            raise TypeError(f"parameter {name!r} must be a torch tensor or a NumPy array, got {type(value).__name__}")
        if of_torch is not torchs[0]:
            raise TypeError(f"{names[0]} and {name}: torch tensors and NumPy arrays cannot be mixed")
    return names, objects, torchs[0]


def real(value: Any, name: str, *, above: float | None = 0.0) -> float:
    """A number above ``above``; ``None``: zero or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (value >= 0 if above is None else value > above):
        expected = "zero or more" if above is None else f"a number above {above:g}"
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return float(value)


def whole(value: Any, name: str, *, least: int = 1) -> int:
    """A whole number, ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def callable_as(value: Any, name: str) -> Any:
    """Something to call."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {type(value).__name__}")
    return value


def so_many(count: int) -> str:
    """So many of them, in words."""
    return "1 parameter" if count == 1 else f"{count:,} parameters"
