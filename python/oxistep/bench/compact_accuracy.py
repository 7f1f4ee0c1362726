"""Updates of Adam whose states are kept in some format beside those of float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ELEMENTS = 4096  # the least that ours and bitsandbytes keep in 8 bits
LAST = 100  # steps that are compared
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
PLACE = torch.arange(ELEMENTS)


def _normal(step: int) -> Tensor:
    return torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(step))


def _uniform(step: int) -> Tensor:
    return torch.rand(ELEMENTS, generator=torch.Generator().manual_seed(10**6 + step))


GRADIENTS: dict[str, Callable[[int], Tensor]] = {
    "normal": _normal,
    "heavy tails (Student's t, 2 degrees)": lambda t: _normal(t) / _uniform(t).clamp(min=1e-6).log().neg().sqrt(),
    "one in 256 is 100,000 times as large": lambda t: _normal(t) * torch.where(PLACE % 256 == 7, 1e5, 1.0),
    "any, one in 100, is 100,000 times as large": lambda t: _normal(t) * torch.where(_uniform(t) < 0.01, 1e5, 1.0),
    "scale 1e-20": lambda t: _normal(t) * 1e-20,
    "scale 1e10": lambda t: _normal(t) * 1e10,
    "half of them decay": lambda t: _normal(t) * torch.where(PLACE % 2 == 0, 2.0 ** (-t / 140), 1.0),
    "2 % are not zero": lambda t: _normal(t) * (_uniform(t) < 0.02),
}


def errors(
    formats: dict[str, Callable[[list[torch.nn.Parameter]], Any]], gradients: str, steps: int, lr: float
) -> dict[str, tuple[float, float]]:
    """Of each format: root mean square error of the last updates by their size, and how many times as large as
    float64's largest its largest update is."""
    gradient = GRADIENTS[gradients]
    m, v = (torch.zeros(ELEMENTS, dtype=torch.float64) for _ in range(2))
    runs = {}
    for name, make in formats.items():
        p = torch.nn.Parameter(torch.zeros(ELEMENTS))
        runs[name] = p, make([p])
    wrong, most = dict.fromkeys(formats, 0.0), dict.fromkeys(formats, 0.0)
    right, most_right = 0.0, 0.0
    for t in range(1, steps + 1):
        grad = gradient(t)
        m.lerp_(grad.double(), 1 - BETA1)
        v.mul_(BETA2).addcmul_(grad.double(), grad.double(), value=1 - BETA2)
        update = lr * m / (1 - BETA1**t) / ((v / (1 - BETA2**t)).sqrt() + EPS)
        most_right = max(most_right, update.abs().max().item())
        right += update.square().sum().item() if t > steps - LAST else 0.0
        for name, (p, optimizer) in runs.items():
            with torch.no_grad():
                p.zero_()  # so that nothing of the update is rounded away
            p.grad = grad.clone()  # some packages write into it
            optimizer.step()
            own = -p.detach().double()
            own = own.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
            most[name] = max(most[name], own.abs().max().item())
            wrong[name] += (own - update).square().sum().item() if t > steps - LAST else 0.0
    return {name: ((wrong[name] / right) ** 0.5, most[name] / most_right) for name in formats}
