"""Whether a step that raised has changed anything: everything that a step may touch, seen before and after."""

from typing import Any

import torch


def bits(tensor: torch.Tensor) -> Any:
    """The elements as integers, in the order of their indices, so that NaN equals itself; with dtype and strides."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[tensor.element_size()]
    return tensor.dtype, tensor.stride(), tensor.contiguous().view(integers).tolist()


def value(x: Any) -> Any:
    """Any value of a group or a state as something that compares bit by bit."""
    if isinstance(x, torch.Tensor):
        return id(x), bits(x)
    if isinstance(x, dict):
        return {key: value(v) for key, v in x.items()}
    if isinstance(x, list | tuple):
        return [value(v) for v in x]
    return x


def snapshot(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], gradients: bool = True) -> dict[str, Any]:
    """Everything about `params` and the optimizer that a step which raises must leave alone.

    `gradients=False` where unscaling or clipping may have changed them in place.
    """
    state = optimizer.state
    return {
        "parameters": [bits(p) for p in params],
        "addresses": [p.data_ptr() for p in params],
        "versions": [p._version for p in params],
        "gradients": [None if p.grad is None else bits(p.grad) for p in params] if gradients else None,
        # keys, their order, the very objects, and their bits; entries are asked for without making any
        "states": [
            value(dict(state[p]) if isinstance(state[p], dict) else state[p]) if p in state else "none" for p in params
        ],
        "entries": [id(p) for p in state if any(p is q for q in params)],
        "groups": id(optimizer.param_groups),
        "group values": [
            {key: value(v) for key, v in group.items() if key != "params"} for group in optimizer.param_groups
        ],
        "group lists": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "attributes": sorted(key for key in vars(optimizer) if key != "_oxistep"),
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What of a snapshot is not as it was."""
    return [key for key in before if before[key] != after[key]]


def outcome_of(params: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> Any:
    """Parameters and states to the bit, to be compared between optimizers."""
    return [
        (bits(p), {k: bits(v) if isinstance(v, torch.Tensor) else v for k, v in optimizer.state.get(p, {}).items()})
        for p in params
    ]
