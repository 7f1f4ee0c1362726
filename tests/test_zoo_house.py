"""What the rest of the house makes of the zoo: the learning-rate range test, pictures, monitors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import brief  # noqa: E402
import oxistep.numpy.zoo  # noqa: E402
from oxistep import zoo  # noqa: E402
from oxistep.diagnostics import UpdateMonitor, lr_range_test  # noqa: E402

NAMES = oxistep.numpy.zoo.__all__
each = pytest.mark.parametrize("name", brief.some(NAMES, 5))


def bits(optimizer, params):
    numbers = [p.detach().numpy().tobytes() for p in params]
    states = [{k: v.numpy().tobytes() for k, v in optimizer.state[p].items()} for p in params if p in optimizer.state]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return numbers, states, groups


@each
@pytest.mark.parametrize("steps_before", [0, 3])
def test_the_range_test_puts_everything_back(name, steps_before):
    params = [torch.full((3, 4), 5.0, requires_grad=True), torch.full((4,), -5.0, requires_grad=True)]
    optimizer = getattr(zoo, name)(params, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(steps_before):
        optimizer.step(closure)
    for p in params:
        p.grad = None
    before = bits(optimizer, params)
    found = lr_range_test(closure, optimizer, lr_min=1e-4, lr_max=10)
    assert len(found.rates) > 10
    assert bits(optimizer, params) == before
    optimizer.step(closure)


@each
def test_the_range_test_of_arrays_puts_everything_back(name):
    w = np.full((3, 4), 5.0)
    optimizer = getattr(oxistep.numpy.zoo, name)([w], lr=0.1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step([2 * w])
    before = w.copy(), {key: value.copy() for key, value in optimizer.state[0][0].items()}, optimizer.step_count
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    lr_range_test(lambda: (float((w * w).sum()), [2 * w]), optimizer, lr_min=1e-4, lr_max=10)
    assert (w == before[0]).all()
    assert all((optimizer.state[0][0][key] == value).all() for key, value in before[1].items())
    assert optimizer.step_count == before[2]
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == groups


@each
def test_the_update_monitor_sees_steps(name):
    p = torch.full((3, 4), 5.0, requires_grad=True)
    optimizer = getattr(zoo, name)([p], lr=0.1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    monitor = UpdateMonitor(optimizer)
    for _ in range(8):
        p.grad = 2 * p.detach()
        before = p.detach().clone()
        optimizer.step()
    [row] = monitor.rows()
    assert row["step"] == 7
    assert row["update"] == pytest.approx(float((p.detach() - before).norm()), rel=1e-3, abs=1e-9)
