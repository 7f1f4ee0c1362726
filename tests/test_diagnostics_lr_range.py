"""`lr_range_test`: a sensible suggestion, and everything put back bit for bit."""

import copy
import math
import random

import numpy as np
import pytest
import torch

import oxistep
import oxistep.numpy as onp
import oxistep.optim
from oxistep.diagnostics import LRRange, lr_range_test

LIBRARIES = pytest.mark.parametrize("library", [oxistep.optim, torch.optim], ids=["oxistep", "torch"])


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
    )


def convex():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(5, affine=False), torch.nn.Linear(5, 1))


def closure_of(model, optimizer, noise=1.0):
    """All three generators of numbers are asked at each call, whatever `noise` makes of their answers."""
    fixed = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))

    def closure():
        optimizer.zero_grad()
        x = torch.randn(32, 5) + torch.as_tensor(np.random.normal(size=5), dtype=torch.float32) * random.random()
        x = noise * x + (1 - noise) * fixed
        loss = (model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()
        loss.backward()
        return loss

    return closure


def bits(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def everything(model, optimizer):
    grads = [None if p.grad is None else bits(p.grad) for p in model.parameters()]
    numbers = (bits(torch.get_rng_state()), bits(np.random.get_state()), random.getstate())
    return copy.deepcopy((bits(model.state_dict()), bits(optimizer.state_dict()), grads, numbers))


@LIBRARIES
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adam", {"lr": 0.02}),
        ("AdamW", {"lr": torch.tensor(0.02)}),
        ("LBFGS", {"lr": 0.1, "max_iter": 4}),
    ],
)
def test_everything_is_put_back(library, name, keywords, steps_before):
    # L-BFGS takes what differs between two closures for curvature. Of noise it makes steps of any length, and whether
    # they end at NaN is a matter of last digits. A convex loss that stays the same leaves nothing to them.
    lbfgs = name == "LBFGS"
    model = convex() if lbfgs else network()
    keywords = copy.deepcopy(keywords)
    optimizer = getattr(library, name)(model.parameters(), **keywords)
    closure = closure_of(model, optimizer, noise=0.0 if lbfgs else 1.0)
    for _ in range(steps_before):
        optimizer.step(closure)
    tensors = {id(p): p.grad for p in model.parameters()}
    states = {key: dict(value) for key, value in optimizer.state.items()}
    before = everything(model, optimizer)
    found = lr_range_test(closure, optimizer, model=model, lr_min=1e-4, lr_max=1.0, steps=12, divergence=1e9)
    assert len(found.rates) > 3
    assert everything(model, optimizer) == before
    # the very same objects, too
    assert all(p.grad is tensors[id(p)] for p in model.parameters())
    assert optimizer.state.keys() == states.keys()
    for key, value in optimizer.state.items():
        assert all(value[name] is states[key][name] for name in value)
    if isinstance(keywords.get("lr"), torch.Tensor):
        assert optimizer.param_groups[0]["lr"] is keywords["lr"]
    # and training goes on as if nothing had been
    assert all(math.isfinite(optimizer.step(closure).item()) for _ in range(3))


@LIBRARIES
def test_training_goes_on_as_without_the_test(library):
    def losses(tested):
        model = network()
        np.random.seed(3)
        random.seed(4)
        optimizer = library.Adam(model.parameters(), lr=0.01)
        closure = closure_of(model, optimizer)
        found = [optimizer.step(closure).item() for _ in range(3)]
        if tested:
            lr_range_test(closure, optimizer, model=model, steps=20)
        return found + [optimizer.step(closure).item() for _ in range(5)]

    assert losses(True) == losses(False)


def test_put_back_when_the_closure_raises():
    model = network()
    optimizer = oxistep.Adam(model.parameters())
    inner = closure_of(model, optimizer)
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("on purpose")
        return inner()

    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match="on purpose"):
        lr_range_test(closure, optimizer, model=model)
    assert everything(model, optimizer) == before


def test_numpy_optimizers():
    rng = np.random.default_rng(0)
    w = np.full(10, 5.0)
    optimizer = onp.Adam([w], lr=lambda step: 0.1)
    optimizer.step([w.copy()])
    before = bits(optimizer.state_dict()), bits(w), optimizer.param_groups[0]["lr"], bits(rng.bit_generator.state)

    def closure():
        noise = rng.normal(size=10)
        return float((w**2).sum()), [2 * w + 1e-3 * noise]

    found = lr_range_test(closure, optimizer, lr_min=1e-3, lr_max=10.0, generators=[rng])
    after = bits(optimizer.state_dict()), bits(w), optimizer.param_groups[0]["lr"], bits(rng.bit_generator.state)
    assert after == before
    assert found.suggestion is not None
    optimizer.step([w.copy()])
    assert optimizer.step_count == 2


@pytest.mark.parametrize("of", ["torch", "numpy", "python"])
def test_generators_are_put_back(of):
    generator = {"torch": torch.Generator(), "numpy": np.random.default_rng(0), "python": random.Random(0)}[of]
    draw = {
        "torch": lambda: torch.rand(1, generator=generator).item(),
        "numpy": lambda: generator.random(),
        "python": lambda: generator.random(),
    }[of]
    expected = copy.deepcopy(generator) if of != "torch" else torch.Generator()
    if of == "torch":
        expected.set_state(generator.get_state())
    found = lr_range_test(lambda lr: 1.0 + draw(), generators=[generator], steps=5)
    assert len(found.losses) == 5
    first = draw()
    assert first == (torch.rand(1, generator=expected).item() if of == "torch" else expected.random())


def quadratic(lr, curvature=2.0):
    w = torch.full((20,), 3.0, requires_grad=True)
    optimizer = oxistep.SGD([w], lr=lr)

    def closure():
        optimizer.zero_grad()
        loss = curvature / 2 * (w * w).sum()
        loss.backward()
        return loss

    return closure, optimizer


@pytest.mark.parametrize("curvature", [0.2, 2.0, 20.0])
def test_the_suggestion_scales_as_theory_says(curvature):
    """Gradient descent diverges beyond 2 / curvature; the suggestion lies below, by less than a factor of 50."""
    closure, optimizer = quadratic(0.1, curvature)
    found = lr_range_test(closure, optimizer, lr_min=1e-5, lr_max=1e3, steps=200)
    limit = 2 / curvature
    assert limit / 50 < found.suggestion < limit
    assert found.diverged_at > limit
    assert found.rates[-1] == found.diverged_at < 1e3
    assert np.isclose(found.rates[1:] / found.rates[:-1], (1e3 / 1e-5) ** (1 / 199)).all()


def test_groups_keep_their_proportions():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}])
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = (a * a + b * b).sum()
        loss.backward()
        seen.append([group["lr"] for group in optimizer.param_groups])
        return loss

    found = lr_range_test(closure, optimizer, lr_max=1e-2, steps=10)
    assert np.allclose([first for first, _ in seen], found.rates, rtol=1e-12)
    assert np.allclose([first / second for first, second in seen], 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_the_smoothed_loss_is_the_corrected_average():
    losses = iter([4.0, 2.0, 3.0])
    found = lr_range_test(lambda lr: next(losses), steps=3, smoothing=0.5)
    assert found.smoothed.tolist() == pytest.approx([4.0, (1 + 1) / 0.75, (0.5 + 0.5 + 1.5) / 0.875])
    unsmoothed = iter([4.0, 2.0, 3.0])
    found = lr_range_test(lambda lr: next(unsmoothed), steps=3, smoothing=0)
    assert found.smoothed.tolist() == [4.0, 2.0, 3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_divergence_ends_the_test(bad):
    losses = iter([3.0, 2.0, 1.0, bad, 0.0])
    found = lr_range_test(lambda lr: next(losses), steps=5)
    assert len(found.rates) == 4
    assert found.diverged_at == found.rates[-1]


def test_no_suggestion_where_the_loss_does_not_fall():
    assert lr_range_test(lambda lr: 1.0).suggestion is None
    assert lr_range_test(lambda lr: 1.0 + lr).suggestion is None
    assert lr_range_test(lambda lr: math.nan).suggestion is None
    assert (
        lr_range_test(lambda lr: -1.0 - math.tanh(lr), lr_max=1.0).suggestion is not None
    )  # negative losses fall, too


def test_rows_and_text():
    found = lr_range_test(lambda lr: 1.0 / (1 + 100 * lr), steps=40)
    assert isinstance(found, LRRange)
    assert found.rows()[0] == {"rate": 1e-6, "loss": found.losses[0], "smoothed": found.smoothed[0]}
    assert "40 steps, no divergence, suggests lr = " in str(found)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "text"),
    [
        (
            (lambda: 1.0, 3),
            {},
            TypeError,
            "expected an optimizer of oxistep.optim, torch.optim or oxistep.numpy, got int",
        ),
        ((3,), {}, TypeError, "closure: expected a function, got int"),
        ((lambda lr: "x",), {}, TypeError, "expected a loss, a single number, got str"),
        ((lambda lr: None,), {}, TypeError, "expected a loss, a single number, got NoneType"),
        ((lambda lr: 1.0,), {"lr_min": 0}, ValueError, "lr_min: expected a number above 0"),
        (
            (lambda lr: 1.0,),
            {"lr_min": 1, "lr_max": 1},
            ValueError,
            "lr_max: expected a finite number above lr_min = 1",
        ),
        ((lambda lr: 1.0,), {"lr_max": math.inf}, ValueError, "lr_max"),
        ((lambda lr: 1.0,), {"steps": 1}, ValueError, "steps: expected at least 2, got 1"),
        ((lambda lr: 1.0,), {"smoothing": 1.0}, ValueError, "smoothing"),
        ((lambda lr: 1.0,), {"divergence": 1.0}, ValueError, "divergence: expected a number above 1"),
        ((lambda lr: 1.0,), {"generators": [3]}, TypeError, "generators: expected torch.Generator"),
    ],
)
def test_wrong_arguments(arguments, keywords, error, text):
    with pytest.raises(error, match=text):
        lr_range_test(*arguments, **keywords)


def test_numpy_closures_return_a_pair():
    w = np.ones(2)
    optimizer = onp.SGD([w], lr=0.1)
    with pytest.raises(TypeError, match=r"it must return \(loss, gradients\)"):
        lr_range_test(lambda: 1.0, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("seed", range(20))
def test_scatter_is_not_taken_for_a_fall(seed):
    """Of losses that only scatter the smoothed one wanders up and down: no rate follows from that."""
    rng = np.random.default_rng(seed)
    noise = lambda lr: 1.0 + 0.3 * rng.standard_normal()  # noqa: E731
    assert lr_range_test(noise, divergence=1e9).suggestion is None


@pytest.mark.parametrize("seed", range(20))
def test_a_fall_is_found_in_scatter(seed):
    rng = np.random.default_rng(seed)
    falls = lambda lr: 3.0 - 2.0 / (1 + 0.01 / lr) + (1e3 if lr > 2 else 0.0) + 0.1 * rng.standard_normal()  # noqa: E731
    found = lr_range_test(falls)
    assert found.suggestion is not None and 0.003 < found.suggestion < 0.2  # half of it has fallen at 0.01
