"""The table of optimizers: classes of torch.optim with their arguments."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Clip:
    """Clipping of the gradient's norm before each step.

    `limit`: the largest norm allowed, as a multiple of the gradient's: below one every step clips, above none does.
    `folded`: oxistep clips inside the step (`max_grad_norm=`); the peers call `clip_grad_norm_` either way.
    """

    limit: float
    folded: bool = False


@dataclass(frozen=True)
class Optimizer:
    """A class of torch.optim with its arguments.

    `states` counts the state arrays as large as the parameter. A step reads parameter, gradient and
    states, and writes parameter and states; `unread` counts those that a large step of oxistep's
    (on x86-64) overwrites without reading them. `streams` is None where a step does more than that.
    """

    torch_class: str
    states: int
    arguments: dict[str, Any] = field(default_factory=dict)
    elementwise: bool = True
    clip: Clip | None = None
    checked_steps: int = 3
    unread: int = 0

    @property
    def streams(self) -> int | None:
        return 3 + 2 * self.states - self.unread if self.elementwise and self.clip is None else None

    def has(self, argument: str) -> bool:
        import torch  # not above: helps list the table where torch is missing

        return argument in inspect.signature(getattr(torch.optim, self.torch_class)).parameters


# One learning rate for all, small enough that thousands of timed steps stay finite in float16.
LEARNING_RATE = 1e-3

OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": Optimizer("SGD", 0),
    "SGD momentum": Optimizer("SGD", 1, {"momentum": 0.9}),
    "Adagrad": Optimizer("Adagrad", 1),
    "RMSprop": Optimizer("RMSprop", 1),
    "Adam": Optimizer("Adam", 2),
    "AdamW": Optimizer("AdamW", 2),
    "Adadelta": Optimizer("Adadelta", 2),
    "NAdam": Optimizer("NAdam", 2),
    # its first five steps take another formula
    "RAdam": Optimizer("RAdam", 2, checked_steps=6),
    "Adamax": Optimizer("Adamax", 2),
    # its average is a copy of the parameter until step t0
    "ASGD": Optimizer("ASGD", 1, unread=1),
    "Rprop": Optimizer("Rprop", 2),
    "SparseAdam": Optimizer("SparseAdam", 2),
    "Adafactor": Optimizer("Adafactor", 0, elementwise=False),
    "Muon": Optimizer("Muon", 1, elementwise=False),
    "clip + Adam": Optimizer("Adam", 2, clip=Clip(limit=0.5)),
    "no clip + Adam": Optimizer("Adam", 2, clip=Clip(limit=10.0)),
    "max_grad_norm Adam": Optimizer("Adam", 2, clip=Clip(limit=0.5, folded=True)),
}

# The six of which a benchmark of fixed costs is made.
COMMON = ["SGD", "SGD momentum", "Adagrad", "RMSprop", "Adam", "AdamW"]
# Those of which torch has no fused kernel.
UNFUSED = ["RMSprop", "Adadelta", "NAdam", "RAdam", "Adamax", "ASGD", "Rprop"]
