"""LBFGS moves parameters and asks the closure in turn: a closure that raises leaves what torch leaves."""

import copy

import pytest
import torch

import oxistep.optim
from scenarios import outcome


def play(optim, raises_at, search, steps_before):
    """Everything after a closure that raised, and what comes of the next step."""
    w = torch.tensor([-1.5, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = optim.LBFGS([w], lr=0.1, max_iter=4, history_size=3, line_search_fn=search)
    left = [None]  # calls until one raises

    def closure():
        if left[0] is not None:
            left[0] -= 1
            if left[0] == 0:
                left[0] = None
                raise KeyError("on purpose")
        optimizer.zero_grad()
        loss = (1 - w[0]) ** 2 + 10 * (w[1] - w[0] ** 2) ** 2 + w[2] ** 4
        loss.backward()
        return loss

    for _ in range(steps_before):
        optimizer.step(closure)
    left[0] = raises_at
    error = outcome(optimizer.step, closure)
    seen = w.detach().clone()
    state = copy.deepcopy(optimizer.state_dict()["state"])
    after = outcome(optimizer.step, closure)
    return error, seen, state, after[0] if isinstance(after, tuple) else after, w.detach().clone()


def same(a, b, where=""):
    if isinstance(b, torch.Tensor):
        torch.testing.assert_close(torch.as_tensor(a), b, rtol=1e-9, atol=1e-9, msg=lambda m: f"{where}: {m}")
    elif isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key in b:
            same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(b, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9), where
    else:
        assert a == b, where


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("raises_at", [1, 2, 3, 4])
def test_a_closure_that_raises_leaves_what_torch_leaves(raises_at, steps_before, search):
    ours, theirs = (play(optim, raises_at, search, steps_before) for optim in (oxistep.optim, torch.optim))
    same(ours, theirs)
