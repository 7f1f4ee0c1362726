"""States that do not fit: what torch is sure to refuse is refused before anything is written, in torch's words."""

import pytest
import torch

import oxistep.optim
from every_torch_class import bowl, draw, each_of_fifteen, make, set_gradients, train
from scenarios import FORCED, outcome, result
from snapshots import difference, snapshot

DAMAGES = ["shape", "dtype", "missing", "emptied", "number", "none", "no dict", "long", "counter of two", "no number"]


def stepped(optim, name, groups=2):
    """An optimizer after two steps, of as many groups as it may have."""
    params = draw(name)
    if name != "LBFGS" and groups == 2:
        optimizer = make(optim, name, [{"params": params[:1]}, {"params": params[1:]}])
    else:
        optimizer = make(optim, name, params)
    train(name, optimizer, 2)
    return params, optimizer


def damaged(optim, name, damage, key_of=None):
    """The same with the last parameter's states damaged (LBFGS keeps all under the first)."""
    params, optimizer = stepped(optim, name)
    p = params[0 if name == "LBFGS" else -1]
    state = optimizer.state[p]
    tensors = [key for key, value in state.items() if isinstance(value, torch.Tensor) and value.dim()]
    key = tensors[0] if tensors else next(iter(state), None)
    last = tensors[-1] if tensors else key
    if not state:
        return params, optimizer
    if damage == "shape":
        state[last] = torch.ones(7)
    elif damage == "dtype":
        state[last] = state[last].double()
    elif damage == "missing":
        del state[last]
    elif damage == "emptied":
        state[last] = torch.ones(0)
    elif damage == "number":
        state[last] = 1.0
    elif damage == "none":
        state[last] = None
    elif damage == "no dict":
        optimizer.state[p] = [1, 2]
    elif damage == "long":
        state[last] = torch.ones_like(state[last], dtype=torch.long)
    elif damage == "counter of two" and "step" in state:
        state["step"] = torch.ones(2)
    elif damage == "no number" and "step" in state:
        state["step"] = "three"
    if name != "LBFGS":
        set_gradients(name, params, 5)
    return params, optimizer


def step(name, optimizer):
    return optimizer.step(bowl(optimizer)) if name == "LBFGS" else optimizer.step()


@pytest.mark.parametrize("damage", DAMAGES)
@each_of_fifteen
@pytest.mark.skipif(FORCED, reason="torch's own step promises nothing")
def test_what_torch_refuses_is_refused_before_anything_is_written(name, damage):
    _, theirs = damaged(torch.optim, name, damage)
    came = outcome(step, name, theirs)
    refuses = isinstance(came, tuple) and isinstance(came[0], type)
    params, ours = damaged(oxistep.optim, name, damage)
    before = snapshot(ours, params, gradients=name != "LBFGS")
    mine = outcome(step, name, ours)
    if refuses:
        assert mine == came
        assert not difference(before, snapshot(ours, params, gradients=name != "LBFGS"))
    else:
        assert not (isinstance(mine, tuple) and isinstance(mine[0], type)), mine


@pytest.mark.skipif(FORCED, reason="torch's own step promises nothing")
def test_the_error_has_a_note_that_names_the_parameter():
    _, optimizer = damaged(oxistep.optim, "AdamW", "shape")
    with pytest.raises(RuntimeError) as raised:
        optimizer.step()
    assert raised.value.__notes__ == ["This is torch's step of param_groups[1]['params'][0]. Nothing was updated."]


@pytest.mark.skipif(FORCED, reason="torch's own step promises nothing")
def test_of_large_parameters_smaller_copies_are_asked():
    small = torch.ones(3, requires_grad=True)
    large = torch.ones(400, 300, requires_grad=True)
    optimizer = oxistep.optim.AdamW([{"params": [small]}, {"params": [large]}])
    for _ in range(2):
        for p in (small, large):
            p.grad = torch.ones_like(p)
        optimizer.step()
    before = result(optimizer)["params"]
    optimizer.state[large]["exp_avg_sq"] = torch.ones(400, 301)
    with pytest.raises(RuntimeError, match="must match the size of tensor b") as raised:
        optimizer.step()
    assert "smaller copies, whose sizes it names" in raised.value.__notes__[0]
    assert all(torch.equal(p, q) for p, q in zip(before, result(optimizer)["params"], strict=True))
    # a state that can be broadcast is torch's to use
    optimizer.state[large]["exp_avg_sq"] = torch.ones(400, 300).double()
    optimizer.state[large]["exp_avg_sq"] = optimizer.state[large]["exp_avg"].clone()[:, :1]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_hyperparameters_that_torch_refuses_in_a_later_group(name):
    params, optimizer = stepped(oxistep.optim, name)
    optimizer.param_groups[1]["lr"] = "fast"
    before = snapshot(optimizer, params)
    with pytest.raises((TypeError, ValueError)):
        optimizer.step()
    if not FORCED:
        assert not difference(before, snapshot(optimizer, params))
