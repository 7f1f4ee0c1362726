"""Copies, pickles and checkpoints, to torch and back, of this and of older versions."""

import copy
import io
import pickle

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    NATIVE,
    SHAPES,
    assert_agrees,
    assert_same,
    clone,
    draw,
    each_class,
    make,
    params_of,
    result,
    train,
)

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "torch.save": lambda both: reload(both, weights_only=False),
}


def reload(value, **kwargs):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **kwargs)


@each_class
@pytest.mark.parametrize("way", COPIES)
def test_copies_continue_on_their_own(name, way):
    params = draw(*SHAPES)
    optimizer = make(oxistep.optim, name, params)
    train(optimizer)
    before = result(optimizer)
    copied_params, copied = COPIES[way]((params, optimizer))
    assert type(copied) is type(optimizer)
    assert all(a is b for a, b in zip(params_of(copied), copied_params, strict=True))
    assert_same(result(copied), before, exact=True)
    train(copied, start=3)
    assert_same(result(optimizer), before, exact=True)
    train(optimizer, start=3)
    assert_same(result(copied), result(optimizer), exact=True)


@each_class
@pytest.mark.parametrize("source, target", [("ours", "torch's"), ("torch's", "ours"), ("ours", "ours")])
def test_checkpoints_move_both_ways(name, source, target):
    modules = {"ours": oxistep.optim, "torch's": torch.optim}
    reference = make(torch.optim, name, draw(*SHAPES))
    first = make(modules[source], name, draw(*SHAPES))
    train(reference)
    train(first)
    assert_same(first.state_dict(), reference.state_dict())

    second = make(modules[target], name, clone(params_of(first)), lr=123.0)
    saved = reload(first.state_dict(), weights_only=True)
    second.load_state_dict(saved)
    assert_same(result(second), result(first), exact=True)
    train(reference, start=3)
    train(second, start=3)
    assert_same(result(second), result(reference))
    assert_same(second.state_dict(), reference.state_dict())


@each_class
def test_state_of_parameters_of_another_dtype_is_cast(name):
    def scenario(optim):
        first = make(optim, name, draw(*SHAPES))
        train(first)
        second = make(optim, name, draw(*SHAPES, dtype=torch.float64))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        types = [{key: value.dtype for key, value in state.items()} for state in second.state.values()]
        train(second)
        return types, result(second)["params"]

    # the states come from float32 steps, which agree as float32 does
    def rounded(optim):
        types, params = scenario(optim)
        return types, [p.float() for p in params]

    assert_agrees(rounded)


@each_class
def test_old_checkpoints_with_a_step_that_is_an_int(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(*SHAPES))
        train(optimizer)
        old = copy.deepcopy(optimizer.state_dict())
        for state in old["state"].values():
            if "step" in state:
                state["step"] = int(state["step"])
        optimizer.load_state_dict(old)
        train(optimizer, start=3)
        return result(optimizer)

    assert_agrees(scenario)


def test_old_checkpoints_with_a_momentum_buffer_that_is_none():
    def scenario(optim):
        optimizer = make(optim, "SGD", draw(*SHAPES))
        optimizer.load_state_dict(
            {
                "state": {i: {"momentum_buffer": None} for i in range(2)},
                "param_groups": [{**optimizer.state_dict()["param_groups"][0]}],
            }
        )
        train(optimizer)
        return result(optimizer)

    assert_agrees(scenario)


def test_old_pickles_without_newer_keys():
    def scenario(optim, name):
        optimizer = make(optim, name, draw(*SHAPES))
        train(optimizer, 1)
        for key in ("maximize", "foreach", "fused", "differentiable", "capturable", "amsgrad", "nesterov", "centered"):
            optimizer.param_groups[0].pop(key, None)
        optimizer.__setstate__(optimizer.__getstate__())
        train(optimizer, 1, start=1)
        return result(optimizer)

    for name in NATIVE:
        # of RMSprop and Adam hyperparameters of the table are among the keys; torch's Adafactor does not set `maximize`
        if name not in ("RMSprop", "Adam", "Adafactor"):
            assert_agrees(scenario, name)


def test_load_state_dict_hooks():
    def scenario(optim):
        optimizer = make(optim, "Adam", draw((3,)))
        train(optimizer, 1)
        calls = []
        optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, state: calls.append("after saving"))
        optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append("before loading"))
        optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
        optimizer.load_state_dict(optimizer.state_dict())
        return calls

    assert len(assert_agrees(scenario)) == 4


@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_step_is_of_torchs_dtype_under_another_default(name, dtype):
    def scenario(optim):
        optimizer = make(optim, name, draw(*SHAPES))
        train(optimizer)
        types = [{key: value.dtype for key, value in state.items()} for state in optimizer.state.values()]
        # under float16 torch rounds ASGD's rate to it, oxistep to what it is kept in
        return types, result(optimizer) if dtype == torch.float64 else None

    torch.set_default_dtype(dtype)
    try:
        assert_agrees(scenario)
    finally:
        torch.set_default_dtype(torch.float32)
