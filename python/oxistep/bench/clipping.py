"""A step with its gradient's norm clipped before it, or inside it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import chain, count, repeat
from typing import Any

import torch

from .implementations import OURS, Parameters
from .optimizer_table import Clip
from .paired import Step

# Clipping rewrites the gradient, and the next call would find nothing left to clip: the limit sinks a little each step,
# by more than the rounding of a norm.
SINKS = 1 - 1e-4


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradients))


def limits(clip: Clip, norm: float, checked_steps: int) -> Iterator[float]:
    """The limit of each step: constant while results are checked, as `max_grad_norm=` is always."""
    first = clip.limit * norm
    if clip.limit >= 1:
        return repeat(first)
    return chain(repeat(first, checked_steps), (first * SINKS**k for k in count(1)))


def clipped_step(name: str, optimizer: Any, parameters: Parameters, limit: Iterator[float]) -> Step:
    """`optimizer.step` after `clip_grad_norm_`: oxistep's own for oxistep, torch's for everybody else."""
    module = importlib.import_module("oxistep" if name == OURS else "torch.nn.utils")
    clip_grad_norm_, take = module.clip_grad_norm_, optimizer.step

    def step() -> None:
        clip_grad_norm_(parameters, next(limit))
        take()

    return step
