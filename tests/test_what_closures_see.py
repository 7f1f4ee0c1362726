"""What a closure can see at each of its calls: states, flags, versions, grad mode, as with torch's classes."""

import pytest
import torch

import oxistep.optim
from every_torch_class import assert_agrees, draw, each_of_fifteen, make, set_gradients


def seen(optimizer, params):
    def shown(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, tuple(value.shape)
        if isinstance(value, list):
            return [shown(v) for v in value]
        return type(value).__name__ if isinstance(value, float) else value

    return {
        "state": [{key: shown(value) for key, value in optimizer.state.get(p, {}).items()} for p in params],
        "saved": sorted(map(str, optimizer.state_dict()["state"])),
        "entries": len(optimizer.state),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        # torch counts its operations, of which there are as many as its path has; LBFGS goes one way
        "versions": [p._version if isinstance(optimizer, torch.optim.LBFGS) else p._version > 0 for p in params],
        "requires grad": [p.requires_grad for p in params],
        "attributes": sorted(set(vars(optimizer)) - {"_oxistep"}),
        "values": [p.detach().clone() for p in params],
        "groups": [sorted(group) for group in optimizer.param_groups],
    }


@each_of_fifteen
@pytest.mark.parametrize("kwargs", [{}, {"line_search_fn": "strong_wolfe"}], ids=["", "line search"])
def test_each_call_of_a_closure_sees_what_it_sees_with_torchs_class(name, kwargs):
    if kwargs and name != "LBFGS":
        pytest.skip("LBFGS alone searches lines")

    def scenario(optim):
        params = draw(name)
        optimizer = make(optim, name, params, **kwargs)
        calls = []

        def closure():
            calls.append(seen(optimizer, params))
            if name != "LBFGS":
                set_gradients(name, params, len(calls))
                return torch.tensor(1.0)
            optimizer.zero_grad()
            loss = sum(((p - 0.3) ** 2 * torch.arange(1, p.numel() + 1).view(p.shape)).sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            for _ in range(3):
                optimizer.step(closure)
        return calls, seen(optimizer, params)

    assert_agrees(name, scenario)


def test_the_counters_of_lbfgs_are_there_before_the_first_call():
    (w,) = [torch.tensor([1.0, 2.0], requires_grad=True)]
    optimizer = oxistep.optim.LBFGS([w], lr=0.1, max_iter=2)
    counters = []

    def closure():
        state = optimizer.state_dict()["state"][0]
        counters.append((state["n_iter"], state["func_evals"]))
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert counters[0] == (0, 0)
