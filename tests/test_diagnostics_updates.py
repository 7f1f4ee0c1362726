"""`UpdateMonitor`: norms against float64, the step's own bits, every kind of optimizer."""

import math

import numpy as np
import pytest
import torch

import oxistep
import oxistep.numpy as onp
from oxistep.diagnostics import GradientMonitor, UpdateMonitor
from scenarios import NATIVE, make
from seeing import Seeing

ELEMENTWISE = [name for name in NATIVE if name not in ("LBFGS", "Muon", "SparseAdam")]


def values(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(dtype=torch.float32):
    made = [
        values((7,), 1, dtype),
        values((30, 20), 2, dtype).t(),
        values((40, 40), 3, dtype)[::2, 1::3],
        values((150_000,), 4, dtype),
        values((3,), 5, dtype),
    ]
    return [p.requires_grad_() for p in made]


def set_gradients(params, seed, skip=(4,)):
    for k, p in enumerate(params):
        p.grad = None if k in skip else values(p.shape, 100 * seed + k, p.dtype)


def expected(before, params, factor=1.0):
    rows = []
    for old, p in zip(before, params, strict=True):
        if p.grad is None:
            rows.append([math.nan] * 3)
        else:
            update = (p.detach().double() - old.double()).norm().item()
            rows.append([update, old.double().norm().item(), factor * p.grad.double().norm().item()])
    return np.array(rows)


def recorded(monitor):
    return np.stack([monitor.values(field)[1][-1] for field in ("update", "parameter", "gradient")], axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_norms_are_those_of_float64_and_the_step_is_the_same(name, dtype):
    watched, plain = parameters(dtype), parameters(dtype)
    optimizer, other = make(oxistep.optim, name, watched), make(oxistep.optim, name, plain)
    monitor = UpdateMonitor(optimizer)
    for seed in range(3):
        before = [p.detach().clone() for p in watched]
        for params in (watched, plain):
            set_gradients(params, seed)
        optimizer.step()
        other.step()
        np.testing.assert_allclose(recorded(monitor), expected(before, watched), rtol=1e-11, equal_nan=True)
    assert len(monitor) == 3
    for a, b in zip(watched, plain, strict=True):
        assert torch.equal(a, b) or a.isnan().any()
    for p, q in zip(watched, plain, strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.state[q][key])) or value.isnan().any(), key


def test_kernels_measure_and_nothing_is_copied(monkeypatch):
    params = parameters()
    monitor = UpdateMonitor(oxistep.Adam(params))
    monkeypatch.setattr(monitor, "_copy", lambda places: pytest.fail(f"copied {places}"))
    for seed in range(2):
        set_gradients(params, seed)
        monitor._optimizer.step()
    assert len(monitor) == 2


def test_same_bits_whatever_the_threads():
    def figures(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            params = parameters()
            optimizer = oxistep.Adam(params)
            monitor = UpdateMonitor(optimizer)
            for seed in range(2):
                set_gradients(params, seed)
                optimizer.step()
            return recorded(monitor).tobytes()
        finally:
            torch.set_num_threads(before)

    assert figures(1) == figures(2) == figures(3)


@pytest.mark.parametrize("library", [oxistep.optim, torch.optim], ids=["oxistep", "torch"])
@pytest.mark.parametrize("name", ["SGD", "Adafactor", "Muon", "Adam"])
def test_any_optimizer_is_compared(library, name):
    params = [values((8, 6), 1).requires_grad_(), values((5, 4), 2).requires_grad_()]
    optimizer = getattr(library, name)(params, lr=0.1)
    monitor = UpdateMonitor(optimizer)
    set_gradients(params, 1, skip=())
    before = [p.detach().clone() for p in params]
    optimizer.step()
    np.testing.assert_allclose(recorded(monitor), expected(before, params), rtol=1e-11)


@pytest.mark.parametrize("library", [oxistep.optim, torch.optim], ids=["oxistep", "torch"])
def test_lbfgs_with_its_closure(library):
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    optimizer = library.LBFGS([w], lr=0.5, max_iter=3)
    monitor = UpdateMonitor(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    row = monitor.rows()[0]
    assert row["parameter"] == 5.0
    assert row["update"] == pytest.approx((w.detach().double() - torch.tensor([3.0, 4.0])).norm().item(), rel=1e-9)


def test_native_and_torchs_parameters_in_one_step():
    class Mine(Seeing, torch.nn.Parameter):
        pass

    params = [values((9,), 1).requires_grad_(), Mine(values((4, 4), 2)), values((3, 3), 3).requires_grad_()]
    optimizer = oxistep.AdamW([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    assert [row.path for row in oxistep.explain(optimizer)] == ["native", "torch", "native"]  # after the first backward
    monitor = UpdateMonitor(optimizer)
    for seed in range(3):
        set_gradients(params, seed, skip=())
        before = [p.detach().clone() for p in params]
        optimizer.step()
        np.testing.assert_allclose(recorded(monitor), expected(before, params), rtol=1e-11)
    assert [row.path for row in oxistep.explain(optimizer)] == ["native", "torch", "native"]


def test_sparse_rows():
    weight = values((50, 8), 1).requires_grad_()
    optimizer = oxistep.SparseAdam([weight], lr=0.1)
    monitor = UpdateMonitor(optimizer)
    before = weight.detach().clone()
    rows = torch.tensor([3, 40, 3])
    torch.nn.functional.embedding(rows, weight, sparse=True).pow(2).sum().backward()
    optimizer.step()
    named = rows.unique()
    row = monitor.rows()[0]
    assert row["update"] == pytest.approx((weight.detach() - before).double().norm().item(), rel=1e-6)
    assert row["parameter"] == pytest.approx(before[named].double().norm().item(), rel=1e-6)
    assert row["gradient"] == pytest.approx(weight.grad.to_dense().double().norm().item(), rel=1e-6)


def test_clipped_and_skipped_steps():
    params = parameters()
    optimizer = oxistep.SGD(params, lr=0.1, max_grad_norm=1.0, skip_nonfinite=True)
    monitor = UpdateMonitor(optimizer)
    set_gradients(params, 1)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    factor = 1.0 / optimizer.last_grad_norm.item()
    np.testing.assert_allclose(recorded(monitor), expected(before, params, factor), rtol=1e-5, equal_nan=True)
    rates = monitor.values("effective_lr")[1][-1]
    np.testing.assert_allclose(rates[:4], 0.1, rtol=1e-5)
    params[0].grad[0] = math.nan
    optimizer.step()
    assert len(monitor) == 1  # it was left out


def test_effective_lr_of_plain_descent_is_lr():
    w = values((1000,), 1, torch.float64).requires_grad_()
    optimizer = oxistep.SGD([w], lr=0.025)
    monitor = UpdateMonitor(optimizer, names={"w": w})
    set_gradients([w], 1)
    optimizer.step()
    row = monitor.rows()[0]
    assert row["name"] == "w"
    assert row["effective_lr"] == pytest.approx(0.025, rel=1e-12)
    assert row["ratio"] == pytest.approx(row["update"] / row["parameter"], rel=1e-15)


@pytest.mark.parametrize(
    "name", [name for name in onp.__all__ if name[0].isupper() and name not in ("Optimizer", "SparseAdam")]
)
def test_numpy_optimizers(name):
    rng = np.random.default_rng(0)
    buffer = rng.normal(size=40)
    params = {"w": rng.normal(size=(30, 10)).astype(np.float32), "even": buffer[::2], "odd": buffer[1::2]}
    copies = {key: value.copy() for key, value in params.items()}
    optimizer, other = getattr(onp, name)(params, lr=0.01), getattr(onp, name)(copies, lr=0.01)
    for one in (optimizer, other) if hasattr(optimizer, "train") else ():
        one.train()
    monitor = UpdateMonitor(optimizer)
    assert monitor.names == list(params)
    for k in range(3):
        grads = {key: rng.normal(size=value.shape).astype(value.dtype) for key, value in params.items()}
        if k == 1:
            grads["odd"] = None
        before = {key: value.astype(np.float64) for key, value in params.items()}
        optimizer.step(grads)
        other.step(grads)
        rows = monitor.rows()
        for row in rows:
            old, new, grad = before[row["name"]], params[row["name"]], grads[row["name"]]
            if grad is None:
                assert math.isnan(row["update"])
                continue
            assert row["update"] == pytest.approx(np.linalg.norm(new - old), rel=1e-11)
            assert row["parameter"] == pytest.approx(np.linalg.norm(old), rel=1e-11)
            assert row["gradient"] == pytest.approx(np.linalg.norm(grad.astype(np.float64)), rel=1e-11)
    assert all(np.array_equal(params[key], copies[key]) for key in params)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step({key: np.ones(1, value.dtype) for key, value in params.items()})
    assert len(monitor) == 3
    monitor.remove()
    optimizer.step(grads)
    assert len(monitor) == 3


def test_gradients_of_some_rows_of_an_array():
    table = np.ones((5, 2))
    optimizer = onp.SparseAdam([table], lr=0.01)
    monitor = UpdateMonitor(optimizer)
    for _ in range(2):
        before = table.copy()
        optimizer.step([(np.array([3, 1]), np.array([[3.0, 0], [0, 4]]))])
        row = monitor.rows()[-1]
        assert row["update"] == pytest.approx(np.linalg.norm(table - before), rel=1e-11)
        assert row["parameter"] == pytest.approx(np.linalg.norm(before[[1, 3]]), rel=1e-11)  # of the rows that it met
        assert row["gradient"] == pytest.approx(5.0, rel=1e-11)


def test_one_monitor_at_a_time_and_removal():
    params = parameters()
    optimizer = oxistep.Adam(params)
    monitor = UpdateMonitor(optimizer)
    with pytest.raises(ValueError, match="has a monitor already"):
        UpdateMonitor(optimizer)
    set_gradients(params, 1)
    optimizer.step()
    monitor.remove()
    monitor.remove()
    optimizer.step()
    assert len(monitor) == 1
    assert not optimizer._optimizer_step_pre_hooks
    other = UpdateMonitor(optimizer)
    optimizer.step()
    assert (len(other), len(monitor)) == (1, 1)


def test_a_step_that_raises_is_not_recorded():
    w = torch.ones(3, requires_grad=True)
    optimizer = oxistep.Adam([w])
    monitor = UpdateMonitor(optimizer)

    def closure():
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        optimizer.step(closure)
    assert len(monitor) == 0
    optimizer.step()
    assert len(monitor) == 1
    assert math.isnan(monitor.rows()[0]["update"])  # no gradient


def test_groups_added_later_are_refused_before_anything_is_written():
    w = torch.ones(3, requires_grad=True)
    optimizer = oxistep.SGD([w], lr=0.1)
    monitor = UpdateMonitor(optimizer)
    w.grad = torch.ones(3)
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    with pytest.raises(ValueError, match="the optimizer has 2 parameters now, had 1"):
        optimizer.step()
    assert torch.equal(w, torch.ones(3))
    monitor.remove()
    optimizer.step()


def test_both_monitors_beside_each_other():
    model = torch.nn.Linear(3, 2)
    optimizer = oxistep.AdamW(model.parameters(), lr=0.01)
    gradients, updates = GradientMonitor(model), UpdateMonitor(optimizer, names=model)
    gradients.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).pow(2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(gradients.values("norm")[1], updates.values("gradient")[1], rtol=1e-12)
    assert updates.names == ["weight", "bias"]
    assert "Updates of step 1" in str(updates)


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear(1, 1), [torch.ones(1)]], ids=["int", "model", "list"])
def test_what_is_no_optimizer(wrong):
    with pytest.raises(TypeError, match=r"expected an optimizer of oxistep\.optim, torch.optim or oxistep.numpy"):
        UpdateMonitor(wrong)


def test_fields():
    monitor = UpdateMonitor(oxistep.SGD([torch.ones(1)]))
    assert "no step yet" in str(monitor)
    with pytest.raises(ValueError, match="expected one of update, parameter"):
        monitor.values("norm")


def test_when_all_is_torchs(monkeypatch):
    """As under OXISTEP_BACKEND=torch, and back again."""
    from oxistep.optim import _modes

    params = parameters()
    optimizer = oxistep.Adam(params)
    monitor = UpdateMonitor(optimizer)
    for seed, forced in enumerate([False, True, True, False]):
        monkeypatch.setattr(_modes, "FORCED", forced)
        set_gradients(params, seed)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert (monitor._plan is None) == forced
        np.testing.assert_allclose(recorded(monitor), expected(before, params), rtol=1e-11, equal_nan=True)
    assert len(monitor) == 4
