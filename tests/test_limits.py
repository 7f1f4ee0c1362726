"""Numbers at their limits: hyperparameters from tiny to huge, counters that a float32 cannot count on, denormal
elements, and tensors of more elements than 32 bits can number."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import brief
import oxistep.numpy
import oxistep.optim
from scenarios import NATIVE, make, params_of, set_gradients
from test_unusual_numbers import USUAL

DTYPES = [torch.float32, torch.float64]
# Of Adafactor the last places differ, and where torch's sums in float32 overflow ours in float64 do not.
ELEMENT_WISE = [name for name in USUAL if name != "Adafactor"]


def compare(ours, theirs, told):
    """To the bit in float32, where torch's square root is IEEE's; in float64 but for the last places of `pow`."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        pairs = [("parameter", p.detach(), q.detach())]
        pairs += [(key, ours.state[p][key], value) for key, value in theirs.state[q].items()]
        for key, a, b in pairs:
            if b is None:
                continue
            exact = {"rtol": 0.0, "atol": 0.0} if a.dtype == torch.float32 else {"rtol": 1e-12, "atol": 0.0}
            torch.testing.assert_close(a, b, equal_nan=True, **exact, msg=lambda m, key=key: f"{told}, {key}: {m}")


def elements(dtype):
    """Ordinary numbers, zeros of either sign, denormals, the largest and the smallest."""
    info = torch.finfo(dtype)
    sizes = [0.0, 1.0, 0.5, 3e-5, info.tiny, info.tiny / 2, info.tiny / 1024, info.max, info.max**0.5, info.eps]
    return torch.tensor([x * sign for x in sizes for sign in (1, -1)], dtype=dtype)


LIMITS = {
    "lr": [0.0, 1e-30, 1e-8, 1.0, 1e6],
    "eps": [0.0, 1e-30, 1e-16, 1.0],
    "weight_decay": [0.0, 1e-20, 1.0, 1e4],
    "betas": [(0.0, 0.0), (0.0, 0.999), (0.9, 0.0), (1 - 1e-7, 1 - 1e-7), (1 - 2**-50, 1 - 2**-50), (0.9, 1 - 2**-24)],
    "momentum": [0.0, 1 - 2**-24, 1.0, 1e-30],
    "dampening": [0.0, 1.0, -1.0],
    "alpha": [0.0, 1 - 2**-24, 1e-30],
    "rho": [0.0, 1 - 2**-24, 1.0],
    "lr_decay": [0.0, 1e-20, 1e6],
    "lambd": [0.0, 1e-20, 1.0],
    "t0": [0.0, 1e6],
    "momentum_decay": [0.0, 1e-20, 1.0],
    "etas": [(1e-6, 1e6), (0.999999, 1.000001)],
    "step_sizes": [(0.0, 0.0), (1e-30, 1e30)],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_hyperparameters_from_tiny_to_huge(name, dtype, ieee_sqrt, fused_adds):
    tried = 0
    for key in USUAL[name]:
        for value in LIMITS[key]:
            kwargs = {**USUAL[name], key: value}
            ours, theirs = (
                getattr(optim, name)([elements(dtype).clone().requires_grad_()], foreach=False, **kwargs)
                for optim in (oxistep.optim, torch.optim)
            )
            for step in range(3):
                gradient = elements(dtype)[torch.randperm(20, generator=torch.Generator().manual_seed(step))]
                failed = []
                for optimizer in (ours, theirs):
                    params_of(optimizer)[0].grad = gradient.clone()
                    try:
                        optimizer.step()
                    except (ArithmeticError, RuntimeError) as error:
                        failed.append(type(error))
                if failed:
                    assert len(failed) == 2 and failed[0] is failed[1], (key, value, failed)
                    break
                compare(ours, theirs, f"{key}={value}, step {step}")
            tried += 1
    assert tried > 6


COUNTERS = [2**23 - 1, 2**24 - 2, 2**24 - 1, 2**24, 2**24 + 2, 2**25, 2**31 - 1, 2**40]


@pytest.mark.parametrize("default", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in NATIVE if name != "SGD"])
def test_counters_beyond_what_a_float32_can_count(name, default, ieee_sqrt, fused_adds):
    """A float32 counter stops at 2**24, torch's and ours: adding one rounds back. In float64 it goes on."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for count in COUNTERS:
            ours, theirs = (
                make(optim, name, [torch.linspace(-1, 1, 12, dtype=torch.float32).reshape(4, 3).requires_grad_()])
                for optim in (oxistep.optim, torch.optim)
            )
            for step in range(3):
                for optimizer in (ours, theirs):
                    set_gradients(params_of(optimizer), step)
                    optimizer.step()
                    if step == 0:
                        optimizer.state[params_of(optimizer)[0]]["step"].fill_(float(count))
                a, b = (o.state[params_of(o)[0]]["step"] for o in (ours, theirs))
                assert a.dtype == b.dtype == default
                assert a.item() == b.item()
                if default == torch.float32 and (count == 2**24 or count >= 2**25) and step:
                    assert a.item() == torch.tensor(float(count)).item()
                if name != "Adafactor":
                    p, q = params_of(ours)[0], params_of(theirs)[0]
                    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, equal_nan=True)
    finally:
        torch.set_default_dtype(before)


def test_a_counter_of_numpys_stops_there_too():
    w = np.ones(3, np.float32)
    optimizer = oxistep.numpy.Adam([w], lr=0.1)
    optimizer.step([np.ones(3, np.float32)])
    optimizer.state[0][0]["step"][...] = 2**24
    optimizer.step([np.ones(3, np.float32)])
    assert optimizer.state[0][0]["step"] == 2**24
    assert optimizer.step_count == 2
    assert np.isfinite(w).all()


def test_python_counters_of_sparse_adam_go_on():
    table = torch.zeros(4, 2, requires_grad=True)
    optimizer = oxistep.optim.SparseAdam([table], lr=0.1)
    for k in range(3):
        table.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
        optimizer.step()
        if k == 0:
            optimizer.state[table]["step"] = 2**24
    assert optimizer.state[table]["step"] == 2**24 + 2


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "RMSprop"])
def test_denormal_everything(name, ieee_sqrt, fused_adds):
    """Gradients, parameters and learning rate so small that nearly every product is denormal."""
    tiny = torch.finfo(torch.float32).tiny
    start = torch.tensor([tiny / k for k in (1, 2, 3, 7, 1000, 8388607)] * 3)
    pairs = []
    for optim in (oxistep.optim, torch.optim):
        p = start.clone().requires_grad_()
        pairs.append(make(optim, name, [p], lr=1e-3))
    for step, optimizer in itertools.product(range(4), pairs):
        p = params_of(optimizer)[0]
        p.grad = start.flip(0) * (step + 1)
        optimizer.step()
    compare(*pairs, name)


# ---- more elements than 32 bits can number ----


def available_memory():
    """Bytes, or 0 where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


MANY = 2**31 + 3 * 65536 + 5
needs_memory = pytest.mark.skipif(available_memory() < 10 * 2**30, reason="needs 10 GiB of memory that is free")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.whole  # the brief run has positions that need 64 bits, in the last test here
@needs_memory
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_more_than_two_to_the_31_elements(dtype):
    """Parameter and gradient of 4 GiB each. The gradient is one element, expanded, but where the places are looked at:
    elements on either side of what an int32 can number, and the last."""
    looked_at = [0, 1, 65535, 65536, 2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, MANY - 65536, MANY - 2, MANY - 1]
    p = torch.zeros(MANY, dtype=dtype).requires_grad_()
    p.grad = torch.ones(MANY, dtype=dtype)
    with torch.no_grad():
        for k, place in enumerate(looked_at):
            p.grad[place] = k + 2.0
    optimizer = oxistep.optim.SGD([p], lr=0.5)
    optimizer.step()
    values = p.detach()
    for k, place in enumerate(looked_at):
        assert values[place].item() == -0.5 * (k + 2), place
        values[place] = -0.5
    # in pieces: a comparison of the whole would need as much memory again
    for piece in values.split(2**27):
        assert bool((piece == -0.5).all())
    norm = oxistep.get_total_norm([p.grad])
    assert norm.dtype == dtype
    p.grad = None


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.whole  # the loops are those of the test before
@needs_memory
def test_more_than_two_to_the_31_elements_of_numpys():
    w = np.zeros(MANY, np.float16)
    gradient = np.ones(MANY, np.float16)
    gradient[[2**31 - 1, 2**31, MANY - 1]] = [2, 3, 4]
    oxistep.numpy.SGD([w], lr=0.5).step([gradient])
    assert w[[0, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, MANY - 1]].tolist() == [-0.5, -0.5, -1, -1.5, -0.5, -2]
    w[[2**31 - 1, 2**31, MANY - 1]] = -0.5
    assert all((piece == -0.5).all() for piece in np.array_split(w, 20))


@pytest.mark.alone
@pytest.mark.slow
@needs_memory
def test_more_than_two_to_the_31_bytes_between_elements():
    """A strided parameter whose positions need 64 bits."""
    base = torch.from_numpy(np.zeros(MANY, np.float16))  # NumPy asks for zeros, torch would write them
    p = base[:: 2**30].requires_grad_()
    assert p.numel() == 3
    p.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16)
    oxistep.optim.SGD([p], lr=1.0).step()
    assert base[:: 2**30].tolist() == [-1.0, -2.0, -3.0]
    # all of it is four gigabytes to read
    parts = [base[at:][: 2**16] for at in (0, 2**30, 2**31)] if brief.ASKED else [base]
    assert sum(int(part.count_nonzero()) for part in parts) == 3
