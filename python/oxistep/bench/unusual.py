"""Parameters that are not simply plain tensors with plain counters: tied weights, subclasses, what is left to torch."""

from __future__ import annotations

from typing import Any

import torch

Parameters = list[torch.nn.Parameter]


class Marked(torch.nn.Parameter):
    """Adds nothing that a step would notice."""


class Seeing(torch.nn.Parameter):
    """Sees every function of torch's, so that torch's own step is all that can be taken."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def as_unusual(kind: str, parameters: Parameters) -> Parameters:
    """The same parameters, made unusual; of what kinds there are, see `workloads.UNUSUAL`."""
    made = parameters
    if kind == "tied_weights":
        half = len(parameters) // 2
        for first, second in zip(parameters[:half], parameters[half:], strict=True):
            second.data = first.data
    elif kind in ("subclasses", "left_to_torch"):
        cls = Marked if kind == "subclasses" else Seeing
        made = [cls(parameter.detach()) for parameter in parameters]
        for new, parameter in zip(made, parameters, strict=True):
            new.grad = parameter.grad
    return made


def settle(kind: str, optimizer: Any) -> None:
    """What is done to the states after the first step."""
    if kind == "integer_counters":
        for state in optimizer.state.values():
            state["step"] = state["step"].long()
