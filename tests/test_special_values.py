"""NaN, infinities, zeros of either sign, the largest and smallest numbers: what torch's for-loop makes of them."""

import pytest
import torch

from optimizers import CASES
from scenarios import params_of

DTYPES = [torch.float32, torch.float64]


def special(dtype, n, generator):
    info = torch.finfo(dtype)
    # the square roots: their squares overflow and vanish
    sizes = [0.0, 0.5, 1.0, 3.0, float("inf"), info.max, info.max**0.5 * 2]
    sizes += [info.tiny, info.tiny**0.5, info.tiny / 4]
    values = torch.tensor([float("nan"), *sizes, *(-x for x in sizes)], dtype=dtype)
    return values[torch.randint(len(values), (n,), generator=generator)]


def kind(x):
    """0 for a finite number, 1 and -1 for the infinities, 2 for NaN."""
    return torch.where(x.isnan(), 2, torch.where(x.isinf(), x.sign(), 0)).to(torch.int8)


def states_of(optimizer):
    (p,) = params_of(optimizer)
    return {"parameter": p.detach()} | optimizer.state.get(p, {})


def assert_alike(ours, theirs, told):
    ours, theirs = states_of(ours), states_of(theirs)
    assert ours.keys() == theirs.keys()
    for key, b in theirs.items():
        if b is None:
            continue
        a = ours[key]
        bad = kind(a) != kind(b)
        assert not bad.any(), f"{told}, {key}: ours {a[bad][:5]}, torch's {b[bad][:5]}"
        exact = {"rtol": 0.0, "atol": 0.0} if a.dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(a, b, equal_nan=True, **exact, msg=lambda m, key=key: f"{told}, {key}: {m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_special_values_anywhere(case, dtype, ieee_sqrt, fused_adds):
    n = 300
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        start = special(dtype, n, generator)
        ours, theirs = (
            c([start.clone().requires_grad_()], **case.kwargs, foreach=False) for c in (case.ours, case.theirs)
        )
        for step in range(5):
            grad = torch.randn(n, generator=generator, dtype=dtype) if step == 0 else special(dtype, n, generator)
            for optimizer in (ours, theirs):
                (p,) = params_of(optimizer)
                p.grad = grad.clone()
                if step in (2, 4):  # whatever stands in parameter and states
                    again = torch.Generator().manual_seed(100 * seed + step)
                    for value in states_of(optimizer).values():
                        if value is not None and value.dim():
                            value.copy_(special(dtype, n, again))
                optimizer.step()
            assert_alike(ours, theirs, f"seed {seed}, step {step}")
