"""Where `fused=True` of torch.optim is, or was, wrong on the CPU: ours is torch's for-loop, whatever the flag.

Each test also records what this torch's fused path does; versions differ, so nothing is asserted of it.
"""

import contextlib
import warnings

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import CLOSE, torch_updates_raise

STEPS = 3
each_flag = pytest.mark.parametrize("flags", [{}, {"fused": True}], ids=["by default", "fused"])


def values(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def play(make, step, optimizer_class, native=False, **kwargs):
    """Parameters and states after some steps of one optimizer."""
    params = make()
    optimizer = optimizer_class(params, **kwargs)
    for k in range(STEPS):
        step(params, k)
        if native:
            assert {row.path for row in oxistep.explain(optimizer)} <= {"native", "skipped"}, oxistep.explain(optimizer)
        with torch_updates_raise() if native else contextlib.nullcontext():
            optimizer.step()
    return [{"parameter": p.detach(), **optimizer.state[p]} for p in params]


def difference(got, expected):
    """What differs by more than the project allows itself, if anything."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.keys() != b.keys():
            return f"parameter {i}: states {sorted(a)}, not {sorted(b)}"
        for key, value in b.items():
            if a[key] is None and value is None:
                continue
            try:
                torch.testing.assert_close(a[key], value, **CLOSE[value.dtype])
            except (AssertionError, TypeError) as error:
                return f"{key} of parameter {i}: {error}"
    return None


def what_torchs_fused_does(scenario, name, kwargs, expected):
    """'right', 'wrong: ...' or 'raises: ...', of this torch's fused kernel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            came = play(*scenario, getattr(torch.optim, name), fused=True, **kwargs)
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    wrong = difference(came, expected)
    return f"wrong: {wrong}" if wrong else "right"


def check(record_property, scenario, name, kwargs, flags):
    """Ours against torch's for-loop; torch's fused kernel for the record (`--junit-xml`, or `-rP`)."""
    expected = play(*scenario, getattr(torch.optim, name), foreach=False, fused=False, **kwargs)
    fused = what_torchs_fused_does(scenario, name, kwargs, expected)
    record_property("torch", str(torch.__version__))
    record_property("torch's fused path", fused)
    print(f"torch {torch.__version__}, {name}(fused=True): {fused}")
    assert not (
        wrong := difference(play(*scenario, getattr(oxistep.optim, name), True, **kwargs, **flags), expected)
    ), wrong


def every_second():
    # torch's kernel reads and writes as if all elements were adjacent, which stays inside this storage
    base = torch.zeros(64, 64)
    return [base[::2, ::2].copy_(values((32, 32), 0))]


def matrix():
    return [values((16, 24), 1)]


def gradients(params, k):
    for i, p in enumerate(params):
        p.grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(values(p.shape, 10 * k + i))


def contiguous_gradients(params, k):
    for i, p in enumerate(params):
        p.grad = values(p.shape, 10 * k + i)


def transposed_gradients(params, k):
    for i, p in enumerate(params):
        p.grad = values(p.shape[::-1], 10 * k + i).t()


@each_flag
@pytest.mark.parametrize("step", [gradients, contiguous_gradients], ids=["strided gradient", "contiguous gradient"])
def test_adamw_of_a_strided_parameter(record_property, step, flags):
    check(record_property, (every_second, step), "AdamW", {"lr": 0.1}, flags)


@each_flag
@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_transposed_gradient(record_property, name, flags):
    check(record_property, (matrix, transposed_gradients), name, {"lr": 0.1}, flags)


@each_flag
@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
def test_sgd_with_momentum_and_a_layer_unfrozen_after_the_first_step(record_property, nesterov, flags):
    def step(params, k):
        contiguous_gradients(params, k)
        if k == 0:
            params[1].grad = None

    def layers():
        return [values((8, 8), 1), values((8, 8), 2)]

    kwargs = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    check(record_property, (layers, step), "SGD", kwargs, flags)


@each_flag
@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}], ids=str)
def test_sgd_in_bfloat16(record_property, kwargs, flags):
    def half():
        return [values((40, 9), 1, torch.bfloat16)]

    def step(params, k):
        params[0].grad = values((40, 9), 10 * k, torch.bfloat16)

    check(record_property, (half, step), "SGD", {"lr": 0.1, **kwargs}, flags)


@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adagrad"])
def test_the_counter_has_the_dtype_and_device_of_torchs(name, default, fused):
    def counter(optim):
        p = values((5,), 1).requires_grad_()
        optimizer = getattr(optim, name)([p], fused=fused)
        p.grad = values((5,), 2)
        optimizer.step()
        return optimizer.state[p]["step"]

    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        ours, theirs = counter(oxistep.optim), counter(torch.optim)
    finally:
        torch.set_default_dtype(before)
    assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)
    assert ours.item() == theirs.item() == 1
