"""``oxistep.memory``: what it estimates is what a step then makes, of every class under every setting."""

import json

import pytest
import torch
from torch import nn

import oxistep
import oxistep.optim
from oxistep import zoo
from scenarios import NATIVE

CLASSES = {name: getattr(oxistep.optim, name) for name in [*NATIVE, "Muon"]} | {
    f"zoo.{name}": getattr(zoo, name) for name in zoo.__all__ if name not in ("Lookahead", "SAM", "Grokfast")
}
SHAPES = [(64, 80), (70, 3), (5,), ()]


def made(cls, dtype, **settings):
    shapes = SHAPES[:2] if cls is oxistep.optim.Muon else SHAPES
    params = [torch.linspace(-1, 1, shape.numel()).reshape(shape).to(dtype) for shape in map(torch.Size, shapes)]
    optimizer = cls([p.requires_grad_() for p in params], lr=0.01, **settings)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def settings_of(text):
    return {} if text == "none" else eval(f"dict({text})", {"torch": torch})


def in_the_table(report):
    return [one for one in report.settings if "step_in_backward" not in one.setting]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CLASSES)
def test_an_estimate_is_what_a_step_makes(name, dtype):
    """Every setting that the table lists is one that the constructor takes, and costs what the table says."""
    cls = CLASSES[name]
    for listed in in_the_table(oxistep.memory(made(cls, dtype))):
        optimizer = made(cls, dtype, **settings_of(listed.setting))
        before = oxistep.memory(optimizer)
        assert [one.setting for one in before.settings if one.is_now] == [listed.setting]
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        after = oxistep.memory(optimizer)
        assert not after.is_estimate
        measured = (after.states, after.residuals)
        assert measured == (before.states, before.residuals) == (listed.states, listed.residuals), listed.setting
        assert after.total == before.total == listed.total
        assert measured[0] + measured[1] == sum(
            t.numel() * t.element_size() for entry in optimizer.state.values() for t in entry.values()
        )


def test_groups_and_kinds():
    frozen = torch.ones(100, requires_grad=False)
    optimizer = oxistep.optim.AdamW([{"params": [torch.ones(10, 10, requires_grad=True)]}, {"params": [frozen]}])
    report = oxistep.memory(optimizer)
    assert (report.optimizer, report.is_estimate, report.steps_in_backward) == ("AdamW", True, False)
    first, second = report.groups
    assert (first.group, first.elements, first.parameters, first.gradients, first.states) == (0, 100, 400, 400, 804)
    assert (second.group, second.parameters, second.gradients, second.states, second.total) == (1, 400, 0, 0, 400)
    assert report.total == 400 + 400 + 804 + 400
    assert (report.residuals, report.averages) == (0, 0)
    assert json.loads(json.dumps(report.to_dict()))["groups"][0]["states"] == 804


def test_nothing_is_changed():
    optimizer = oxistep.optim.AdamW([torch.ones(4, requires_grad=True)], state_dtype="8bit")
    before = dict(vars(optimizer))
    str(oxistep.memory(optimizer))
    assert vars(optimizer) == before
    assert not optimizer.state


def test_gradients_that_are_freed_one_by_one():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    optimizer = oxistep.optim.AdamW(model.parameters())
    report = oxistep.memory(optimizer)
    (offered,) = [one for one in report.settings if one.setting == "step_in_backward(optimizer)"]
    oxistep.step_in_backward(optimizer)
    now = oxistep.memory(optimizer)
    assert (now.steps_in_backward, now.gradients) == (True, 200 * 4)
    assert now.total == offered.total == report.total - report.gradients + 200 * 4
    assert "step_in_backward" not in [one.setting for one in now.settings]
    assert "steps in backward" in str(now)


def test_states_that_begin_later_are_counted():
    @oxistep.rule
    def late(p, g, s, lr=0.5):
        if s.step > 1:
            s.v = s.v + g
        return p - lr * g

    w = torch.ones(100, requires_grad=True)
    optimizer = late([w])
    without = oxistep.memory(optimizer).states
    for _ in range(2):
        w.grad = torch.ones(100)
        optimizer.step()
    assert oxistep.memory(optimizer).states == without + 400
    (now,) = [one for one in oxistep.memory(optimizer).settings if one.is_now]
    assert now.states == without + 400


def test_lbfgs_is_estimated_by_its_history():
    w = torch.ones(100, requires_grad=True)
    optimizer = oxistep.optim.LBFGS([w], history_size=3, max_iter=10, line_search_fn=None)
    estimate = oxistep.memory(optimizer)
    assert (estimate.is_estimate, estimate.states) == (True, (2 * 3 + 2) * 400)
    assert [one.setting for one in estimate.settings] == ["none"]

    def closure():
        optimizer.zero_grad()
        loss = (w**4).sum() + (w * torch.arange(100) / 50 - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    measured = oxistep.memory(optimizer)
    assert not measured.is_estimate
    assert estimate.states <= measured.states < estimate.states + 400 + 200  # and numbers


def test_optimizers_of_torch_are_counted_and_not_estimated():
    w = torch.ones(100, requires_grad=True)
    optimizer = torch.optim.AdamW([w])
    assert (oxistep.memory(optimizer).states, oxistep.memory(optimizer).settings) == (0, ())
    w.grad = torch.ones(100)
    optimizer.step()
    assert oxistep.memory(optimizer).states == 804
    assert "with other settings" not in str(oxistep.memory(optimizer))


def test_wrappers_are_looked_through():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    optimizer = oxistep.optim.AdamW([torch.ones(100, requires_grad=True)])
    assert oxistep.memory(Wrapper(optimizer)) == oxistep.memory(optimizer)


def test_sparse_gradients_and_states():
    table = nn.Embedding(1000, 4, sparse=True)
    optimizer = oxistep.optim.SparseAdam(table.parameters())
    before = oxistep.memory(optimizer)
    table(torch.tensor([1, 2])).sum().backward()
    assert oxistep.memory(optimizer).gradients == 2 * 8 + 2 * 16
    optimizer.step()
    assert oxistep.memory(optimizer).states == before.states == 2 * 16000


def test_averages():
    weights = [torch.zeros(100, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.bfloat16)]
    optimizer = oxistep.optim.AdamW(weights, ema=0.9)
    plain = oxistep.memory(oxistep.optim.AdamW(weights))
    before = oxistep.memory(optimizer)
    assert before.averages == 800 and before.total == plain.total + 800
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    after = oxistep.memory(optimizer)
    assert (after.averages, after.states, after.total) == (800, before.states, before.total)
    assert "averages" in str(after)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"memory: expected an optimizer .* or what wraps one, got list"):
        oxistep.memory([])


def test_the_table():
    weight = torch.zeros(1024, 1024, dtype=torch.bfloat16, requires_grad=True)
    optimizer = oxistep.optim.AdamW([weight], weights="residual16", state_dtype="8bit")
    text = str(oxistep.memory(optimizer))
    assert text.startswith("AdamW: 8.0 MiB (states estimated)")
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "1,048,576", "2.0", "MiB", "2.0", "MiB", "2.0", "MiB", "2.0", "MiB", "8.0", "MiB"] in lines
    assert any(line[:5] == ["weights='residual16',", "state_dtype='8bit'", "(as", "it", "is)"] for line in lines)
    assert "averages" not in text
    two = oxistep.optim.SGD([{"params": [weight]}, {"params": [torch.zeros(3, requires_grad=True)]}])
    assert any(line[:2] == ["all", "1,048,579"] for line in map(str.split, str(oxistep.memory(two)).splitlines()))


def test_states_that_other_settings_do_without_are_not_in_them():
    """StableAdamW sums half-precision parameters as Kahan does, but not with ``weights=``."""
    optimizer = made(zoo.StableAdamW, torch.bfloat16)
    before = {one.setting: (one.states, one.residuals) for one in oxistep.memory(optimizer).settings}
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert {one.setting: (one.states, one.residuals) for one in oxistep.memory(optimizer).settings} == before
