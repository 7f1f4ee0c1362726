"""What the user has let go of is gone: no tensor is kept by an optimizer between two steps."""

import copy
import gc
import weakref

import pytest
import torch

import oxistep.optim
from every_torch_class import draw, each_of_fifteen, make, set_gradients, train
from scenarios import assert_same, result


def gone(references):
    return [reference() is None for reference in references]


def watched(optimizer, params):
    """Weak references to parameters, gradients and states."""
    tensors = [*params, *(p.grad for p in params)]
    for p in params:
        tensors += [value for value in optimizer.state.get(p, {}).values() if isinstance(value, torch.Tensor)]
    return [weakref.ref(tensor) for tensor in tensors if tensor is not None]


@each_of_fifteen
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kwargs", [{}, {"max_grad_norm": 1.0}], ids=["plain", "clipping"])
def test_parameters_that_were_replaced_are_gone_before_the_next_step(name, steps, kwargs):
    if name == "LBFGS" and kwargs:
        pytest.skip("LBFGS has no settings")
    params = draw(name)
    optimizer = make(oxistep.optim, name, params, **kwargs)
    train(name, optimizer, steps)
    references = watched(optimizer, params)
    gc.disable()  # no cycle may be needed to be found
    try:
        optimizer.state.clear()
        optimizer.param_groups[0]["params"].clear()
        params.clear()
        assert all(gone(references))
    finally:
        gc.enable()
    if name != "LBFGS":
        optimizer.param_groups[0]["params"] += draw(name, seed=1)
        train(name, optimizer, 2)


@each_of_fifteen
def test_gradients_and_states_that_were_replaced_are_gone(name):
    params = draw(name)
    optimizer = make(oxistep.optim, name, params)
    train(name, optimizer, 3)
    references = [weakref.ref(p.grad) for p in params]
    for p in params:
        references += [weakref.ref(value) for value in optimizer.state.get(p, {}).values() if torch.is_tensor(value)]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.zero_grad()
    kept = [reference() for reference in references if reference() is not None]
    if name in ("LBFGS", "SparseAdam"):
        assert len(kept) < len(references)
    else:
        assert not kept


@pytest.mark.parametrize("n", [1, 16, 17, 40])
def test_another_parameter_at_the_same_address_is_no_known_one(n):
    """Objects that are freed leave their addresses to others, and a step that believed in addresses would miss it."""

    def trained(optim):
        params = [torch.full((3,), float(i), requires_grad=True) for i in range(n)]
        optimizer = optim.SGD(params, lr=0.5)
        addresses = set()
        for step in range(12):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.full_like(p, step + 1.0)
                addresses.add(id(p))
            p = None
            optimizer.step()
            values = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
            p = None
            params.clear()
            optimizer.param_groups[0]["params"].clear()
            params += [value.requires_grad_() for value in values]
            optimizer.param_groups[0]["params"] += params
        return result(optimizer)

    assert_same(trained(oxistep.optim), trained(torch.optim), exact=True)


def test_an_inference_tensor_at_the_address_of_a_parameter_is_refused():
    tried = 0
    for _ in range(50):
        p = torch.ones(3, requires_grad=True)
        optimizer = oxistep.optim.SGD([p], lr=0.5)
        for _ in range(2):
            p.grad = torch.ones(3)
            optimizer.step()
        address = id(p)
        optimizer.param_groups[0]["params"].clear()
        del p
        with torch.inference_mode():
            made = torch.ones(3)
        made.grad = torch.ones(3)
        optimizer.param_groups[0]["params"].append(made)
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            optimizer.step()
        tried += id(made) == address
        if tried:
            return
    pytest.skip("no address was used again")


@each_of_fifteen
def test_a_parameter_that_goes_while_the_optimizer_lives_breaks_nothing(name):
    """Growing and pruning between steps."""
    params = draw(name)
    optimizer = make(oxistep.optim, name, params)
    train(name, optimizer, 3)
    if name == "LBFGS":
        return
    for seed in range(4):
        old = optimizer.param_groups[0]["params"].pop()
        optimizer.state.pop(old, None)
        reference = weakref.ref(old)
        params.remove(old) if any(p is old for p in params) and params[-1] is not old else params.pop()
        del old
        assert reference() is None
        (new, _) = draw(name, seed=seed)
        optimizer.param_groups[0]["params"].append(new)
        params.append(new)
        del new
        set_gradients(name, params, seed)
        optimizer.step()
        optimizer.step()
