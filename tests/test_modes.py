"""Compilers, modes, default devices, parameters swapped in for a while."""

import copy
import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import oxistep
import oxistep.optim
from scenarios import (
    SHAPES,
    assert_agrees,
    assert_same,
    draw,
    each_class,
    make,
    params_of,
    result,
    set_gradients,
    torch_updates_raise,
    train,
)


@each_class
def test_inside_a_compiled_function(name):
    def scenario(compiled):
        (w,) = draw((4,))
        optimizer = make(oxistep.optim, name, [w])

        def train_step(x):
            optimizer.zero_grad()
            loss = (w * x).square().sum()
            loss.backward()
            optimizer.step()
            return loss

        torch._dynamo.reset()
        step = torch.compile(train_step, backend="eager") if compiled else train_step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns of much that is its own
            return [step(torch.full((4,), i + 1.0)).detach() for i in range(3)], result(optimizer)

    assert_same(scenario(compiled=True), scenario(compiled=False), exact=True)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


class WatchFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", ""))
        return func(*args, **kwargs or {})


@each_class
@pytest.mark.parametrize("mode", [Watch, WatchFunctions], ids=lambda mode: mode.__name__)
def test_modes_see_torchs_operations(name, mode):
    def scenario(optim):
        optimizer = make(optim, name, draw(*SHAPES))
        set_gradients(params_of(optimizer), 0)
        optimizer.step()
        with mode() as watch:
            optimizer.step()
            if optim is oxistep.optim:
                rows = oxistep.explain(optimizer)
                assert {(row.path, "mode" in row.reason) for row in rows} == {("torch", True)}
        optimizer.step()
        updates = [n for n in watch.seen if n.endswith("_") and not n.startswith("_")]
        return sorted(updates), result(optimizer)

    updates, _ = assert_agrees(scenario)
    assert updates


@each_class
def test_under_a_default_device(name):
    plain = make(oxistep.optim, name, draw(*SHAPES))
    train(plain)
    torch.set_default_device("cpu")
    try:
        params = draw(*SHAPES)
        optimizer = make(oxistep.optim, name, params)
        with torch_updates_raise():
            train(optimizer)
        assert {row.path for row in oxistep.explain(optimizer)} == {"native"}
    finally:
        torch.set_default_device(None)
    assert_same(result(optimizer), result(plain), exact=True)


@each_class
def test_a_default_device_that_is_not_the_parameters(name):
    plain = make(oxistep.optim, name, draw(*SHAPES))
    params = draw(*SHAPES)
    optimizer = make(oxistep.optim, name, params)
    set_gradients(params, 0)
    with torch.device("meta"), torch_updates_raise():
        optimizer.step()
    train(plain, 1)
    assert_same(result(optimizer), result(plain), exact=True)


@pytest.mark.skipif(not hasattr(torch.optim, "swap_in_optimizer_params_and_state"), reason="this torch lacks it")
@each_class
def test_parameters_and_state_swapped_in_for_a_while(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(*SHAPES))
        train(optimizer, 2)
        before = result(optimizer)
        others = dict(enumerate(draw(*SHAPES, seed=1)))
        state = copy.deepcopy(optimizer.state_dict())
        with optim.swap_in_optimizer_params_and_state(optimizer, others, state):
            train(optimizer, 2, start=2)
            swapped = result(optimizer)
        assert_same(result(optimizer), before, exact=True)
        train(optimizer, 2, start=2)
        return swapped, result(optimizer)

    assert_agrees(scenario)
