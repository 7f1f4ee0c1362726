"""Ours beside torch's for-loop: same parameters, same states."""

import numpy as np
import pytest
import torch

from optimizers import CASES, TUTORIAL_RULES, Case
from reach import Reach

# What the project promises for a hundred steps; nearly all cases meet it with no difference at all.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
SHAPES = [(), (1,), (7,), (64,), (33, 5), (129, 70), (3, 4, 5, 6), (0,), (140_001,)]


def pair(case: Case, dtype: torch.dtype, shapes=SHAPES, seed=0, **extra):
    """Our optimizer and torch's for-loop, from equal parameters."""
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    return case.ours(ours, **case.kwargs, **extra), case.theirs(theirs, **case.kwargs, foreach=False), generator


def params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def draw_gradients(a, b, generator):
    """The same gradient for both, of sizes that differ from step to step."""
    for p, q in zip(params(a), params(b), strict=True):
        size = 10.0 ** torch.randn((), generator=generator).item()
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * size).to(p.dtype)
        q.grad = p.grad.clone()


def differences(a, b):
    """(what, ours, torch's) for every parameter and state."""
    for i, (p, q) in enumerate(zip(params(a), params(b), strict=True)):
        yield f"parameter {i}", p.detach(), q.detach()
        assert a.state[p].keys() == b.state[q].keys()
        for key, value in a.state[p].items():
            assert value.dtype == b.state[q][key].dtype
            yield f"{key} of parameter {i}", value, b.state[q][key]


def a_hundred_steps(ours, theirs, generator, dtype):
    reach = Reach()
    for _ in range(100):
        draw_gradients(ours, theirs, generator)
        ours.step()
        theirs.step()
        for what, _, b in differences(ours, theirs):
            reach.note(what, b)
    for what, a, b in differences(ours, theirs):
        reach.assert_close(what, a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_hundred_steps_agree_with_torch(case, dtype):
    a_hundred_steps(*pair(case, dtype, shapes=SHAPES[:-1]), dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float32_equals_torch_bit_for_bit(case, ieee_sqrt, fused_adds):
    ours, theirs, generator = pair(case, torch.float32)
    for _ in range(10):
        draw_gradients(ours, theirs, generator)
        ours.step()
        theirs.step()
    for what, a, b in differences(ours, theirs):
        assert torch.equal(a, b), f"{what}: {(a - b).abs().max()}"


# Where constants of the step go through pow, which is the libm crate's on every platform, the last place may differ.
POW = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "ASGD")


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in POW], ids=lambda case: case.id)
def test_float64_equals_torch_bit_for_bit(case, ieee_sqrt, fused_adds):
    ours, theirs, generator = pair(case, torch.float64)
    for _ in range(10):
        draw_gradients(ours, theirs, generator)
        ours.step()
        theirs.step()
    for what, a, b in differences(ours, theirs):
        assert torch.equal(a, b), f"{what}: {(a - b).abs().max()}"


@pytest.mark.parametrize("case", [c for c in CASES if not c.uses_sqrt], ids=lambda case: case.id)
def test_rules_without_a_root_equal_torch_as_it_is(case, fused_adds):
    ours, theirs, generator = pair(case, torch.float32)
    for _ in range(10):
        draw_gradients(ours, theirs, generator)
        ours.step()
        theirs.step()
    assert all(torch.equal(a, b) for _, a, b in differences(ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", TUTORIAL_RULES)
def test_random_shapes(rule, dtype):
    case = TUTORIAL_RULES[rule]
    rng = np.random.default_rng(7)
    shapes = [tuple(rng.integers(1, 12, size=rng.integers(0, 5))) for _ in range(12)]
    a_hundred_steps(*pair(case, dtype, [tuple(map(int, s)) for s in shapes]), dtype)


@pytest.mark.covers(("case", "dtype"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_half_types_follow_float32_within_their_rounding(case, dtype):
    """Arithmetic is in float32: a step differs from the float32 step by roundings of what is stored."""
    kwargs = dict(case.kwargs)
    if case.name not in ("SGD", "ASGD", "Rprop"):
        kwargs["eps"] = max(kwargs.get("eps", 0.0), 1e-3)  # 1e-8 is zero in float16
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(200, generator=generator).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    a, b = case.ours([half], **kwargs), case.ours([full], **kwargs)
    ulp = 2**-8 if dtype == torch.bfloat16 else 2**-11
    for _ in range(10):
        half.grad = torch.randn(200, generator=generator).to(dtype)
        full.grad = half.grad.float()
        before = full.detach().abs()
        a.step()
        b.step()
        # one rounding of the parameter, and what rounded states add to the update
        moved = (full.detach() - before).abs() + kwargs["lr"] * 4
        assert ((half.float() - full).abs() <= ulp * full.abs() + 8 * ulp * moved + 1e-6).all()
        with torch.no_grad():  # start each step from equal values, so that errors do not pile up
            full.copy_(half.float())
        for key, value in a.state[half].items():
            b.state[full][key].copy_(value.float())
