"""Small trainings that the demonstration runs with two libraries: each returns numbers that must agree.

The scripts of examples/ in the sources show these and more, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from oxistep._bowl import START, bowl, eight


def line(optim: Any) -> list[float]:
    """A straight line by full-batch gradient descent, two 0-dimensional parameters: the losses."""
    x = torch.linspace(-1, 1, 50)
    y = 2 * x - 0.5
    slope, offset = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    optimizer = optim.SGD([slope, offset], lr=0.1, momentum=0.9)
    return _descend(optimizer, lambda _: F.mse_loss(slope * x + offset, y), 100)


def weights(optim: Any) -> list[float]:
    """Known weights from noisy samples in mini-batches, with weight decay and a schedule: the weights at the end."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(512, 8, generator=generator)
    wanted = torch.arange(1.0, 9.0)
    outputs = inputs @ wanted + 0.01 * torch.randn(512, generator=generator)
    found = torch.nn.Parameter(torch.zeros(8))
    optimizer = optim.AdamW([found], lr=0.2, weight_decay=1e-4)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.995)

    def loss(step: int) -> torch.Tensor:
        batch = slice(step % 16 * 32, step % 16 * 32 + 32)
        if step:
            schedule.step()
        return F.mse_loss(inputs[batch] @ found, outputs[batch])

    _descend(optimizer, loss, 400)
    return [float(w) for w in found.detach()]


def digits(optim: Any) -> list[float]:
    """A two-layer network with clipped gradients on classes made up: the losses."""
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(256, 20, generator=generator)
    classes = inputs[:, :5].argmax(1)
    network = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    parameters = list(network.parameters())
    return _descend(
        optim.Adam(parameters, lr=0.01), lambda _: F.cross_entropy(network(inputs), classes), 100, clipped=parameters
    )


def ends(optim: Any) -> list[float]:
    """Eight optimizers on x1^2 + 10 x2^2: where each ends."""
    found: list[float] = []
    for make in eight(optim).values():
        point = torch.nn.Parameter(torch.tensor(START))
        _descend(make([point]), lambda _, point=point: bowl(*point), 100)  # type: ignore[misc]
        found += point.tolist()
    return found


def _descend(
    optimizer: Any, loss: Callable[[int], torch.Tensor], steps: int, clipped: list[torch.nn.Parameter] | None = None
) -> list[float]:
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        torch.autograd.backward(value)
        if clipped:
            torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


# What each trains, what its numbers are, and the training.
CASES: dict[str, tuple[str, Callable[[Any], list[float]]]] = {
    "a straight line, SGD with momentum": ("losses", line),
    "8 weights in mini-batches, AdamW with a schedule": ("weights", weights),
    "a small network with clipped gradients, Adam": ("losses", digits),
    "where eight optimizers end on a bowl": ("coordinates", ends),
}
