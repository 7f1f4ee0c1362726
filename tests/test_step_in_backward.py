"""Gradient release: parameters stepped in backward come out as in the ordinary loop, and what cannot is refused."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import oxistep
import oxistep.optim
from oxistep import zoo
from oxistep.optim import _modes
from releasing import Net, backward, inputs, one_rank
from scenarios import each_class, make, params_of, result

ITERATIONS = 5


def trained(make_optimizer, release, *, dtype=torch.float32, iterate=None, iterations=ITERATIONS, **kwargs):
    """A net trained, with gradient release or without."""
    model = Net(dtype)
    optimizer = make_optimizer(model)
    if hasattr(optimizer, "train"):
        optimizer.train()
    if release:
        oxistep.step_in_backward(optimizer, **kwargs)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for k in range(iterations):
        optimizer.zero_grad()
        backward(model, k) if iterate is None else iterate(model, optimizer, k)
        optimizer.step()
        scheduler.step()
    return model, optimizer


def assert_same(make_optimizer, **kwargs):
    plain, ordinary = trained(make_optimizer, False, **{k: v for k, v in kwargs.items() if k != "clip"})
    model, released = trained(make_optimizer, True, **kwargs)
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    ours, theirs = result(released)["state"], result(ordinary)["state"]
    assert str(ours) == str(theirs)
    assert released.param_groups[0].keys() == ordinary.param_groups[0].keys()
    numbers = [{k: v for k, v in group.items() if k != "params"} for group in ordinary.param_groups]
    assert numbers == [{k: v for k, v in group.items() if k != "params"} for group in released.param_groups]
    return released


def of(optim, name, **settings):
    return lambda model: make(optim, name, model.parameters(), **settings)


# ---- the bits of the ordinary loop ----


@each_class
def test_the_bits_of_the_ordinary_loop(name):
    assert_same(of(oxistep.optim, name))


@pytest.mark.parametrize(
    "name", [n for n in zoo.__all__ if n not in ("Prodigy", "LAMB", "SophiaG", "Lookahead", "SAM", "Grokfast")]
)
def test_the_bits_of_the_ordinary_loop_in_the_zoo(name):
    assert_same(lambda model: getattr(zoo, name)(model.parameters(), lr=0.01))


@each_class
def test_by_torchs_operations(name, monkeypatch):
    """What torch updates is stepped in backward too, by torch's step."""
    monkeypatch.setattr(_modes, "FORCED", True)
    assert_same(of(oxistep.optim, name))


@pytest.mark.parametrize("weights", [None, "stochastic", "kahan", "residual8", "residual16", "master"])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, "8bit"])
def test_fewer_bytes(weights, state_dtype):
    """What is drawn at random hangs on the place of a parameter, which is the same."""
    assert_same(
        lambda model: oxistep.optim.AdamW(
            [{"params": list(model.twice.parameters())}, {"params": list(model.last.parameters())}],
            lr=0.01,
            weights=weights,
            state_dtype=state_dtype,
            seed=3,
        ),
        dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_averages(name, dtype, warmup):
    released = assert_same(of(oxistep.optim, name, ema=0.9, ema_warmup=warmup), dtype=dtype)
    params = [p for group in released.param_groups for p in group["params"]]
    own = [p.detach().clone() for p in params]
    averages = [average.clone() for average in released.ema_state_dict().values()]
    with released.averaged():
        assert all(torch.equal(p, a.to(p.dtype)) for p, a in zip(params, averages, strict=True))
        with pytest.raises(RuntimeError, match=r"inside `with optimizer.averaged\(\):`"):
            params[0].square().sum().backward()
    assert all(map(torch.equal, params, own))


def test_averages_of_rules():
    assert_same(lambda model: zoo.Lion(model.parameters(), lr=0.01, ema=0.9, ema_warmup=True))


def test_codes_of_large_parameters():
    def run(release):
        weights = [torch.linspace(-1, 1, 5000).mul_(k + 1).requires_grad_() for k in range(3)]
        optimizer = oxistep.optim.AdamW(weights, state_dtype="8bit", seed=1)
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            sum((w * w * (k + 1)).sum() for w in weights).backward()
            optimizer.step()
            optimizer.zero_grad()
        return result(optimizer)

    assert str(run(True)) == str(run(False))


def test_groups_of_their_own_settings():
    assert_same(
        lambda model: oxistep.optim.SGD(
            [
                {"params": list(model.twice.parameters()), "lr": 0.1, "momentum": 0.9},
                {"params": [model.unused, *model.last.parameters()], "weight_decay": 0.1, "maximize": True},
            ],
            lr=0.01,
        )
    )


def test_micro_batches():
    """All but the last are accumulated; what only an earlier one reached is stepped by ``step``."""

    def iterate(model, optimizer, k):
        with oxistep.accumulating(optimizer):
            backward(model, 100 + k)
            (model.unused * k).sum().backward()
        assert model.unused.grad is not None
        backward(model, k)

    released = assert_same(of(oxistep.optim, "AdamW"), iterate=iterate)
    assert all(p.grad is None for p in params_of(released))


def test_a_loop_wholly_inside_of_accumulating_is_the_ordinary_one():
    def iterate(model, optimizer, k):
        with oxistep.accumulating(optimizer):
            backward(model, k)
            optimizer.step()

    model, ordinary = Net(), Net()
    for one, release in ((model, True), (ordinary, False)):
        optimizer = oxistep.optim.AdamW(one.parameters())
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            optimizer.zero_grad()
            iterate(one, optimizer, k)
    assert all(map(torch.equal, model.parameters(), ordinary.parameters()))


def test_accumulating_nests_and_ends_when_something_raises():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    oxistep.step_in_backward(optimizer)
    with pytest.raises(ZeroDivisionError), oxistep.accumulating(optimizer):
        with oxistep.accumulating(optimizer):
            w.sum().backward()
        w.sum().backward()
        raise ZeroDivisionError
    assert w.item() == 1.0
    w.sum().backward()
    assert (w.item(), w.grad) == (-0.5, None)


def test_accumulating_without_release_changes_nothing():
    w = torch.ones(1, requires_grad=True)
    with oxistep.accumulating(oxistep.optim.SGD([w])):
        w.sum().backward()
    assert w.grad.item() == 1.0


def test_a_closure():
    def iterate(model, optimizer, k):
        def closure():
            optimizer.zero_grad()
            loss = model(inputs(k)).square().mean()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() >= 0

    models = [Net(), Net()]
    for release, model in enumerate(models):
        optimizer = oxistep.optim.AdamW(model.parameters())
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            iterate(model, optimizer, k)
    assert all(map(torch.equal, *(model.parameters() for model in models)))


def test_retained_graphs():
    def iterate(model, optimizer, k):
        loss = model(inputs(k)).square().mean()
        with oxistep.accumulating(optimizer):
            loss.backward(retain_graph=True)
        loss.backward()

    assert_same(of(oxistep.optim, "Adam"), iterate=iterate)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints(reentrant):
    def iterate(model, optimizer, k):
        x = inputs(k).requires_grad_()
        hidden = checkpoint(model.twice, x, use_reentrant=reentrant)
        checkpoint(model.last, hidden, use_reentrant=reentrant).square().mean().backward()

    assert_same(of(oxistep.optim, "AdamW"), iterate=iterate)


def test_sparse_gradients():
    tables = []
    for release in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(10, 3, sparse=True)
        optimizer = oxistep.optim.SparseAdam(table.parameters())
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 2, 2, k])).square().sum().backward()
            optimizer.step()
        tables.append(table.weight)
    assert torch.equal(*tables)


def test_a_gradient_that_is_there_before():
    w = torch.ones(1, requires_grad=True)
    w.sum().backward()
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    oxistep.step_in_backward(optimizer)
    optimizer.step()
    assert (w.item(), w.grad) == (0.5, None)


def test_gradients_are_freed_one_by_one():
    """So backward never holds more than one: each is gone when the next is there."""
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
    optimizer = oxistep.optim.AdamW(layers.parameters())
    held = []
    for p in layers.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(q.grad is not None for q in layers.parameters()))
        )
    oxistep.step_in_backward(optimizer)
    layers(torch.ones(2, 8)).sum().backward()
    assert held == [1] * 12


# ---- neighbours ----


def test_hooks_of_others_see_the_gradient():
    w, seen = torch.ones(1, requires_grad=True), []
    w.register_post_accumulate_grad_hook(lambda p: seen.append(("before", p.grad.item())))
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    oxistep.step_in_backward(optimizer)
    w.register_hook(lambda grad: grad * 2)
    w.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.grad.item())))
    for _ in range(2):
        w.sum().backward()
        optimizer.step()
        assert w.grad is None
    assert seen == [("before", 2.0), ("after", 2.0)] * 2
    assert w.item() == -1.0


def test_a_hook_that_comes_later_has_ours_put_behind_it():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    oxistep.step_in_backward(optimizer)
    w.register_post_accumulate_grad_hook(lambda p: None)
    w.sum().backward()
    assert w.item() == 1.0  # in `step`, this once
    optimizer.step()
    w.sum().backward()
    assert (w.item(), w.grad) == (0.0, None)


def test_step_hooks_are_called_once_an_iteration():
    w, calls = torch.ones(1, requires_grad=True), []
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    oxistep.step_in_backward(optimizer)
    for _ in range(2):
        w.sum().backward()
        optimizer.step()
    assert calls == ["before", "after"] * 2


def test_a_scheduler_changes_the_rate_of_the_next_iteration():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=1.0)
    oxistep.step_in_backward(optimizer)
    scheduler = oxistep.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for expected in (0.0, -0.5, -0.75):
        w.sum().backward()
        optimizer.step()
        scheduler.step()
        assert w.item() == expected


def test_a_parameter_that_is_unfrozen_later():
    model = Net()
    optimizer = oxistep.optim.SGD(model.parameters(), lr=0.1)
    oxistep.step_in_backward(optimizer)
    backward(model, 0)
    optimizer.step()
    model.frozen.requires_grad_(True)
    for expected in (False, True):  # the first time by `step`, which hooks it
        before = model.frozen.weight.detach().clone()
        backward(model, 1)
        assert (model.frozen.weight.grad is None) is expected
        optimizer.step()
        assert not torch.equal(before, model.frozen.weight)
        assert model.frozen.weight.grad is None


def test_groups_that_come_and_go():
    a, b, c = (torch.ones(1, requires_grad=True) for _ in range(3))
    optimizer = oxistep.optim.SGD([a], lr=1.0)
    oxistep.step_in_backward(optimizer)
    optimizer.add_param_group({"params": [b], "lr": 0.5})
    (a + b).sum().backward()
    assert (a.item(), b.item()) == (0.0, 0.5)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(c)  # without being told
    (a + c).sum().backward()
    assert c.item() == 1.0
    optimizer.step()
    assert c.item() == 0.0
    (c * 1).sum().backward()
    assert c.item() == -1.0
    optimizer.step()
    optimizer.param_groups[0]["params"].remove(a)
    (a + b).sum().backward()
    assert (a.item(), a.grad.item()) == (-1.0, 1.0)
    assert not a._post_accumulate_grad_hooks


def test_checkpoints_go_on_to_the_bit():
    def make_one():
        model = Net()
        return model, oxistep.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = make_one()
    oxistep.step_in_backward(optimizer)
    for k in range(3):
        backward(model, k)
        optimizer.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)

    again, released = make_one()
    oxistep.step_in_backward(released)
    backward(again, 7)  # what was there before is forgotten
    released.step()
    again.load_state_dict(weights)
    released.load_state_dict(copy.deepcopy(states))
    theirs = Net()
    theirs.load_state_dict(weights)
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    torchs.load_state_dict(copy.deepcopy(states))
    for one, optimizer_of_one in ((model, optimizer), (again, released), (theirs, torchs)):
        backward(one, 9)
        optimizer_of_one.step()
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    torch.testing.assert_close(list(model.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_copies_are_ordinary_optimizers(way):
    model = Net()
    optimizer = oxistep.optim.AdamW(model.parameters())
    oxistep.step_in_backward(optimizer)
    backward(model, 0)
    optimizer.step()
    other, others = way((model, optimizer))
    backward(other, 1)
    assert other.last.weight.grad is not None
    others.step()
    backward(model, 1)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_an_optimizer_that_is_dropped_takes_its_states_with_it():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.AdamW([w])
    oxistep.step_in_backward(optimizer)
    w.sum().backward()
    state = weakref.ref(optimizer.state[w]["exp_avg"])
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    assert state() is None
    before = w.item()
    w.sum().backward()
    assert (w.item(), w.grad.item()) == (before, 1.0)
    oxistep.step_in_backward(oxistep.optim.SGD([w]))  # which another one may do now


def test_remove():
    w = torch.ones(1, requires_grad=True)
    optimizer = oxistep.optim.SGD([w], lr=0.5)
    attributes = set(vars(optimizer))
    release = oxistep.step_in_backward(optimizer)
    w.sum().backward()
    optimizer.step()
    release.remove()
    release.remove()
    w.sum().backward()
    assert (w.item(), w.grad.item()) == (0.5, 1.0)
    optimizer.step()
    assert w.item() == 0.0
    assert not w._post_accumulate_grad_hooks
    assert set(vars(optimizer)) - attributes <= {"_oxistep"}
    with oxistep.step_in_backward(optimizer, clip=None):
        optimizer.zero_grad()
        w.sum().backward()
        assert w.item() == -0.5
        optimizer.step()


def test_explain_tells_what_backward_did():
    model = Net()
    optimizer = oxistep.optim.AdamW(model.parameters())
    oxistep.step_in_backward(optimizer)
    backward(model, 0)
    optimizer.step()
    rows = {row.position: row for row in oxistep.explain(optimizer)}
    path = "torch" if _modes.FORCED else "native"
    assert [rows[i].path for i in range(6)] == ["skipped", path, path, "skipped", path, path]
    assert "in the last step" in rows[1].reason


# ---- clipping ----


def test_clipping_by_parameter():
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = oxistep.optim.SGD([a, b], lr=1.0, max_grad_norm=1.0)
    oxistep.step_in_backward(optimizer, clip="parameter")
    (a * torch.tensor([3.0, 4.0]) + b * torch.tensor([0.3, 0.4])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(b.detach(), torch.tensor([-0.3, -0.4]))
    torch.testing.assert_close(optimizer.last_grad_norm, torch.tensor(25.25).sqrt())
    optimizer.max_grad_norm = None
    (a * 3).sum().backward()
    torch.testing.assert_close(a.detach(), torch.tensor([-3.6, -3.8]))
    optimizer.step()
    optimizer.max_grad_norm = 0.5
    (b * torch.tensor([3.0, 4.0])).sum().backward()
    torch.testing.assert_close(b.detach(), torch.tensor([-0.6, -0.8]))


@pytest.mark.memory
def test_a_long_run_holds_memory_constant():
    """Neither tensors nor Python's objects pile up from iteration to iteration."""
    model = Net()
    optimizer = oxistep.optim.AdamW(model.parameters())
    oxistep.step_in_backward(optimizer)

    def objects():
        gc.collect()
        return len(gc.get_objects())

    def run(iterations):
        for k in range(iterations):
            with oxistep.accumulating(optimizer):
                backward(model, k)
            backward(model, k)
            optimizer.step()

    run(5)
    before = objects()
    run(200)
    assert objects() - before < 20


# ---- ranks ----


@one_rank()
def test_fully_sharded_parameters():
    """FSDP2 calls the hooks of its shards when it has reduced their gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def run(release):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = oxistep.optim.AdamW(model.parameters(), lr=0.1)
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            model(torch.ones(2, 4) * k).sum().backward()
            if release:
                assert all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        return [p.to_local() for p in model.parameters()]

    assert all(map(torch.equal, run(True), run(False)))


def test_compiled_models():
    def run(release):
        model = Net()
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = oxistep.optim.AdamW(model.parameters(), lr=0.1)
        if release:
            oxistep.step_in_backward(optimizer)
        for k in range(3):
            compiled(inputs(k)).square().mean().backward()
            assert all(p.grad is None for p in model.parameters()) is release
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    assert all(map(torch.equal, run(True), run(False)))
