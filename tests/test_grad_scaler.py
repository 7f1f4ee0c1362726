"""Gradient scaling, and the flags that choose among torch's own paths."""

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    SHAPES,
    assert_agrees,
    assert_same,
    draw,
    each_class,
    make,
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
