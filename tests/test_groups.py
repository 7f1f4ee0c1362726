"""Parameters and groups that come, go, and are changed between steps."""

import gc
import warnings
import weakref

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    SHAPES,
    assert_agrees,
    draw,
    each_class,
    each_class_that_makes_states,
    make,
    result,
    set_gradients,
    train,
)


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
