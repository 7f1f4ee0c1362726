"""What gradient release refuses, before or after anything was stepped, and that nothing is changed then."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import oxistep
import oxistep.optim
from oxistep import rules, zoo
from oxistep.diagnostics import UpdateMonitor
from oxistep.optim._all_or_nothing import tear
from releasing import Net, inputs, one_rank
from scenarios import NATIVE, params_of
from snapshots import difference, snapshot


def refuses(optimizer, match, **kwargs):
    params = params_of(optimizer)
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=match):
        oxistep.step_in_backward(optimizer, **kwargs)
    assert not difference(before, snapshot(optimizer, params))
    assert not any(p._post_accumulate_grad_hooks for p in params)
    assert optimizer.__dict__.get("_oxistep") is None or optimizer._oxistep.release is None


def matrices():
    return [torch.ones(4, 4, requires_grad=True) for _ in range(2)]


def test_what_needs_all_gradients_is_refused():
    optim = oxistep.optim
    refuses(optim.SGD(matrices(), max_grad_norm=1.0), 'max_grad_norm: the norm of all.*clip="parameter"')
    refuses(optim.SGD(matrices(), skip_nonfinite=True), "skip_nonfinite: .* hangs on all gradients")
    refuses(
        optim.SGD(matrices(), max_grad_norm=1.0, grad_norm_group="world"), "grad_norm_group: ranks", clip="parameter"
    )
    refuses(optim.LBFGS(matrices()), "LBFGS: .* evaluates the model several times")
    refuses(optim.Muon(matrices()), "Muon: .* products of all parameters together")
    refuses(zoo.Prodigy(matrices()), "rule Prodigy needs sums over all parameters")
    refuses(zoo.LAMB(matrices(), lr=0.1), "rule LAMB needs sums over all parameters")
    refuses(zoo.SophiaG(matrices()), "SophiaG: .* told the batch size")


def test_other_refusals():
    optim = oxistep.optim
    with pytest.raises(TypeError, match="expected an optimizer of oxistep, got SGD"):
        oxistep.step_in_backward(torch.optim.SGD(matrices()))
    with pytest.raises(TypeError, match="got Lookahead; SGD, which it wraps, is one"):
        oxistep.step_in_backward(zoo.Lookahead(optim.SGD(matrices())))
    with pytest.raises(TypeError, match="accumulating: expected an optimizer of oxistep, got int"):
        with oxistep.accumulating(3):
            pass
    refuses(optim.SGD(matrices()), "clip: expected 'parameter' or None, got 'norm'", clip="norm")
    refuses(optim.SGD(matrices()), "clip=.parameter.: the largest norm is the max_grad_norm", clip="parameter")
    half = [torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bfloat16)]
    refuses(optim.Adafactor(half), "several dtypes")
    flat = matrices()
    flat[1]._fsdp_flattened = True
    refuses(optim.SGD(flat), r"\['params'\]\[1\] is FSDP1's")

    class Mine(optim.AdamW):
        def _init_group(self, *args, **kwargs):
            return super()._init_group(*args, **kwargs)

    refuses(Mine(matrices()), "_init_group is not torch's own")
    watched = optim.SGD(matrices())
    monitor = UpdateMonitor(watched)
    refuses(watched, "has an UpdateMonitor")
    monitor.remove()
    oxistep.step_in_backward(watched)
    with pytest.raises(ValueError, match="steps in backward already"):
        oxistep.step_in_backward(watched)
    with pytest.raises(ValueError, match="UpdateMonitor measures what step"):
        UpdateMonitor(watched)
    with pytest.raises(ValueError, match="another optimizer steps"):
        oxistep.step_in_backward(optim.Adam(params_of(watched)))


def test_a_setting_that_comes_later_is_refused_by_backward():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5, max_grad_norm=1.0, skip_nonfinite=True)
    optimizer.max_grad_norm, optimizer.skip_nonfinite = None, False
    oxistep.step_in_backward(optimizer)
    for name, value in (("max_grad_norm", 1.0), ("skip_nonfinite", True)):
        before = getattr(optimizer, name)
        setattr(optimizer, name, value)
        with pytest.raises(RuntimeError, match=name):
            w.sum().backward()
        assert w.item() == 1.0
        setattr(optimizer, name, before)
        w.grad = None


def test_a_rule_that_comes_to_a_total_later():
    @oxistep.rule
    def late(p, g, s, lr=0.5):
        if s.step > 1:
            return p - lr * g / rules.total(g * g)
        return p - lr * g

    w = torch.ones(1, requires_grad=True)
    optimizer = late([w])
    oxistep.step_in_backward(optimizer)
    w.sum().backward()
    optimizer.step()
    with pytest.raises((TypeError, RuntimeError), match="total"):
        w.sum().backward()
    assert w.item() == 0.5


def test_a_rule_whose_group_looks_at_its_parameters():
    @oxistep.rule
    def counts(p, g, s, lr=0.5):
        n = s.group.get("n", 0)
        s.group.n = n + 1 if s.step > 1 else n + 2
        return p - lr * g

    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = counts([a, b])
    oxistep.step_in_backward(optimizer)
    a.sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="'n', a number of the group, becomes another one"):
        (a.sum() + b.sum()).backward()


def test_numbers_of_a_group_count_iterations():
    def run(release):
        a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        optimizer = zoo.AdamWScheduleFree([{"params": [a]}, {"params": [b], "lr": 0.1}], lr=0.01, warmup_steps=3)
        optimizer.train()
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(4):
            optimizer.zero_grad()
            (a.sum() if k % 2 else (a + b).sum()).backward()
            optimizer.step()
        optimizer.eval()
        return [a, b], [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    assert str(run(True)) == str(run(False))


def test_schedule_free_in_eval_mode_is_refused_by_backward():
    w = torch.ones(1, requires_grad=True)
    optimizer = zoo.SGDScheduleFree([w])
    oxistep.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="not in train mode"):
        w.sum().backward()
    assert w.item() == 1.0


@pytest.mark.parametrize("wrap", [zoo.Lookahead, zoo.Grokfast, zoo.SAM])
def test_wrappers_refuse_a_base_that_steps_in_backward(wrap):
    w = torch.ones(1, requires_grad=True)
    base = oxistep.optim.SGD([w], lr=0.5)
    wrapper = wrap(base)
    oxistep.step_in_backward(base)
    with pytest.raises(RuntimeError, match="looks at gradients before or after the step of its base"):
        wrapper.step(lambda: w.sum())


def test_a_second_gradient_in_an_iteration_is_refused():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([("weight", w)], lr=0.5)
    oxistep.step_in_backward(optimizer)
    w.sum().backward()
    with pytest.raises(RuntimeError, match=r"weight has a gradient again.*oxistep\.accumulating"):
        w.sum().backward()
    assert (w.item(), w.grad.item()) == (0.5, 1.0)
    with pytest.raises(RuntimeError, match="weight has a gradient again"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    w.sum().backward()
    assert w.item() == 0.0


@pytest.mark.parametrize("unscales", [False, True])
def test_a_grad_scaler_is_refused_at_its_first_step(unscales):
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    oxistep.step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(w.sum()).backward()
    if unscales:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="a GradScaler tells only afterwards"):
        scaler.step(optimizer)


def test_a_parameter_that_raises_is_not_changed_and_the_others_are():
    """All or nothing, for each parameter."""
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = oxistep.optim.Adam([("a", a), ("b", b)])
    oxistep.step_in_backward(optimizer)
    (a + b).sum().backward()
    optimizer.step()
    whole = optimizer.state[a]["exp_avg"]
    optimizer.state[a]["exp_avg"] = torch.ones(5)
    before, steps = a.detach().clone(), optimizer.state[a]["step"].item()
    with pytest.raises(RuntimeError) as error:
        (a * 2).sum().backward()
    assert "a" in str(error.value) + str(getattr(error.value, "__notes__", ""))
    assert torch.equal(a, before)
    assert optimizer.state[a]["step"].item() == steps
    assert a.grad is not None
    optimizer.state[a]["exp_avg"] = whole
    b.sum().backward()
    optimizer.step()  # takes the gradient that is left
    assert optimizer.state[a]["step"].item() == optimizer.state[b]["step"].item() == 2


def test_an_optimizer_whose_step_broke_off_refuses_until_it_is_loaded():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5, momentum=0.9)
    oxistep.step_in_backward(optimizer)
    w.sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    tear(optimizer, "a kernel broke", [w])
    with pytest.raises(RuntimeError, match="this optimizer takes no step: a kernel broke"):
        w.sum().backward()
    assert w.item() == 0.5
    with pytest.raises(RuntimeError, match="this optimizer takes no step: a kernel broke"):
        optimizer.step()
    optimizer.load_state_dict(saved)
    optimizer.step()  # takes the gradient that is left
    assert (round(w.item(), 6), w.grad) == (-0.45, None)


def test_names_of_parameters_are_those_of_the_optimizer():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = oxistep.optim.Adam([{"params": [a]}, {"params": [a.detach().clone().requires_grad_(), b]}])
    oxistep.step_in_backward(optimizer)
    b.sum().backward()
    optimizer.step()
    optimizer.state[b]["exp_avg"] = torch.ones(5)
    with pytest.raises(RuntimeError) as error:
        b.sum().backward()
    assert "param_groups[1]['params'][1]" in str(error.value) + str(error.value.__notes__)


def test_a_weight_that_reentrant_checkpoints_step_twice_is_refused():
    """Each segment accumulates by itself there, and the second one has read a weight that was stepped."""
    model = Net()
    optimizer = oxistep.optim.AdamW(model.parameters())
    oxistep.step_in_backward(optimizer)
    hidden = checkpoint(model.twice, inputs(0).requires_grad_(), use_reentrant=True)
    hidden = checkpoint(model.twice, hidden, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"has a gradient again.*oxistep\.accumulating"):
        hidden.sum().backward()


@one_rank()
def test_distributed_data_parallel_is_refused_before_or_after():
    from torch.nn.parallel import DistributedDataParallel

    model = nn.Linear(3, 3)
    optimizer = oxistep.optim.AdamW(model.named_parameters())
    release = oxistep.step_in_backward(optimizer)
    wrapped = DistributedDataParallel(model)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"(weight|bias) is in a DistributedDataParallel"):
        wrapped(torch.ones(2, 3)).sum().backward()
    assert torch.equal(before, model.weight)
    release.remove()
    refuses(optimizer, "weight is in a DistributedDataParallel")
    others = oxistep.optim.AdamW(nn.Linear(3, 3).parameters())  # which are in none
    oxistep.step_in_backward(others).remove()


def test_every_class_is_served_or_refused():
    """A new class has to say which."""
    assert set(NATIVE) | {"LBFGS", "Muon", "SparseAdam"} == {
        name for name in oxistep.optim.__all__ if isinstance(getattr(oxistep.optim, name), type)
        and getattr(oxistep.optim, name).__module__.startswith("oxistep.")
    }  # fmt: skip
