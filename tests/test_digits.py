"""What stands beside bfloat16 weights (``weights=``) survives those of ours that change weights between steps."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import distributed  # noqa: E402

import oxistep  # noqa: E402
import oxistep.optim as optim  # noqa: E402
from oxistep import diagnostics, zoo  # noqa: E402
from oxistep.optim._digits import now, write  # noqa: E402
from scenarios import FORCED  # noqa: E402

pytestmark = pytest.mark.skipif(FORCED, reason="everything is torch's")

BF16 = torch.bfloat16
MODES = ("residual16", "residual8", "kahan", "master")
STEPS, RATE = 24, 1e-3
# What a step loses of a weight, which is near 1: half of the last digit that is kept.
LOST = {"residual16": 0.0, "master": 0.0, "residual8": 2**-15, "kahan": 2**-16}
each_mode = pytest.mark.parametrize("weights", MODES)


def made(weights=None, shapes=((70, 64), (5,))):
    """Weights near 1, which steps of 1e-3 do not move in bfloat16; float32 ones of the same values without a mode."""
    generator = torch.Generator().manual_seed(0)
    values = [(1 + torch.rand(shape, generator=generator) / 2).to(BF16) for shape in shapes]
    return [(value if weights else value.float()).requires_grad_() for value in values]


def settings_of(weights):
    return {} if weights is None else {"weights": weights, "state_dtype": torch.float32}


def give(params, k):
    """Gradients that bfloat16 holds, most of them positive: what a step moves adds up."""
    generator = torch.Generator().manual_seed(k)
    for p in params:
        p.grad = (torch.rand(p.shape, generator=generator) + 0.5).to(BF16).to(p.dtype)


def found(optimizer, params):
    return [now(optimizer, p).clone() for p in params]


def check(runs, weights, times=1):
    """The run of a mode against the float32 run, and that the steps moved weights by more than the bound."""
    start, own, right = runs
    for before, one, other in zip(start, own, right, strict=True):
        moved = (other - before).abs()
        bound = times * LOST[weights] * 2
        assert (one - other).abs().max() <= bound
        assert moved.max() > 2 * bound and moved.max() > 0


def runs_of(run, weights):
    return [p.detach().clone() for p in made()], run(weights), run(None)


def sgd(params, weights, **more):
    return optim.SGD(params, lr=RATE, **settings_of(weights), **more)


# ---- wrappers ----


def with_sam(weights, adaptive=False):
    params = made(weights)
    base = sgd(params, weights)
    optimizer = zoo.SAM(base, adaptive=adaptive)
    for k in range(STEPS):
        optimizer.step(lambda k=k: give(params, k))
    return found(base, params)


@each_mode
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_comes_back_to_all_digits(weights, adaptive):
    check(runs_of(lambda mode: with_sam(mode, adaptive), weights), weights, STEPS)


@each_mode
def test_sam_whose_closure_raised(weights):
    params = made(weights)
    base = sgd(params, weights)
    optimizer = zoo.SAM(base)
    give(params, 0)
    base.step()
    before = found(base, params)

    def closure():
        raise KeyError("data")

    with pytest.raises(KeyError, match="data"):
        optimizer.step(closure)
    for p in params:
        p.grad = torch.zeros_like(p)
    base.step()
    for p, one in zip(params, before, strict=True):
        assert (now(base, p) - one).abs().max() <= 2 * LOST[weights]


def with_lookahead(weights, copied=lambda optimizer: optimizer, nested=False):
    params = made(weights)
    optimizer = zoo.Lookahead(sgd(params, weights, momentum=0.5), k=3)
    optimizer = zoo.Lookahead(optimizer, k=4) if nested else optimizer
    for k in range(STEPS):
        if k == 10:
            optimizer = copied(optimizer)
            params = [p for group in optimizer.param_groups for p in group["params"]]
        give(params, k)
        optimizer.step()
    optimizer.sync_lookahead()
    return found(optimizer._steps, params)


@each_mode
@pytest.mark.parametrize("nested", [False, True])
def test_lookahead_interpolates_all_digits(weights, nested):
    check(runs_of(lambda mode: with_lookahead(mode, nested=nested), weights), weights, STEPS)


def loaded(optimizer):
    saved = copy.deepcopy(optimizer.state_dict())
    params = [p.detach().clone().requires_grad_() for group in optimizer.param_groups for p in group["params"]]
    kept = optimizer._steps.__dict__.get("_oxistep")
    other = zoo.Lookahead(sgd(params, None if kept is None else kept.weights, momentum=0.5), k=3)
    other.load_state_dict(saved)
    return other


@each_mode
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), loaded])
def test_slow_weights_are_saved_with_all_digits(weights, how):
    check(runs_of(lambda mode: with_lookahead(mode, how), weights), weights, STEPS)


def test_lookahead_without_digits_keeps_the_dtype():
    params = made("stochastic")
    for weights in (None, "stochastic"):
        optimizer = zoo.Lookahead(sgd(params, weights), k=1)
        give(params, 0)
        optimizer.step()
        assert {buffer.dtype for buffer in optimizer._kept.values()} == {BF16}
        optimizer.load_state_dict(optimizer.state_dict())
        assert {buffer.dtype for buffer in optimizer._kept.values()} == {BF16}


# ---- schedule-free ----

FREE = {"SGDScheduleFree": 2e-3, "AdamWScheduleFree": 2e-3, "RAdamScheduleFree": 2e-2}


def with_schedule_free(name, weights, in_backward=False):
    params = made(weights)
    optimizer = getattr(zoo, name)(params, lr=FREE[name], **settings_of(weights))
    release = oxistep.step_in_backward(optimizer) if in_backward else None
    values = []
    for k in range(STEPS):
        optimizer.train()
        if release is None:
            give(params, k)
        else:
            held = [p.detach().clone().requires_grad_() for p in params]
            give(held, k)
            sum((p * other.grad).sum() for p, other in zip(params, held, strict=True)).backward()
        optimizer.step()
        if k % 5 == 2:
            optimizer.eval()
            values += found(optimizer, params)
    optimizer.eval()
    return values + found(optimizer, params)


@each_mode
@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("in_backward", [False, True])
def test_train_and_eval_move_all_digits(name, weights, in_backward):
    own, right = (with_schedule_free(name, mode, in_backward) for mode in (weights, None))
    start = [p.detach() for p in made()]
    check((start, own[-2:], right[-2:]), weights, 2 * STEPS)
    for one, other in zip(own, right, strict=True):
        assert (one - other).abs().max() <= 4 * STEPS * LOST[weights]


# ---- averages, tests of learning rates ----


def with_averages(weights, within):
    params = made(weights)
    optimizer = sgd(params, weights, ema=0.9)
    averages = []
    for k in range(STEPS):
        give(params, k)
        optimizer.step()
        with optimizer.averaged():
            within(params)
        averages = [optimizer.state[p]["param_ema"].clone() for p in params]
    return found(optimizer, params) + averages


@each_mode
@pytest.mark.parametrize("within", [lambda params: None, lambda params: setattr(params[0], "data", params[0] + 0)])
def test_averages_in_place_of_weights_leave_all_digits(weights, within):
    own, right = with_averages(weights, within), with_averages(None, within)
    start = [p.detach() for p in made()]
    check((start, own[:2], right[:2]), weights, STEPS)
    check((start, own[2:], right[2:]), weights, STEPS)


def with_lr_range_test(weights, wrap=lambda base: base):
    params = made(weights)
    base = sgd(params, weights)
    optimizer = wrap(base)
    for k in range(STEPS):
        give(params, k)
        optimizer.step()

        def closure():
            give(params, 99)
            return params[0].sum() * 0 + 1

        if k % 4 == 1:
            before = copy.deepcopy(optimizer.state_dict())
            diagnostics.lr_range_test(closure, optimizer, steps=7)
            assert_same(before, optimizer.state_dict())
    return found(base, params)


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@each_mode
@pytest.mark.parametrize("wrap", [lambda base: base, lambda base: zoo.Lookahead(base, k=3)])
def test_a_learning_rate_test_leaves_all_digits(weights, wrap):
    check(runs_of(lambda mode: with_lr_range_test(mode, wrap), weights), weights, STEPS)


# ---- what others change is still noticed ----


@pytest.mark.parametrize("weights", ["residual16", "residual8", "kahan"])
@pytest.mark.parametrize("of", ["SAM", "Lookahead", "averaged", "lr_range_test"])
def test_what_somebody_changed_before_starts_anew(weights, of):
    params = made(weights)
    base = sgd(params, weights, ema=0.5)
    give(params, 0)
    base.step()
    with torch.no_grad():
        params[0].fill_(3.0)
    assert torch.equal(base.master(params[0]), torch.full((70, 64), 3.0))
    base.param_groups[0]["lr"] = 0.0
    if of == "SAM":
        zoo.SAM(base).step(lambda: give(params, 1))
    elif of == "Lookahead":
        zoo.Lookahead(base, k=1).step()
    elif of == "averaged":
        with base.averaged():
            pass
    else:
        diagnostics.lr_range_test(lambda: torch.ones(()), base, steps=3)
    assert torch.equal(base.master(params[0]), torch.full((70, 64), 3.0))
    give(params, 2)
    base.step()
    assert torch.equal(base.master(params[0]), torch.full((70, 64), 3.0))
    assert not torch.equal(base.master(params[1]), params[1].float())


@pytest.mark.parametrize("weights", ["residual16", "residual8", "kahan"])
def test_what_somebody_changes_after_starts_anew(weights):
    params = made(weights)
    base = sgd(params, weights)
    give(params, 0)
    base.step()
    write(base, params[0], now(base, params[0]) * (1 + 2**-10))
    assert not torch.equal(base.master(params[0]), params[0].float())
    with torch.no_grad():
        params[0].mul_(2.0)
    twice = params[0].detach().float()
    base.param_groups[0]["lr"] = 0.0
    base.step()
    assert torch.equal(base.master(params[0]), twice)


def test_what_moves_weights_is_refused_where_they_are_averages():
    params = made("residual16")
    base = sgd(params, "residual16", ema=0.9)
    free = zoo.SGDScheduleFree(made(), lr=0.1, ema=0.9)
    free.train()
    give(params, 0)
    base.step()
    for optimizer, calls in (
        (base, {"first_step": zoo.SAM(base).first_step, "sync_lookahead": zoo.Lookahead(base).sync_lookahead}),
        (free, {"eval": free.eval}),
    ):
        with optimizer.averaged():
            for name, call in calls.items():
                with pytest.raises(RuntimeError, match=f"{name}: the parameters are their averages inside"):
                    call()
    assert free.param_groups[0]["train_mode"]
    zoo.Lookahead(base).sync_lookahead()


# ---- writing ----

SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 1 + 2**-8, 1 - 2**-9, -1 - 3 * 2**-9, torch.inf, -torch.inf, torch.nan]
    + [3.4028235e38, -3.4028235e38, 3.3895e38, 1e-38, 1e-45, -1e-45, 1e-40, 2**-126, 1 + 2**-23, 3.1415927]
)


@each_mode
def test_what_is_written_is_read(weights):
    drawn = torch.randint(-(2**31), 2**31, (4000,), dtype=torch.int64, generator=torch.Generator().manual_seed(1))
    value = torch.cat([SPECIAL, drawn.to(torch.int32).view(torch.float32)])
    p = torch.ones_like(value, dtype=BF16).requires_grad_()
    optimizer = sgd([p], weights)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    write(optimizer, p, value)
    own = optimizer.master(p)
    assert torch.equal(own.isnan(), value.isnan()) and torch.equal(own.isinf() & value.isinf(), value.isinf())
    number = value.isfinite()
    if weights in ("residual16", "master"):
        assert torch.equal(own[number].view(torch.int32), value[number].view(torch.int32))
    else:
        usual = number & (value.abs() > 1e-30) & (value.abs() < 3.38e38)
        error = (own - value)[usual].abs() / value[usual].abs()
        assert error.max() <= 2**-16
    # and a step that moves nothing leaves the number
    optimizer.step()
    again = optimizer.master(p)[number]
    near = 2**-15 * value[number].abs() if weights == "residual8" else 0.0
    fits = (again - own[number]).abs() <= near
    assert fits[own[number].isfinite() & again.isfinite()].all()


@each_mode
def test_what_a_step_left_is_written_back_bit_for_bit(weights):
    params = made(weights)
    optimizer = sgd(params, weights)
    for k in range(5):
        give(params, k)
        optimizer.step()
    for p in params:
        number = now(optimizer, p).clone()
        before = [p.detach().clone(), *(value.clone() for value in optimizer.state[p].values())]
        write(optimizer, p, number)
        assert torch.equal(now(optimizer, p), number)
        if weights != "kahan":  # whose ties are a parameter and half a unit, or the next one and half a unit less
            after = [p.detach(), *optimizer.state[p].values()]
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("weights", ["kahan", "master"])
def test_float16(weights):
    p = torch.ones(5000, dtype=torch.float16, requires_grad=True)
    q = torch.ones(5000, requires_grad=True)
    ours, theirs = (zoo.Lookahead(sgd([x], w), k=3) for x, w in ((p, weights), (q, None)))
    for _ in range(20):
        for x, optimizer in ((p, ours), (q, theirs)):
            x.grad = torch.full_like(x, 0.5)
            optimizer.step()
    assert (ours._steps.master(p) - q).abs().max() <= 1e-6 * (weights == "kahan")


def test_before_the_first_step_a_weight_is_rounded():
    (p,) = made("residual16", [(4,)])
    optimizer = sgd([p], "residual16")
    write(optimizer, p, torch.full((4,), 1.001))
    assert torch.equal(p, torch.full((4,), 1.001).to(BF16)) and p not in optimizer.state


def test_autograd_sees_what_is_written():
    params = made("residual16")
    optimizer = sgd(params, "residual16")
    give(params, 0)
    optimizer.step()
    loss = (params[0] * params[0]).sum()
    write(optimizer, params[0], now(optimizer, params[0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- DTensors ----


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("weights", ["residual16", "kahan"])
def test_dtensors(mesh, weights):
    from torch.distributed.tensor import Shard, distribute_tensor

    def placed(t):
        return distribute_tensor(t.detach(), mesh, [Shard(0)])

    values = []
    for place in (lambda t: t.detach().clone(), placed):
        params = [torch.nn.Parameter(place(p)) for p in made(weights)]
        optimizer = zoo.AdamWScheduleFree(params, lr=1e-4, **settings_of(weights))
        wrapper = zoo.SAM(zoo.Lookahead(optimizer, k=2))

        def closure(k, params=params, place=place):
            held = made(weights)
            give(held, k)
            for p, other in zip(params, held, strict=True):
                p.grad = place(other.grad)

        for k in range(9):
            optimizer.train()
            wrapper.step(lambda k=k, closure=closure: closure(k))
            optimizer.eval()
        values.append([getattr(now(optimizer, p), "_local_tensor", now(optimizer, p)) for p in params])
    start = [p.detach().float() for p in made()]
    for one, other, before in zip(*values, start, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, before)
