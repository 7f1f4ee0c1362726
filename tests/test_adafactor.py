"""Adafactor: what is special about a rule that looks at whole tensors. (The rest: every test of `scenarios.NATIVE`.)"""

import copy

import pytest
import torch

import oxistep
import oxistep.optim
from oxistep import _core
from scenarios import outcome, torch_updates_raise

# torch sums in the type of the tensor, ours in float64.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}
STEPS = 8
SHAPES = [(), (1,), (7,), (64,), (33, 5), (1, 9), (9, 1), (1, 1), (129, 70), (3, 4, 5, 6), (2, 2, 1), (40, 30, 3, 3)]
# cut into pieces, tiles and strips; into two bands of columns; a batch of large matrices
LARGE = [(140_001,), (300, 301), (20, 9_000), (70_000, 2), (2, 270, 260), (90, 40, 30)]
KWARGS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 0.3},
    "clipped less": {"d": 3.0, "beta2_decay": -0.3, "eps": (1e-4, 1e-2)},
    "large eps1": {"eps": (0.5, 1e-3), "weight_decay": 0.01, "maximize": True},
}
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
each_kwargs = pytest.mark.parametrize("kwargs", KWARGS.values(), ids=list(KWARGS))


def drawn(shapes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def clone(params):
    return [p.detach().clone().requires_grad_() for p in params]


def train(optimizer, params, steps=STEPS, start=0):
    """Gradients drawn beforehand: of sizes that differ from tensor to tensor and row to row."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.dim() > 1 and p.dtype is not torch.float16:  # whose squares would overflow
                grad = grad * 10 ** torch.randn((*p.shape[:-1], 1), generator=generator, dtype=torch.float64)
            p.grad = grad.to(p.dtype)
        optimizer.step()


def assert_close(a, ours, b, theirs, tolerance):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **tolerance, equal_nan=True)
        assert list(a.state[p]) == list(b.state[q])
        for key, value in b.state[q].items():
            mine = a.state[p][key]
            assert (mine.dtype, mine.shape, mine.stride()) == (value.dtype, value.shape, value.stride()), key
            torch.testing.assert_close(mine, value, **tolerance, equal_nan=True)


@each_dtype
@each_kwargs
@pytest.mark.parametrize("shapes", [SHAPES, LARGE], ids=["small", "large"])
def test_eight_steps_agree_with_torch(kwargs, dtype, shapes):
    ours = drawn(shapes, dtype)
    theirs = clone(ours)
    a, b = oxistep.optim.Adafactor(ours, **kwargs), torch.optim.Adafactor(theirs, foreach=False, **kwargs)
    with torch_updates_raise():
        train(a, ours)
    train(b, theirs)
    assert_close(a, ours, b, theirs, CLOSE[dtype])
    assert {row.path for row in oxistep.explain(a)} == {"native"}


@pytest.mark.parametrize("shape", [(129, 70), (300, 301), (200,), (40, 30, 3, 3)], ids=str)
def test_mean_error_is_not_above_torchs(shape):
    errors = {}
    for seed in range(10):
        runs = []
        for optim, dtype in (
            (torch.optim, torch.float64),
            (oxistep.optim, torch.float32),
            (torch.optim, torch.float32),
        ):
            params = [p.detach().to(dtype).requires_grad_() for p in drawn([shape], torch.float32, seed)]
            optimizer = optim.Adafactor(params, foreach=False)
            for step in range(20):
                generator = torch.Generator().manual_seed(31 * seed + step)
                params[0].grad = torch.randn(shape, generator=generator).to(dtype)
                optimizer.step()
            runs.append({"parameter": params[0].detach(), **optimizer.state[params[0]]})
        exact, *judged = runs
        for key in exact.keys() - {"step"}:
            for who, run in zip(("ours", "torch"), judged, strict=True):
                error = (run[key].double() - exact[key]).abs().mean().item()
                errors[key, who] = errors.get((key, who), 0.0) + error
    for key, _ in errors:
        assert 0 < errors[key, "ours"] <= 1.02 * errors[key, "torch"], (key, errors)


@pytest.fixture
def restored():
    level, threads = oxistep.cpu_features()["simd"], torch.get_num_threads()
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_bits_do_not_depend_on_threads_level_or_order(dtype, restored):
    def run(order=1):
        params = drawn(SHAPES + LARGE, dtype)
        optimizer = oxistep.optim.Adafactor(params[::order], weight_decay=0.1)
        train(optimizer, params, 3)
        return [p.detach() for p in params] + [v for p in params for v in optimizer.state[p].values()]

    def assert_same(a, b):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    expected = run()
    assert all(t.isfinite().all() for t in expected)
    for level in oxistep.cpu_features()["available"]:
        _core.force_simd(level)
        assert_same(run(), expected)
    for threads in (1, 2, 3):
        oxistep.set_num_threads(threads)
        assert_same(run(), expected)
    oxistep.set_num_threads(None)
    torch.set_num_threads(1)
    assert_same(run(order=-1), expected)


# ---- eps[0] is None: the epsilon of the first parameter with a gradient, for its whole group ----

MIXED = {
    "wide first": (torch.float32, torch.bfloat16, torch.float64),
    "narrow first": (torch.bfloat16, torch.float32, torch.float64),
}


@pytest.mark.parametrize("strided", [None, 0, 1], ids=["all native", "first is torch's", "second is torch's"])
@pytest.mark.parametrize("dtypes", MIXED.values(), ids=list(MIXED))
def test_eps_of_a_group_of_mixed_dtypes(dtypes, strided):
    def run(optim):
        generator = torch.Generator().manual_seed(5)
        params = [torch.ones(4, 3, dtype=torch.float32).requires_grad_()]  # without a gradient: asked nothing
        for k, dtype in enumerate(dtypes):
            values = torch.randn(6, 6, generator=generator).to(dtype)
            params.append((values.t() if k == strided else values).requires_grad_())
        other = torch.ones(6, requires_grad=True)
        optimizer = optim.Adafactor([{"params": params}, {"params": [other]}])
        for _ in range(3):
            for p in params[1:] + [other]:  # so small that the epsilon decides
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator) * 1e-4)
            optimizer.step()
        if optim is oxistep.optim:
            paths = [row.path for row in oxistep.explain(optimizer)]
            assert paths == ["skipped"] + ["torch" if k == strided else "native" for k in range(3)] + ["native"]
        return [p.detach().double() for p in params] + [other.detach().double()]

    for ours, theirs, dtype in zip(run(oxistep.optim), run(torch.optim), (None, *dtypes, None), strict=True):
        size = 2e-2 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=size, atol=size)


# ---- what is torch's ----

NOT_CONTIGUOUS = {
    "transposed": lambda: (torch.ones(5, 6).t(), torch.ones(6, 5), "parameter"),
    "transposed gradient": lambda: (torch.ones(6, 5), torch.ones(5, 6).t(), "gradient"),
    "column": lambda: (torch.ones(7, 3)[:, 1], torch.ones(7), "parameter"),
    "channels last": lambda: (
        *(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in "pg"),
        "parameter",
    ),
}


@pytest.mark.parametrize("layout", NOT_CONTIGUOUS)
def test_what_is_not_contiguous_is_torchs(layout):
    def run(optim):
        p, grad, what = NOT_CONTIGUOUS[layout]()
        generator = torch.Generator().manual_seed(2)
        plain = torch.ones(5, requires_grad=True)
        p.grad, plain.grad = grad.copy_(torch.randn(grad.shape, generator=generator)), torch.ones(5)
        optimizer = optim.Adafactor([p.requires_grad_(), plain])
        if optim is oxistep.optim:
            rows = oxistep.explain(optimizer)
            assert [row.path for row in rows] == ["torch", "native"]
            assert what in rows[0].reason
            assert "not contiguous" in rows[0].reason
        optimizer.step()
        optimizer.step()
        return p.detach(), optimizer.state[p], plain.detach()

    ours, theirs = run(oxistep.optim), run(torch.optim)
    assert torch.equal(ours[0], theirs[0])
    assert {k: v.stride() for k, v in ours[1].items()} == {k: v.stride() for k, v in theirs[1].items()}
    torch.testing.assert_close(ours[2], theirs[2])


def sparse():
    p = torch.ones(4, 3, requires_grad=True)
    p.grad = torch.eye(4, 3).to_sparse()
    return p


def imaginary():
    p = torch.ones(4, dtype=torch.complex64, requires_grad=True)
    p.grad = torch.ones(4, dtype=torch.complex64)
    return p


@pytest.mark.parametrize("refused", [sparse, imaginary])
@pytest.mark.parametrize("strided", [False, True], ids=["others native", "others torch's"])
def test_nothing_is_written_before_a_refusal(refused, strided):
    """torch has by then updated the groups before; ours has not, whoever would update them."""
    first = torch.ones(3, 4).t() if strided else torch.ones(4, 3)
    first.requires_grad_().grad = torch.ones(4, 3)
    wrong = refused()
    optimizer = oxistep.optim.Adafactor([{"params": [first]}, {"params": [wrong]}])
    ours = outcome(optimizer.step)
    assert ours == outcome(torch.optim.Adafactor([refused()]).step)
    assert ours[0] is RuntimeError
    assert torch.equal(first, torch.ones(4, 3))
    assert not optimizer.state


def test_nothing_is_written_if_torchs_part_raises():
    plain, odd = drawn([(5, 4), (4, 5)], torch.float32)
    before = plain.detach().clone()
    plain.grad, odd.grad = torch.ones(5, 4), torch.ones(4, 5)
    optimizer = oxistep.optim.Adafactor([plain, odd])
    optimizer.step()
    saved, kept = copy.deepcopy(optimizer.state[plain]), plain.detach().clone()
    optimizer.state[odd]["row_var"] = torch.zeros(3)  # fits nothing
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert torch.equal(plain, kept)
    assert not torch.equal(plain, before)
    assert all(torch.equal(value, saved[key]) for key, value in optimizer.state[plain].items())


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 0, 3)], ids=str)
def test_an_empty_parameter_has_its_step_counted(shape):
    """torch's for-loop divides by its number of elements."""
    empty, other = torch.zeros(shape, requires_grad=True), torch.ones(3, requires_grad=True)
    empty.grad, other.grad = torch.zeros(shape), torch.ones(3)
    optimizer = oxistep.optim.Adafactor([empty, other])
    assert [row.path for row in oxistep.explain(optimizer)] == ["native", "native"]
    optimizer.step()
    assert optimizer.state[empty]["step"] == 1
    assert all(value.isfinite().all() for value in optimizer.state[empty].values())
    assert not torch.equal(other, torch.ones(3))


@each_dtype
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("shape", [(7,), (5, 4), (300, 301)], ids=str)
def test_odd_gradients_and_parameters_go_where_torch_takes_them(dtype, odd, shape):
    for where in ("gradient", "parameter"):
        ours = drawn([shape], dtype)
        theirs = clone(ours)
        a, b = oxistep.optim.Adafactor(ours), torch.optim.Adafactor(theirs, foreach=False)
        for optimizer, (p,) in ((a, ours), (b, theirs)):
            p.grad = torch.ones(shape, dtype=dtype) if odd else torch.zeros(shape, dtype=dtype)
            target = p.grad if where == "gradient" else p.detach()
            target.view(-1)[2] = odd
            optimizer.step()
            optimizer.step()
        assert_close(a, ours, b, theirs, CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_checkpoints_of_half_types_go_both_ways(dtype):
    ours = drawn([(9, 8), (5,)], dtype)
    a = oxistep.optim.Adafactor(ours)
    train(a, ours, 3)
    theirs = clone(ours)
    b = torch.optim.Adafactor(theirs)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    back = clone(theirs)
    c = oxistep.optim.Adafactor(back)
    c.load_state_dict(copy.deepcopy(b.state_dict()))
    for optimizer, params in ((a, ours), (b, theirs), (c, back)):
        train(optimizer, params, 1, start=3)
    assert all(torch.equal(p, q) for p, q in zip(ours, back, strict=True))
    assert_close(a, ours, b, theirs, {"rtol": 2**-6, "atol": 2**-6})


def test_a_step_makes_nothing_of_the_parameters_size():
    p = torch.ones(600, 600, requires_grad=True)
    p.grad = torch.ones(600, 600)
    optimizer = oxistep.optim.Adafactor([p])
    optimizer.step()
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        optimizer.step()
    assert max((event.self_cpu_memory_usage for event in profile.key_averages()), default=0) < p.numel()
