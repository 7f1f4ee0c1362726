"""What surrounds the arithmetic of a step: closures, hooks, schedulers, checkpoints, modes, threads. All as in torch.

Most tests are scenarios, played with torch.optim and with oxistep.optim.
"""

import copy
import gc
import inspect
import io
import os
import pickle
import signal
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import oxistep
import oxistep.optim
from scenarios import (
    NATIVE,
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

SHAPES = [(4, 3), (5,), ()]

# torch 2.10 makes Adagrad's state in the constructor only, and fails where it is missing; oxistep makes it.
ADAGRAD_MAKES_STATES = "len(state) == 0" in inspect.getsource(torch.optim.Adagrad._init_group)
each_class_that_makes_states = pytest.mark.parametrize(
    "name", [name for name in NATIVE if name != "Adagrad" or ADAGRAD_MAKES_STATES]
)


def clone(params):
    return [p.detach().clone().requires_grad_(p.requires_grad) for p in params]


# ---- closures ----


@each_class
def test_closure_runs_once_with_grad_enabled_and_its_loss_comes_back(name):
    def scenario(optim):
        (w,) = draw((4,))
        optimizer = make(optim, name, [w])
        modes = []

        def closure():
            modes.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = (w * w).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure), optimizer.step(closure=closure), optimizer.step()]
        return modes, losses, torch.is_grad_enabled(), result(optimizer)

    modes, losses, *_ = assert_agrees(scenario)
    assert modes == [True, True]
    assert losses[1] < losses[0]
    assert losses[2] is None


def test_a_closure_that_raises_changes_nothing():
    def closure():
        raise ValueError("no loss today")

    params = draw(*SHAPES)
    optimizer = make(oxistep.optim, "Adam", params)
    set_gradients(params, 0)
    before = result(optimizer)
    with pytest.raises(ValueError, match="no loss today"):
        optimizer.step(closure)
    assert_same(result(optimizer), before, exact=True)


# ---- hooks ----


class Events(list):
    """Hooks that write down when they were called, with what, and where the parameter stood."""

    def hook(self, label):
        def called(optimizer, args, kwargs):
            shown = [type(a).__name__ if callable(a) or a is optimizer else a for a in args]
            self.append((label, shown, sorted(kwargs), params_of(optimizer)[0].detach().clone()))

        return called

    def register_all(self, optimizer):
        return [
            optimizer.register_step_post_hook(self.hook("post")),
            register_optimizer_step_post_hook(self.hook("global post")),
            optimizer.register_step_pre_hook(self.hook("pre")),
            register_optimizer_step_pre_hook(self.hook("global pre")),
        ]


@each_class
def test_hooks_run_in_torchs_order_with_torchs_arguments(name):
    def scenario(optim):
        params, events = draw((4,)), Events()
        optimizer = make(optim, name, params)
        set_gradients(params, 0)
        handles = events.register_all(optimizer)
        try:
            optimizer.step()
            optimizer.step(None)
            optimizer.step(lambda: 1.0)
            optimizer.step(closure=lambda: 1.0)
        finally:
            for handle in handles:
                handle.remove()
        optimizer.step()
        return list(events)

    events = assert_agrees(scenario)
    assert [label for label, *_ in events] == ["global pre", "pre", "post", "global post"] * 4
    assert [(len(args), kwargs) for _, args, kwargs, _ in events[::4]] == [(1, []), (2, []), (2, []), (1, ["closure"])]


def test_pre_hooks_may_replace_the_arguments():
    def scenario(optim):
        params = draw((4,))
        optimizer = make(optim, "SGD", params)
        set_gradients(params, 0)
        seen = []
        optimizer.register_step_pre_hook(lambda o, args, kwargs: ((*args, lambda: "replaced"), {}))
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(len(args)))
        return optimizer.step(), seen, result(optimizer)

    loss, seen, _ = assert_agrees(scenario)
    assert (loss, seen) == ("replaced", [2])


def test_a_pre_hook_that_returns_anything_else_is_refused():
    optimizer = make(oxistep.optim, "SGD", draw((4,)))
    optimizer.register_step_pre_hook(lambda *_: "nonsense")
    with pytest.raises(RuntimeError, match="must return None or a tuple of"):
        optimizer.step()


class Labelled(torch.nn.Parameter):
    """A subclass: torch does its part."""


@each_class
def test_hooks_run_once_though_the_plain_class_was_made_and_torch_does_a_part(name):
    make(torch.optim, name, draw((2,)))  # torch has wrapped its step from now on
    odd = Labelled(torch.ones(3))
    odd.grad = torch.ones(3)
    (w,) = draw((4,))
    optimizer, events = make(oxistep.optim, name, [odd, w]), Events()
    handles = events.register_all(optimizer)
    set_gradients([w], 0)
    before = w.detach().clone(), odd.detach().clone()
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert [row.path for row in oxistep.explain(optimizer)] == ["torch", "native"]
    assert [label for label, *_ in events] == ["global pre", "pre", "post", "global post"]
    assert not torch.equal(w, before[0])
    assert not torch.equal(odd, before[1])


@each_class
def test_hooks_run_once_in_a_subclass_that_overrides_step(name):
    make(torch.optim, name, draw((2,)))

    class Mine(getattr(oxistep.optim, name)):
        def step(self, closure=None):
            self.calls = getattr(self, "calls", 0) + 1
            return super().step(closure)

    params, events = draw((4,)), Events()
    optimizer, plain = Mine(params, **NATIVE[name]), make(oxistep.optim, name, clone(params))
    handles = events.register_all(optimizer)
    try:
        set_gradients(params, 0)
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    assert optimizer.calls == 1
    assert [label for label, *_ in events] == ["global pre", "pre", "post", "global post"]
    train(plain, 1)
    assert_same(result(optimizer), result(plain), exact=True)


def test_a_subclass_without_a_step_of_its_own():
    class Mine(oxistep.optim.AdamW):
        """A name of one's own."""

    optimizer, events = Mine(draw((4,)), lr=0.1), Events()
    optimizer.register_step_post_hook(events.hook("post"))
    train(optimizer, 2)
    assert [label for label, *_ in events] == ["post", "post"]


@each_class
def test_the_profiler_sees_one_record_of_a_step(name):
    def scenario(optim):
        optimizer = make(optim, name, draw((4,)))
        set_gradients(params_of(optimizer), 0)
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
            optimizer.zero_grad()
        names = [event.name for event in profile.function_events]
        return sorted(n for n in names if n.startswith("Optimizer."))

    assert assert_agrees(scenario) == [f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"]


def test_torch_profiler_sees_the_step():
    optimizer = make(oxistep.optim, "Adam", draw((4,)))
    set_gradients(params_of(optimizer), 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        optimizer.step()
    assert [e.count for e in profile.key_averages() if e.key == "Optimizer.step#Adam.step"] == [1]


def test_one_optimizer_per_parameter_stepping_in_backward():
    def scenario(optim):
        params = draw((4, 3), (3,))
        optimizers = {p: make(optim, "Adam", [p]) for p in params}

        def step(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in params:
            p.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            (torch.ones(2, 4) @ params[0] + params[1]).square().sum().backward()
        return [result(o) for o in optimizers.values()], [p.grad for p in params]

    assert_agrees(scenario)


def test_stepping_again_from_a_hook_or_a_closure():
    def scenario(optim):
        params = draw((4,))
        optimizer = make(optim, "Adam", params)
        set_gradients(params, 0)
        depth = []

        def again(*_):
            if len(depth) < 2:
                depth.append(1)
                optimizer.step()

        optimizer.register_step_post_hook(again)
        optimizer.step()
        depth.clear()
        optimizer.step(lambda: optimizer.step())
        return len(depth), result(optimizer)

    assert_agrees(scenario)


# ---- learning rate schedules ----

SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, gamma=0.5)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, gamma=0.9), lr_scheduler.StepLR(o, step_size=2)], optimizer=o
    ),
}


def test_every_schedule_is_tried():
    assert set(SCHEDULES) == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_schedules(name, schedule):
    def scenario(optim):
        optimizer = make(optim, name, draw((4,)))
        scheduler = SCHEDULES[schedule](optimizer)
        rates = []
        for step in range(6):
            train(optimizer, 1, start=step)
            scheduler.step(*[1.0] * (schedule == "ReduceLROnPlateau"))
            group = optimizer.param_groups[0]
            rates.append((group["lr"], group.get("momentum"), group.get("betas")))
        return rates, result(optimizer)

    rates, _ = assert_agrees(scenario)
    assert len(set(rates)) > 1


def test_a_schedule_before_the_step_warns_as_in_torch():
    optimizer = make(oxistep.optim, "SGD", draw((4,)))
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    set_gradients(params_of(optimizer), 0)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


@each_class
@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "one element"])
def test_lr_as_a_tensor_changed_in_place(name, shape):
    def scenario(optim):
        lr = torch.full(shape, 0.05)
        optimizer = make(optim, name, draw(*SHAPES), lr=lr)
        train(optimizer, 2)
        lr.mul_(0.5)
        train(optimizer, 2, start=2)
        return result(optimizer)

    assert_agrees(scenario)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_as_tensors(name):
    def scenario(optim):
        optimizer = make(optim, name, draw(*SHAPES), betas=(torch.tensor(0.8), torch.tensor([0.95])))
        train(optimizer)
        return result(optimizer)

    assert_agrees(scenario)


def test_lr_as_a_number_of_another_kind():
    def scenario(optim, lr):
        optimizer = make(optim, "Adam", draw(*SHAPES), lr=lr)
        train(optimizer)
        return result(optimizer)

    for lr in (1, True, np.float64(0.1), np.float32(0.1)):
        assert_agrees(scenario, lr)


# ---- parameters and groups ----


@each_class_that_makes_states
def test_groups_with_their_own_hyperparameters_and_one_added_later(name):
    def scenario(optim):
        a, b, c, d = draw((4, 3), (5,), (2, 2), ())
        optimizer = make(optim, name, [{"params": [a]}, {"params": [b, c], "lr": 0.02, "weight_decay": 0.1}])
        train(optimizer, 2)
        optimizer.add_param_group({"params": d, "maximize": True})
        train(optimizer, 3, start=2)
        optimizer.param_groups[0]["lr"] = 0.3
        train(optimizer, 1, start=5)
        return result(optimizer)

    assert_agrees(scenario)


@each_class
def test_frozen_and_late_unfrozen_parameters_and_gradients_that_come_and_go(name):
    def scenario(optim):
        a, b, c = draw(*SHAPES)
        b.requires_grad_(False)
        optimizer = make(optim, name, [a, b, c])
        for step, with_gradient in enumerate([[a], [a, c], [a, b, c], [], [b], [a, b, c]]):
            optimizer.zero_grad()
            b.requires_grad_(step >= 2)
            set_gradients(with_gradient, step)
            optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


@each_class
def test_zero_grad(name):
    def scenario(optim):
        params = draw(*SHAPES)
        optimizer = make(optim, name, params)
        train(optimizer, 1)
        grad = params[0].grad
        optimizer.zero_grad(set_to_none=False)
        kept = params[0].grad is grad, [p.grad.clone() for p in params]
        optimizer.step()  # zero gradients are gradients
        optimizer.zero_grad()
        optimizer.step()  # none are not
        return kept, [p.grad for p in params], result(optimizer)

    assert_agrees(scenario)


@each_class
def test_data_swapped_between_steps(name):
    def scenario(optim):
        params = draw(*SHAPES)
        optimizer = make(optim, name, params)
        for step in range(4):
            train(optimizer, 1, start=step)
            for p in params:
                p.data = p.data.clone() * 0.5
                p.grad.data = p.grad.data.clone()
        return result(optimizer)

    assert_agrees(scenario)


@each_class_that_makes_states
def test_states_replaced_between_steps(name):
    def scenario(optim):
        params = draw(*SHAPES)
        optimizer = make(optim, name, params)
        train(optimizer, 2)
        for key, value in optimizer.state[params[0]].items():
            optimizer.state[params[0]][key] = value.clone() * 2  # other tensors
        train(optimizer, 1, start=2)
        optimizer.state[params[1]] = dict(optimizer.state[params[1]])  # another dict
        optimizer.state[params[2]] = {}  # begin again
        train(optimizer, 1, start=3)
        optimizer.state = optimizer.state.copy()
        train(optimizer, 1, start=4)
        optimizer.state.clear()
        train(optimizer, 1, start=5)
        return result(optimizer)

    assert_agrees(scenario)


def test_parameters_replaced_in_the_group():
    def scenario(optim):
        params = draw(*SHAPES)
        optimizer = make(optim, "Adam", params)
        train(optimizer, 2)
        params[1] = draw((7,), seed=5)[0]
        optimizer.param_groups[0]["params"] = params[::-1]
        train(optimizer, 2, start=2)
        optimizer.param_groups[0]["params"] = tuple(params)
        train(optimizer, 1, start=4)
        return result(optimizer)

    assert_agrees(scenario)


def test_parameters_that_left_are_let_go():
    (w,) = draw((4,))
    optimizer = make(oxistep.optim, "Adam", [w])
    train(optimizer, 1)
    optimizer.param_groups[0]["params"] = draw((3,), seed=1)
    optimizer.state.clear()
    train(optimizer, 1)
    gone = weakref.ref(w)
    del w
    gc.collect()
    assert gone() is None


def test_a_parameter_that_leads_back_to_its_optimizer_can_be_collected():
    def scenario(optim):
        w = torch.nn.Parameter(torch.ones(3))
        optimizer = make(optim, "Adam", [w])
        w.optimizer = optimizer
        train(optimizer, 1)
        return weakref.ref(optimizer)

    for optim in (torch.optim, oxistep.optim):
        ref = scenario(optim)
        gc.collect()
        assert ref() is None


@each_class
def test_named_parameters(name):
    def scenario(optim):
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for p, value in zip(model.parameters(), draw((2, 3), (2,)), strict=True):
                p.copy_(value)
        optimizer = make(optim, name, model.named_parameters())
        train(optimizer, 2)
        return optimizer.state_dict()

    assert assert_agrees(scenario)["param_groups"][0]["param_names"] == ["weight", "bias"]


@each_class
def test_a_parameter_twice_in_one_list(name):
    def scenario(optim):
        a, b = draw((4,), (3,))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = make(optim, name, [a, b, a])
        train(optimizer)
        return result(optimizer)

    assert_agrees(scenario)


def test_retained_gradient_of_a_non_leaf():
    def scenario(optim):
        (leaf,) = draw((4,))
        p = leaf * 2
        p.retain_grad()
        optimizer = make(optim, "SGD", [p])
        p.sum().backward()
        optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


def test_gradients_with_a_graph():
    def scenario(optim):
        (w,) = draw((4,))
        optimizer = make(optim, "SGD", [w])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
            (w**3).sum().backward(create_graph=True)
        assert w.grad.requires_grad
        optimizer.step()
        w.grad = None  # the graph of a gradient leads back to its parameter
        return result(optimizer)

    assert_agrees(scenario)


# ---- copies and checkpoints ----

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
        if name not in ("RMSprop", "Adam"):  # whose hyperparameters of the table are among the keys
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


# ---- autograd ----


@each_class
def test_autograd_notices_that_parameters_changed(name):
    def scenario(optim):
        a, b = draw((4,), (4,))
        optimizer = make(optim, name, [a, b])
        loss = (a * b).sum()  # saves both for backward
        set_gradients([a, b], 0)
        optimizer.step()
        loss.backward()

    assert_agrees_on_the_type_of_error(scenario, RuntimeError, "modified by an inplace operation")


def assert_agrees_on_the_type_of_error(scenario, error, match):
    for optim in (torch.optim, oxistep.optim):
        with pytest.raises(error, match=match):
            scenario(optim)


def test_version_counters_move_once_a_parameter_is_written_and_only_then():
    a, b = draw((4,), (4,))
    optimizer = make(oxistep.optim, "Adam", [a, b])
    base = a.detach()  # shares the counter
    set_gradients([a], 0)
    versions = a._version, b._version
    optimizer.step()
    assert a._version > versions[0]
    assert b._version == versions[1]
    assert base._version == a._version


@each_class
def test_inference_tensors_outside_inference_mode(name):
    with torch.inference_mode():
        locked = torch.ones(3)
        locked.grad = torch.ones(3)
    (w,) = draw((4,))
    set_gradients([w], 0)
    optimizer = make(oxistep.optim, name, [w, locked])
    before = result(optimizer), w._version
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode is not allowed"):
        optimizer.step()
    assert_same(result(optimizer), before[0], exact=True)
    assert w._version == before[1]
    with torch.inference_mode():
        optimizer.step()
    assert not torch.equal(locked, torch.ones(3))


@each_class
def test_inside_inference_mode(name):
    def scenario(optim):
        params = draw(*SHAPES)
        optimizer = make(optim, name, params)
        set_gradients(params, 0)
        with torch.inference_mode():
            optimizer.step()
            optimizer.step()
        return [p.is_inference() for p in params], result(optimizer)

    assert_agrees(scenario)


# ---- gradient scaling ----


def scaled_training(optim, name, infinite, **kwargs):
    """Four steps with a scaler, the gradient of step `infinite` being so."""
    (w,) = draw((4,))
    optimizer = make(optim, name, [w], **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    history = []
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale((w * w).sum() * (float("inf") if step == infinite else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        history.append((result(optimizer), scaler.get_scale()))
    return history, w.grad, sorted(set(vars(optimizer)) - {"_plan"})


@each_class
@pytest.mark.parametrize("infinite", [None, 0, 2])
def test_grad_scaler(name, infinite):
    assert_agrees(scaled_training, name, infinite)


FUSED = ["SGD", "Adagrad", "Adam", "AdamW"]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("infinite", [None, 2])
def test_grad_scaler_with_fused(name, infinite):
    def scenario(optim):
        return scaled_training(optim, name, infinite, fused=True)

    assert_agrees(scenario)


@pytest.mark.parametrize("name", FUSED)
def test_an_infinite_first_step_is_skipped_whole_with_fused(name):
    history, *_ = scaled_training(oxistep.optim, name, 0, fused=True)
    (w,) = draw((4,))
    first, scale = history[0]
    assert torch.equal(first["params"][0], w)
    if name == "Adagrad":  # which makes its state in the constructor
        assert first["state"][0]["step"] == 0
    else:
        assert first["state"] == ["none"]
    assert scale == 4.0
    # from there on as without fused, where the scaler itself skips
    plain, *_ = scaled_training(oxistep.optim, name, 0)
    assert_same(history, plain)


def test_unscaled_by_hand_with_fused():
    def scenario(optim):
        (w,) = draw((4,))
        optimizer = make(optim, "Adam", [w], fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale((w * w).sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([w], 0.1)
        scaler.step(optimizer)
        return result(optimizer), w.grad

    assert_agrees(scenario)


@pytest.mark.parametrize("flag", ["fused", "foreach"])
@each_class
def test_flags_that_choose_among_torchs_own_paths_change_nothing(name, flag):
    if flag == "fused" and name not in FUSED:
        pytest.skip("torch has no fused kernel")
    plain, flagged = (make(oxistep.optim, name, draw(*SHAPES), **kwargs) for kwargs in ({}, {flag: True}))
    with torch_updates_raise():
        train(plain)
        train(flagged)
    assert_same(result(flagged), result(plain), exact=True)


# ---- compilers, modes, default devices ----


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


# ---- threads ----


def test_two_threads_stepping_one_optimizer_take_turns_or_are_told():
    (w,) = draw((3_000_000,))
    optimizer = make(oxistep.optim, "Adam", [w])
    set_gradients([w], 0)
    optimizer.step()
    errors, done = [], []
    barrier = threading.Barrier(3)

    def work():
        barrier.wait()
        for _ in range(5):
            try:
                optimizer.step()
                done.append(1)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("taking a step already" in error and "hold a lock around step()" in error for error in errors)
    assert len(done) + len(errors) == 15
    # every step was taken whole or not at all
    reference = make(oxistep.optim, "Adam", draw((3_000_000,)))
    set_gradients(params_of(reference), 0)
    for _ in range(1 + len(done)):
        reference.step()
    assert_same(result(optimizer), result(reference), exact=True)


def test_threads_with_their_own_optimizers():
    shapes = [(300_000,), (17,)]
    optimizers = [make(oxistep.optim, "Adam", draw(*shapes)) for _ in range(3)]
    threads = [threading.Thread(target=train, args=(optimizer, 5)) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reference = make(oxistep.optim, "Adam", draw(*shapes))
    train(reference, 5)
    for optimizer in optimizers:
        assert_same(result(optimizer), result(reference), exact=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_can_step():
    """torch's pool of threads does not survive a fork; a child that waited for it would hang."""
    optimizer, reference = (make(oxistep.optim, "Adam", draw((400_000,), (3,))) for _ in range(2))
    train(optimizer, 2)
    train(reference, 2)
    reference.step()  # with the gradients of the last step
    expected = [p.detach().numpy() for p in params_of(reference)]
    child = os.fork()
    if child == 0:
        optimizer.step()
        same = all(np.array_equal(p.detach().numpy(), e) for p, e in zip(params_of(optimizer), expected, strict=True))
        os._exit(0 if same else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_step_inside_the_step_itself_is_refused():
    """Python code runs inside a step only where torch does a part of it; there the optimizer is not in one piece."""

    class Meddler(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.add_:
                optimizer.step()
            return super().__torch_function__(func, types, args, kwargs)

    (w,) = draw((4,))
    meddler = torch.ones(3).as_subclass(Meddler)
    optimizer = make(oxistep.optim, "SGD", [w, meddler], momentum=0)
    set_gradients([w], 0)
    meddler.grad = torch.ones(3).as_subclass(Meddler)
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match="this optimizer is taking a step already"):
        optimizer.step()
    assert torch.equal(w, before)
