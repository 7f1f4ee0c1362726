"""Closures, hooks and profiler records: as around torch's step."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import oxistep
import oxistep.optim
from scenarios import (
    NATIVE,
    PATH,
    SHAPES,
    assert_agrees,
    assert_same,
    clone,
    draw,
    each_class,
    make,
    params_of,
    result,
    set_gradients,
    train,
)
from seeing import Seeing

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


class Labelled(Seeing, torch.nn.Parameter):
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
    assert [row.path for row in oxistep.explain(optimizer)] == ["torch", PATH]
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
        with torch.autograd.profiler.profile(acc_events=True) as profile:
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
