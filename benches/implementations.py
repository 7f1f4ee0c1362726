"""What is compared: the table of optimizers, and the table of ways to run each of them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

OURS = "oxistep"
REFERENCE = "for-loop"  # torch's default on CPU, and the judge of every result

Parameters = list[torch.nn.Parameter]


@dataclass(frozen=True)
class Optimizer:
    """A class of torch.optim with its arguments.

    `states` counts the state arrays as large as the parameter. A step reads parameter, gradient and
    states, and writes parameter and states.
    """

    torch_class: str
    states: int
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def streams(self) -> int:
        return 3 + 2 * self.states

    def has(self, argument: str) -> bool:
        return argument in inspect.signature(getattr(torch.optim, self.torch_class)).parameters


# One learning rate for all, small enough that thousands of timed steps stay finite in float16.
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": Optimizer("SGD", 0),
    "SGD momentum": Optimizer("SGD", 1, {"momentum": 0.9}),
    "Adagrad": Optimizer("Adagrad", 1),
    "RMSprop": Optimizer("RMSprop", 1),
    "Adam": Optimizer("Adam", 2),
    "AdamW": Optimizer("AdamW", 2),
}
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Implementation:
    """`build` makes the optimizer; `missing` says why it cannot, or None.

    `compiled` hands its step to torch.compile.
    """

    build: Callable[[Optimizer, Parameters], Any]
    missing: Callable[[Optimizer], str | None]
    compiled: bool = False


def _from_module(module: str, **flags: bool) -> Callable[[Optimizer, Parameters], Any]:
    def build(optimizer: Optimizer, parameters: Parameters) -> Any:
        make = getattr(importlib.import_module(module), optimizer.torch_class)
        return make(parameters, lr=LEARNING_RATE, **optimizer.arguments, **flags)

    return build


def _needs(argument: str) -> Callable[[Optimizer], str | None]:
    def missing(optimizer: Optimizer) -> str | None:
        if optimizer.has(argument):
            return None
        return f"torch has no {argument} {optimizer.torch_class}"

    return missing


def _for_loop(optimizer: Optimizer, parameters: Parameters) -> Any:
    flags = {name: False for name in ("foreach", "fused") if optimizer.has(name)}
    return _from_module("torch.optim", **flags)(optimizer, parameters)


def _deepspeed(optimizer: Optimizer, parameters: Parameters) -> Any:
    if optimizer.torch_class == "Adagrad":
        make = importlib.import_module("deepspeed.ops.adagrad").DeepSpeedCPUAdagrad
        return make(parameters, lr=LEARNING_RATE, **optimizer.arguments)
    make = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    decoupled = optimizer.torch_class == "AdamW"
    decay = optimizer.arguments.get("weight_decay", 0.01 if decoupled else 0)
    return make(parameters, lr=LEARNING_RATE, adamw_mode=decoupled, weight_decay=decay)


def _deepspeed_missing(optimizer: Optimizer) -> str | None:
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if optimizer.torch_class not in ("Adagrad", "Adam", "AdamW"):
        return f"DeepSpeed has no CPU {optimizer.torch_class}"
    return None


def _never(_: Optimizer) -> None:
    return None


IMPLEMENTATIONS: dict[str, Implementation] = {
    OURS: Implementation(_from_module("oxistep.optim"), _never),
    REFERENCE: Implementation(_for_loop, _never),
    "foreach": Implementation(_from_module("torch.optim", foreach=True), _needs("foreach")),
    "fused": Implementation(_from_module("torch.optim", fused=True), _needs("fused")),
    "compile": Implementation(_from_module("torch.optim"), _never, compiled=True),
    "deepspeed": Implementation(_deepspeed, _deepspeed_missing),
}
