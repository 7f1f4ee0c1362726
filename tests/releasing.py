"""A model for the tests of gradient release, and a process group of one rank."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn


class Net(nn.Module):
    """A weight that is used twice, one that is frozen, one that is never used, and a bias."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Linear(6, 6, dtype=dtype)
        self.frozen = nn.Linear(6, 6, bias=False, dtype=dtype).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3, dtype=dtype))
        self.last = nn.Linear(6, 1, dtype=dtype)

    def forward(self, x):
        return self.last(self.twice(self.frozen(self.twice(x).tanh())))


def inputs(k, dtype=torch.float32):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(k)).to(dtype)


def backward(model, k):
    model(inputs(k, next(model.parameters()).dtype)).square().mean().backward()


@contextmanager
def one_rank():
    """A process group of this process alone."""
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
