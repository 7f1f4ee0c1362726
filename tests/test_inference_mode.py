"""torch refuses to write tensors made in inference mode outside of it: parameters, and states made or put there."""

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
    outcome,
    params_of,
    result,
    set_gradients,
)
from seeing import Seeing


class Labelled(Seeing, torch.Tensor):
    """A subclass that changes nothing, and takes torch's path."""


REFUSED = "Inplace update to inference tensor outside InferenceMode is not allowed"


@each_class
@pytest.mark.parametrize("beside", ["alone", "beside torch's"])
def test_states_made_inside_and_stepped_outside(name, beside):
    def scenario(optim):
        params = draw((4,), (3,))
        if beside != "alone":
            params.insert(1, torch.ones(3).as_subclass(Labelled).requires_grad_())
        optimizer = make(optim, name, params)
        set_gradients(params, 0)
        with torch.inference_mode():
            optimizer.step()
        if name == "Adagrad":  # which makes its states in the constructor
            for state in optimizer.state.values():
                with torch.inference_mode():
                    state["sum"] = state["sum"].clone()
        before = result(optimizer), [p._version for p in params]
        refused = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert_same(result(optimizer), before[0], exact=True)
            assert [p._version for p in params] == before[1]
        with torch.inference_mode():
            optimizer.step()
        return refused[0], REFUSED in refused[1]

    assert assert_agrees(scenario) == (RuntimeError, True)


@each_class
def test_states_replaced_inside_while_the_parameters_stay(name):
    def scenario(optim):
        optimizer = make(optim, name, draw((4,), (3,)))
        set_gradients(params_of(optimizer), 0)
        optimizer.step()
        optimizer.step()
        with torch.inference_mode():
            state = optimizer.state[params_of(optimizer)[1]]
            key = list(state)[-1]
            state[key] = state[key].clone()
        refused = outcome(optimizer.step)
        with torch.inference_mode():
            optimizer.step()
        state[key] = state[key].clone()  # a normal tensor again
        optimizer.step()
        return refused[0], REFUSED in refused[1]

    assert assert_agrees(scenario) == (RuntimeError, True)


@each_class
def test_a_checkpoint_loaded_inside(name):
    def scenario(optim):
        optimizer = make(optim, name, draw((4,)))
        set_gradients(params_of(optimizer), 0)
        optimizer.step()
        with torch.inference_mode():
            saved = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: saved}})
        refused = outcome(optimizer.step)
        return refused[0], REFUSED in refused[1]

    assert assert_agrees(scenario) == (RuntimeError, True)


def test_a_gradient_made_inside_is_only_read():
    def scenario(optim):
        optimizer = make(optim, "Adam", draw((4,)))
        (p,) = params_of(optimizer)
        with torch.inference_mode():
            grad = torch.ones(4)
        p.grad = grad
        optimizer.step()
        return p

    assert_agrees(scenario)


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
