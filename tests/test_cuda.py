"""Parameters on the CPU and on another device in one optimizer: ours natively, the others by torch.

The same flows run everywhere with the CPU in place of the other device, and with `OXISTEP_BACKEND=torch`.
"""

import copy
import os
from pathlib import Path

import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from scenarios import NATIVE, each_class, make, params_of

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
each_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)


def values(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def groups(device, *, swapped=False):
    """One group on both devices and one on the other alone, with its own lr."""
    here, there = ("cpu", device) if not swapped else (device, "cpu")
    devices = [[here, there, here, there], [there]]
    return [
        {"params": [values((7, 3), 10 * g + i).to(d).requires_grad_() for i, d in enumerate(row)]}
        | ({"lr": 0.01} if g else {})
        for g, row in enumerate(devices)
    ]


def train(optimizer, steps, start=0):
    for step in range(start, start + steps):
        for i, p in enumerate(params_of(optimizer)):
            p.grad = values(p.shape, 1000 * (1 + step) + i).to(p.device)
        optimizer.step()


def expected_path(p):
    return "native" if p.device.type == "cpu" and os.environ.get("OXISTEP_BACKEND") != "torch" else "torch"


def assert_agree(ours, theirs):
    for i, (p, q) in enumerate(zip(params_of(ours), params_of(theirs), strict=True)):
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), **CLOSE, msg=lambda m, i=i: f"{i}: {m}")
        a, b = ours.state.get(p, {}), theirs.state.get(q, {})
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert a[key].dtype is value.dtype, key
            torch.testing.assert_close(a[key].cpu(), value.cpu(), **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


def mixed(name, device):
    """Both kinds in one group, each on its own path, to the result of torch's for-loop."""
    ours = make(oxistep.optim, name, groups(device))
    theirs = make(torch.optim, name, groups(device), foreach=False)
    for k in range(4):
        train(ours, 1, k)
        train(theirs, 1, k)
        assert [row.path for row in oxistep.explain(ours)] == [expected_path(p) for p in params_of(ours)]
        assert [row.path for row in oxistep.explain(theirs)] == ["torch"] * 5
    assert_agree(ours, theirs)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        for key, value in theirs.state[q].items():
            assert ours.state[p][key].device == value.device, key


def moved(name, device):
    """A state dict is loaded where every parameter has changed its device, by ours and from torch's; and back."""
    ours = make(oxistep.optim, name, groups(device))
    theirs = make(torch.optim, name, groups(device), foreach=False)
    for optimizer in (ours, theirs):
        train(optimizer, 2)
    for k, swapped in enumerate((True, False), start=2):
        arrived = []
        for optimizer, optim, source in ((ours, oxistep.optim, theirs), (theirs, torch.optim, ours)):
            again = make(optim, name, groups(device, swapped=swapped))
            with torch.no_grad():
                for p, q in zip(params_of(again), params_of(optimizer), strict=True):
                    p.copy_(q)
            again.load_state_dict(copy.deepcopy(source.state_dict()))
            train(again, 1, k)
            arrived.append(again)
        ours, theirs = arrived
        assert [row.path for row in oxistep.explain(ours)] == [expected_path(p) for p in params_of(ours)]
        assert_agree(ours, theirs)


def refused_whole(name, device):
    """What torch refuses on the other device leaves ours as they were."""
    optimizer = make(oxistep.optim, name, groups(device))
    train(optimizer, 1)
    last = params_of(optimizer)[-1]
    last.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3), (7, 3), check_invariants=True, device=device)
    optimizer.param_groups[-1]["weight_decay"] = 0.1
    here = [p for p in params_of(optimizer) if p is not last and expected_path(p) == "native"]
    before = [(p.detach().clone(), copy.deepcopy(optimizer.state[p])) for p in here]
    with pytest.raises(RuntimeError):
        optimizer.step()
    for p, (value, state) in zip(here, before, strict=True):
        assert torch.equal(p, value)
        for key, was in state.items():
            assert torch.equal(optimizer.state[p][key], was), key


FLOWS = [mixed, moved, refused_whole]


@each_class
@each_device
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)
def test_flow(flow, device, name):
    flow(name, device)


def test_flows_where_torch_does_everything():
    """What is torch's part of a mixed step, played on the CPU."""
    flows = [flow.__name__ for flow in FLOWS]
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cuda
for flow in {flows}:
    for name in {list(NATIVE)}:
        getattr(test_cuda, flow)(name, "cpu")
print("done")
"""
    environment = {**os.environ, "OXISTEP_BACKEND": "torch"}
    done = fresh.python(code, env=environment)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_the_groups_own_flags_choose_torchs_path_for_cuda(name, flags):
    ours, theirs = (make(optim, name, groups("cuda"), **flags) for optim in (oxistep.optim, torch.optim))
    for optimizer in (ours, theirs):
        train(optimizer, 3)
    assert_agree(ours, theirs)
    assert [row.path for row in oxistep.explain(ours)] == [expected_path(p) for p in params_of(ours)]
