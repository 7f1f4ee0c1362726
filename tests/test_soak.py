"""The long run of `make soak` in short: memory stays where it is, bounded by counts and not by time."""

import gc
import importlib.util
import sys
import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch

import oxistep.numpy
import oxistep.optim
from scenarios import NATIVE, draw, each_class, make, params_of, set_gradients

pytestmark = pytest.mark.alone

PROGRAM = Path(__file__).parents[1] / "benches" / "soak.py"


def load():
    """The program, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("soak", PROGRAM)
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


soak = load()


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory as Linux tells it")
@pytest.mark.parametrize("part", soak.parts(0.01), ids=lambda part: part.name)
def test_memory_stays_where_it_is(part):
    """A hundredth of the load. A leak of one small tensor in each of the 7,500 small steps that are looked at would be
    several MiB, one of a large state hundreds."""
    soak.soak(part, 2)  # the allocators' own caches
    seen = soak.soak(part, 4)
    assert soak.resident() > 0
    assert min(seen[1:]) - seen[0] < 3, seen


@each_class
def test_steps_leave_no_python_objects(name):
    params = draw((4, 3), (5,), ())
    optimizer = make(oxistep.optim, name, params)
    set_gradients(params, 0)
    for _ in range(20):
        optimizer.step()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(50):
            optimizer.step()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            optimizer.step()
        gc.collect()
        # room for what the interpreter itself keeps: 500 steps that left one object each would take 8,000 bytes
        assert tracemalloc.get_traced_memory()[0] - before < 4000
    finally:
        tracemalloc.stop()


@each_class
def test_optimizers_that_are_dropped_are_freed(name):
    """Also those whose parameter leads back to them."""
    alive = []
    for k in range(20):
        params = draw((4, 3), (5,))
        optimizer = make(oxistep.optim, name, params)
        set_gradients(params, 0)
        for _ in range(3):
            optimizer.step()
        if k % 2:
            params[0].register_hook(lambda grad, optimizer=optimizer: None)
            params[1].owner = optimizer
        alive += [weakref.ref(optimizer), *(weakref.ref(p) for p in params)]
        alive += [weakref.ref(v) for v in optimizer.state[params[0]].values()]
    del optimizer, params
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


def test_steps_that_raise_leave_nothing_behind():
    params = draw((4, 3), (5,))
    optimizer = make(oxistep.optim, "Adam", [*params, torch.ones(3, requires_grad=True)])
    bad = params_of(optimizer)[2]
    set_gradients(params, 0)
    bad.grad = torch.ones(3).to_sparse()
    for _ in range(50):
        with pytest.raises(RuntimeError):
            optimizer.step()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(300):
        with pytest.raises(RuntimeError):
            optimizer.step()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100


def test_the_resumed_run_of_the_soak():
    assert soak.same_when_resumed(200)


def test_every_native_class_is_soaked():
    assert soak.NATIVE.keys() == NATIVE.keys()
