"""All of torch.optim's classes, each with parameters and gradients that it takes.

`scenarios` plays the element-wise classes; here SparseAdam (sparse gradients), Muon (matrices) and LBFGS (a closure)
stand beside them, so that what is said of every class is tried with every class.
"""

from collections.abc import Callable

import pytest
import torch

import oxistep.optim
from scenarios import CLOSE, NATIVE, assert_same, outcome, params_of

KWARGS = {
    **NATIVE,
    "SparseAdam": {"lr": 0.1},
    "Muon": {"lr": 0.1},
    "LBFGS": {"lr": 0.1, "max_iter": 3, "history_size": 2},
}
OTHERS = [name for name in KWARGS if name not in NATIVE]
assert set(KWARGS) == {name for name in torch.optim.__all__ if name[0].isupper()} - {"Optimizer"}
each_of_fifteen = pytest.mark.parametrize("name", KWARGS)
each_other = pytest.mark.parametrize("name", OTHERS)
# without LBFGS, which holds one group and takes a closure
each_stepping_class = pytest.mark.parametrize("name", [name for name in KWARGS if name != "LBFGS"])

# Where sums of another order than torch's decide (the promise of the project for these).
SUMS = ("Adafactor", "LBFGS")
CLOSE_SUMS = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}


def close(name: str) -> dict:
    return CLOSE_SUMS if name in SUMS else CLOSE


def draw(name: str, seed=0, dtype=torch.float32) -> list[torch.Tensor]:
    """Two parameters that the class takes, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (2, 5)] if name == "Muon" else [(4, 3), (5,)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def make(optim, name: str, params, **kwargs) -> torch.optim.Optimizer:
    return getattr(optim, name)(params, **{**KWARGS[name], **kwargs})


def set_gradients(name: str, params, step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        if name == "SparseAdam":
            grad = torch.sparse_coo_tensor([[2, 0, 2]], grad[:3], p.shape)
        p.grad = grad


def bowl(optimizer) -> Callable[[], torch.Tensor]:
    """A closure for LBFGS: a smooth loss with its minimum (maximum, if that is looked for) at 0.3."""

    def closure():
        optimizer.zero_grad()
        sign = -1.0 if optimizer.param_groups[0].get("maximize") else 1.0
        loss = sign * sum(
            ((p - 0.3) ** 2 * torch.arange(1, p.numel() + 1).view(p.shape)).sum() for p in params_of(optimizer)
        )
        loss.backward()
        return loss

    return closure


def train(name: str, optimizer, steps=3, start=0) -> list:
    """Steps on all parameters; what they return."""
    came = []
    for step in range(start, start + steps):
        if name == "LBFGS":
            came.append(optimizer.step(bowl(optimizer)))
        else:
            set_gradients(name, params_of(optimizer), step)
            came.append(optimizer.step())
    return came


def assert_agrees(name: str, scenario: Callable, *args):
    """Plays the scenario with both modules and compares, as closely as is promised of the class."""
    theirs = outcome(scenario, torch.optim, *args)
    ours = outcome(scenario, oxistep.optim, *args)
    assert_same(ours, theirs, close=close(name))
    return ours
