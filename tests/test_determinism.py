"""The same bits for any number of threads, SIMD level and order of parameters."""

import functools
import itertools

import pytest
import torch

import oxistep
from optimizers import CASES
from oxistep import _core

SHAPES = [(), (5,), (64,), (1000, 7), (300_000,), (63,), (17, 33), (150_001,)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def restored():
    """Leaves threads and SIMD level as they were."""
    level = oxistep.cpu_features()["simd"]
    threads = torch.get_num_threads()
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)
    torch.set_num_threads(threads)


@functools.cache
def drawn(dtype):
    """Values of parameters, and of their gradients for three steps. To draw them takes longer than the steps."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(s, generator=generator).to(dtype) for s in SHAPES]
    steps = [[(torch.randn(s, generator=generator) * 3).to(dtype) for s in SHAPES] for _ in range(3)]
    for grad in itertools.chain(*steps):
        if grad.numel() > 60:
            grad.view(-1)[:4] = torch.tensor([float("inf"), 0.0, -0.0, 1e-40]).to(dtype)
    return values, steps


def run(case, dtype, order=1):
    """All parameters and states after three steps, as integers, so that NaN equals itself."""
    values, steps = drawn(dtype)
    params = [value.clone().requires_grad_() for value in values]
    optimizer = case.ours(params[::order], **case.kwargs)
    for grads in steps:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        optimizer.step()
    values = [p.detach() for p in params] + [v for p in params for v in optimizer.state[p].values()]
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    return [torch.nan_to_num(v, nan=12345.0).view(integers[v.element_size()]) for v in values]


def assert_same(a, b):
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bits_do_not_depend_on_threads_level_or_order(case, dtype):
    expected = run(case, dtype)
    for level in oxistep.cpu_features()["available"]:
        _core.force_simd(level)
        assert_same(run(case, dtype), expected)
    for threads in (1, 2, 3):
        oxistep.set_num_threads(threads)
        assert oxistep.get_num_threads() == threads
        assert_same(run(case, dtype), expected)
    oxistep.set_num_threads(None)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert oxistep.get_num_threads() == threads
        assert_same(run(case, dtype), expected)
    assert_same(run(case, dtype, order=-1), expected)


def test_unknown_levels_and_thread_counts_are_refused():
    with pytest.raises(ValueError, match="expected a SIMD level of this processor"):
        _core.force_simd("mmx")
    for wrong in (0, -1, 2**70):
        with pytest.raises(ValueError, match=f"n: expected a positive number of threads or None.* got {wrong}"):
            oxistep.set_num_threads(wrong)
    with pytest.raises(TypeError, match=r"n: expected a positive number of threads or None.* got float"):
        oxistep.set_num_threads(2.0)


def test_flush_denormal_reaches_the_workers():
    """`torch.set_flush_denormal` is per thread; every element must see the caller's mode."""
    tiny = torch.full((400_000,), 1e-39)
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        p = torch.zeros(400_000, requires_grad=True)
        p.grad = tiny
        oxistep.optim.SGD([p], lr=1.0).step()
    finally:
        torch.set_flush_denormal(False)
    assert (p == 0).all()
    p.grad = tiny
    oxistep.optim.SGD([p], lr=1.0).step()
    assert (p != 0).all()
