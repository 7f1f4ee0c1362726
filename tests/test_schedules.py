"""Learning rate schedules, and learning rates and betas as tensors."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import oxistep
import oxistep.optim
from scenarios import (
    SHAPES,
    assert_agrees,
    draw,
    each_class,
    make,
    params_of,
    result,
    set_gradients,
    train,
)

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


def test_averaged_weights_of_swa_utils():
    def scenario(optim):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        averaged = optim.swa_utils.AveragedModel(model)
        moving = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = make(optim, "SGD", model.parameters())
        cosine = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        swa = optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
        x, rates = torch.randn(8, 3), []
        for epoch in range(6):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            moving.update_parameters(model)
            if epoch >= 3:
                averaged.update_parameters(model)
                swa.step()
            else:
                cosine.step()
            rates.append(optimizer.param_groups[0]["lr"])
        optim.swa_utils.update_bn([x], averaged)
        return rates, *([t.clone() for t in m.state_dict().values()] for m in (model, averaged, moving))

    assert_agrees(scenario)
