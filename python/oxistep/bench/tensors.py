"""The numbers that steps are timed on: the same for everybody, and quick to make however many."""

from __future__ import annotations

import torch

from .layouts import Shape

# Parameters small enough that a few steps show, even in bfloat16; gradients large enough that their
# squares do not vanish in float16.
PARAMETER_SIZE = 0.02
GRADIENT = (0.1, 1.0)
_PERIOD = 2**20 + 7  # elements made at random; larger tensors repeat them


def fill_normal(tensor: torch.Tensor) -> torch.Tensor:
    return _tile(tensor, torch.empty(_length(tensor)).normal_(std=PARAMETER_SIZE, generator=_generator()))


def fill_uniform(tensor: torch.Tensor) -> torch.Tensor:
    return _tile(tensor, torch.empty(_length(tensor)).uniform_(*GRADIENT, generator=_generator()))


def rows_gradient(shape: Shape, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """A sparse gradient as the backward of an embedding leaves it: rows in any order, not coalesced."""
    named = torch.randperm(shape[0], generator=_generator())[:rows]
    values = fill_uniform(torch.empty(rows, *shape[1:], dtype=dtype))
    return torch.sparse_coo_tensor(named[None], values, shape, check_invariants=True)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _length(tensor: torch.Tensor) -> int:
    return min(tensor.numel(), _PERIOD)


def _tile(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if not tensor.is_contiguous():
        # the numbers are those of a contiguous tensor of this shape, wherever they lie
        return tensor.copy_(_tile(torch.empty(tensor.shape, dtype=tensor.dtype), values))
    if tensor.numel():
        for piece in torch.split(tensor.view(-1), len(values)):
            piece.copy_(values[: len(piece)])
    return tensor
