"""What is compared: the ways to run an optimizer."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .optimizer_table import LEARNING_RATE, Optimizer
from .workloads import Workload

OURS = "oxistep"
REFERENCE = "for-loop"  # torch's default on CPU, and the judge of every result

Parameters = list[torch.nn.Parameter]

# torch.compile takes about 0.15 s a tensor, and a minute or more beyond this many.
COMPILED_TENSORS = 200


@dataclass(frozen=True)
class Task:
    """What an implementation is asked to step on."""

    workload: Workload
    optimizer: Optimizer
    dtype: torch.dtype


@dataclass(frozen=True)
class Implementation:
    """`build` makes the optimizer; `missing` says why it cannot, or None.

    `compiled` hands its step to torch.compile.
    """

    build: Callable[..., Any]  # (optimizer, parameters)
    missing: Callable[[Task], str | None]
    compiled: bool = False


def _from_module(module: str, **flags: Any) -> Callable[..., Any]:
    def build(optimizer: Optimizer, parameters: Parameters, **more: Any) -> Any:
        make = getattr(importlib.import_module(module), optimizer.torch_class)
        return make(parameters, lr=LEARNING_RATE, **optimizer.arguments, **flags, **more)

    return build


def _ours_missing(task: Task) -> str | None:
    ours = importlib.import_module("oxistep.optim")
    name, clip = task.optimizer.torch_class, task.optimizer.clip
    if getattr(ours, name) is getattr(torch.optim, name):
        return f"oxistep hands torch's {name} on"
    if clip is None:
        return None
    if clip.folded:
        try:
            getattr(ours, name)([torch.nn.Parameter(torch.ones(1))], max_grad_norm=1.0)
        except TypeError:
            return f"this oxistep has no max_grad_norm= in {name}"
        return None
    known = hasattr(importlib.import_module("oxistep"), "clip_grad_norm_")
    return None if known else "this oxistep has no clip_grad_norm_"


def _needs(argument: str) -> Callable[[Task], str | None]:
    def missing(task: Task) -> str | None:
        if not task.optimizer.has(argument):
            return f"torch has no {argument} {task.optimizer.torch_class}"
        return f"torch's {argument} takes no sparse gradients" if task.workload.rows else None

    return missing


def _for_loop(optimizer: Optimizer, parameters: Parameters) -> Any:
    flags = {name: False for name in ("foreach", "fused") if optimizer.has(name)}
    return _from_module("torch.optim", **flags)(optimizer, parameters)


def _compile_missing(task: Task) -> str | None:
    if task.workload.rows:
        return "torch.compile does not compile steps on sparse gradients"
    if task.optimizer.clip:
        return "not timed compiled with clipping"
    if len(task.workload.shapes) > COMPILED_TENSORS:
        return f"not compiled above {COMPILED_TENSORS} tensors, where compiling takes minutes"
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        return "torch.compile needs a C++ compiler, and there is none"
    return None


def _deepspeed(optimizer: Optimizer, parameters: Parameters) -> Any:
    """DeepSpeed compiles its kernel when first used, which takes a minute."""
    if optimizer.torch_class == "Adagrad":
        make = importlib.import_module("deepspeed.ops.adagrad").DeepSpeedCPUAdagrad
        return make(parameters, lr=LEARNING_RATE, **optimizer.arguments)
    make = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    decoupled = optimizer.torch_class == "AdamW"
    decay = optimizer.arguments.get("weight_decay", 0.01 if decoupled else 0)
    return make(parameters, lr=LEARNING_RATE, adamw_mode=decoupled, weight_decay=decay, fp32_optimizer_states=False)


def _deepspeed_absence() -> str | None:
    """Why DeepSpeed cannot be used here, found by using it: its kernel is compiled at first use."""
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed (make bench-peers has it)"
    try:
        parameter = torch.nn.Parameter(torch.ones(64))
        parameter.grad = torch.ones(64)
        _deepspeed(Optimizer("Adam", 2), [parameter]).step()
    except Exception as error:
        return f"deepspeed does not work here: {type(error).__name__}: {error}".splitlines()[0]
    return None


deepspeed_absence = cache(_deepspeed_absence)


def _deepspeed_missing(task: Task) -> str | None:
    if absent := deepspeed_absence():
        return absent
    name = task.optimizer.torch_class
    if name not in ("Adagrad", "Adam", "AdamW"):
        return f"DeepSpeed has no CPU {name}"
    if task.workload.rows:
        return "not timed on sparse gradients"
    if task.dtype == torch.float64:
        return "DeepSpeed has no float64"
    return None


def _never(_: Task) -> None:
    return None


IMPLEMENTATIONS: dict[str, Implementation] = {
    OURS: Implementation(_from_module("oxistep.optim"), _ours_missing),
    REFERENCE: Implementation(_for_loop, _never),
    "foreach": Implementation(_from_module("torch.optim", foreach=True), _needs("foreach")),
    "fused": Implementation(_from_module("torch.optim", fused=True), _needs("fused")),
    "compile": Implementation(_from_module("torch.optim"), _compile_missing, compiled=True),
    "deepspeed": Implementation(_deepspeed, _deepspeed_missing),
}
