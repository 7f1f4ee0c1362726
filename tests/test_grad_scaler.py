"""Gradient scaling, and the flags that choose among torch's own paths."""

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    FORCED,
    PATH,
    SHAPES,
    assert_agrees,
    assert_same,
    draw,
    each_class,
    make,
    outcome,
    result,
    torch_updates_raise,
    train,
)


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
    return history, w.grad, sorted(set(vars(optimizer)) - {"_oxistep"})


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
    # where all is torch's, the flags choose
    assert_same(result(flagged), result(plain), exact=not FORCED)


REFUSED_BY_FUSED = {
    "integers": lambda: torch.arange(3),
    "complex numbers": lambda: torch.ones(3, dtype=torch.complex64),
    "a device without memory": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.parametrize("what", REFUSED_BY_FUSED)
@pytest.mark.parametrize("name", FUSED)
def test_fused_refuses_what_torchs_fused_refuses(name, what):
    """At the first step and, switched on later, at that one; nothing else is updated."""

    def scenario(optim, later):
        p = REFUSED_BY_FUSED[what]()
        p.grad = torch.ones_like(p)
        optimizer = make(optim, name, [p], **({} if later else {"fused": True}))
        if later:
            if what == "complex numbers":
                for _ in range(3):
                    optimizer.step()
            optimizer.param_groups[0]["fused"] = True
        if optim is torch.optim:
            return outcome(optimizer.step)
        (w,) = draw((4,))
        w.grad = torch.ones(4)
        optimizer.add_param_group({"params": [w]})
        before = result(optimizer)["params"][1]
        assert [row.path for row in oxistep.explain(optimizer)] == ["torch", PATH]
        came = outcome(optimizer.step)
        if not FORCED:
            assert torch.equal(w, before)
        return came

    for later in (False, True):
        came = assert_agrees(scenario, later)
        assert issubclass(came[0], RuntimeError), came
        if not later:
            assert came[1].startswith("`fused=True` requires all the params to be floating point Tensors"), came
