"""One scenario, played with torch.optim and with oxistep.optim: the same results, or the same exception.

A scenario is a function of the module (`optim`) that returns whatever should agree.
"""

import contextlib
import copy
import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import pytest
import torch

import oxistep.optim

# The native classes, each with hyperparameters that use all of its states.
NATIVE = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adagrad": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 1e-2},
    "Adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1},
    "Adadelta": {"lr": 1.0, "eps": 1e-2},
    "Adamax": {"lr": 0.1},
    "NAdam": {"lr": 0.1},
    "RAdam": {"lr": 0.1},
    "ASGD": {"lr": 0.1, "t0": 2},
    "Rprop": {"lr": 0.1},
    "Adafactor": {"lr": 0.1, "weight_decay": 0.1},
}


def torch_module(name: str) -> str:
    """The module of torch.optim that the class comes from."""
    return getattr(torch.optim, name).__module__


# torch warns of sparse tensors until it has been told whether to check them.
torch.sparse.check_sparse_tensor_invariants.enable()

# The promise for float32 and float64. Half types: torch rounds after every operation, oxistep once.
CLOSE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-5, "atol": 2**-6},
    torch.float16: {"rtol": 2**-6, "atol": 2**-7},
}
CLOSE |= {torch.complex128: CLOSE[torch.float64], torch.complex64: CLOSE[torch.float32]}

# What `explain` says of plain CPU tensors. (`make test-fallback` runs some files with the other backend.)
FORCED = os.environ.get("OXISTEP_BACKEND") == "torch"
PATH = "torch" if FORCED else "native"

each_class = pytest.mark.parametrize("name", NATIVE)
# Adafactor looks at whole tensors: what is said of layouts, complex numbers and bits elsewhere is not said of it, see
# test_adafactor.
WHOLE = ("Adafactor",)
each_elementwise_class = pytest.mark.parametrize("name", [name for name in NATIVE if name not in WHOLE])

SHAPES = [(4, 3), (5,), ()]

# torch 2.10 makes Adagrad's state in the constructor only, and fails where it is missing; oxistep makes it.
ADAGRAD_MAKES_STATES = "len(state) == 0" in inspect.getsource(torch.optim.Adagrad._init_group)
each_class_that_makes_states = pytest.mark.parametrize(
    "name", [name for name in NATIVE if name != "Adagrad" or ADAGRAD_MAKES_STATES]
)


def make(optim, name: str, params, **kwargs) -> torch.optim.Optimizer:
    """The class `name` of `optim` with its hyperparameters of the table. torch takes its for-loop, as by default."""
    return getattr(optim, name)(params, **{**NATIVE[name], **kwargs})


def draw(*shapes, seed=0, dtype=torch.float32) -> list[torch.Tensor]:
    """Parameters, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def set_gradients(params, step: int) -> None:
    """Gives every parameter the gradient of step `step`, in its own layout."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        with torch.no_grad():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def train(optimizer, steps=3, start=0) -> None:
    """Steps with drawn gradients on all parameters."""
    for step in range(start, start + steps):
        set_gradients(params_of(optimizer), step)
        optimizer.step()


def clone(params) -> list[torch.Tensor]:
    return [p.detach().clone().requires_grad_(p.requires_grad) for p in params]


def params_of(optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def result(optimizer) -> dict:
    """All that a step may change: parameters, and the state in the order of the parameters."""
    params = params_of(optimizer)
    return {
        "params": [p.detach().clone() for p in params],
        "state": [
            {k: v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for k, v in optimizer.state[p].items()}
            if p in optimizer.state
            else "none"
            for p in params
        ],
    }


def outcome(scenario: Callable, *args):
    """What the scenario returns, or the type and text of what it raises."""
    try:
        return scenario(*args)
    except Exception as error:
        return type(error), str(error)


def assert_agrees(scenario: Callable, *args, exact=False):
    """Plays the scenario with both modules and compares. Returns what came of it."""
    theirs = outcome(scenario, torch.optim, *args)
    ours = outcome(scenario, oxistep.optim, *args)
    assert_same(ours, theirs, exact=exact)
    return ours


def assert_same(ours, theirs, where="result", exact=False, close=CLOSE) -> None:
    """Equal in structure, types, dtypes and values: `exact` to the bit, else as close as the project promises."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), where
        ours, theirs = (t.to_dense() if t.layout != torch.strided else t for t in (ours.detach(), theirs.detach()))
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact or theirs.dtype not in close else close[theirs.dtype]
        torch.testing.assert_close(ours, theirs, equal_nan=True, msg=lambda m: f"{where}: {m}", **tolerance)
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]", exact, close)
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple), f"{where}: ours {ours}, torch's {theirs}"
        assert len(ours) == len(theirs), f"{where}: ours {ours}, torch's {theirs}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]", exact, close)
    elif isinstance(theirs, float) and isinstance(ours, float):
        same = math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(ours) and math.isnan(theirs))
        assert same, f"{where}: ours {ours}, torch's {theirs}"
    else:
        assert ours == theirs, f"{where}: ours {ours}, torch's {theirs}"


@contextlib.contextmanager
def torch_updates_raise() -> Iterator[None]:
    """While this lasts, whoever calls one of torch's own update functions gets an error (LBFGS has none)."""
    if FORCED:
        yield
        return

    def refuse(*_, **__):
        raise AssertionError("torch's own update ran")

    with contextlib.ExitStack() as stack:
        # AdamW has none of its own, SparseAdam's is elsewhere
        stack.enter_context(mock.patch.object(torch.optim._functional, "sparse_adam", refuse))
        for module in sorted({torch_module(name) for name in (*NATIVE, "Muon")} - {"torch.optim.adamw"}):
            functions = importlib.import_module(module)
            for name in dir(functions):
                if name == module.split(".")[-1].lstrip("_") or name.startswith(
                    ("_single_tensor_", "_multi_tensor_", "_fused_")
                ):
                    stack.enter_context(mock.patch.object(functions, name, refuse))
        yield
