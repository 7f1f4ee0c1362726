"""`GradientMonitor`: the figures against float64, rules, history, errors; torch and NumPy."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import oxistep
from oxistep.diagnostics import GradientMonitor
from seeing import Seeing
from test_surface import WITHOUT_TORCH

INF, NAN = math.inf, math.nan
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def values(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3).to(dtype)


def plainly(grad):
    """What float64 says of a tensor's elements."""
    x = grad.detach().double().reshape(-1)
    finite = x[x.isfinite()]
    sizes = finite.abs()
    nonzero = sizes[sizes > 0]
    some = len(finite) > 0
    return {
        "elements": float(len(x)),
        "mean": finite.mean().item(),
        "variance": finite.var(correction=0).item() if some else NAN,
        "norm": finite.norm().item() if some else NAN,
        "smallest": (nonzero.min().item() if len(nonzero) else 0.0) if some else NAN,
        "largest": sizes.max().item() if some else NAN,
        "zeros": (x == 0).double().mean().item() if len(x) else NAN,
        "nan": float(x.isnan().sum()),
        "inf": float(x.isinf().sum()),
    }


def holder(grad):
    p = torch.zeros(grad.shape, dtype=grad.dtype, requires_grad=True)
    p.grad = grad
    return p


def assert_is(row, expected):
    for field, value in expected.items():
        assert row[field] == pytest.approx(value, rel=1e-11, abs=1e-13, nan_ok=True), (field, row, expected)


def layouts(dtype):
    zeroed = values((500, 30), 3, dtype)
    zeroed[::3] = 0
    return {
        "scalar": values((), 1, dtype),
        "short": values((7,), 2, dtype),
        "zeroed": zeroed,
        "transposed": values((30, 20), 4, dtype).t(),
        "strided": values((40, 40), 5, dtype)[::2, 1::3],
        "empty": values((0, 3), 6, dtype),
        "channels last": values((2, 3, 4, 5), 7, dtype).contiguous(memory_format=torch.channels_last),
        "offset": values((3001,), 8, dtype)[1:],
        "long": values((300_000,), 9, dtype),
        "nothing but zeros": torch.zeros(100, dtype=dtype),
    }


@each_dtype
def test_figures_are_those_of_float64(dtype):
    params = {name: holder(grad) for name, grad in layouts(dtype).items()}
    monitor = GradientMonitor(params)
    monitor.update()
    for row in monitor.rows():
        assert_is(row, plainly(params[row["name"]].grad))


@each_dtype
@pytest.mark.parametrize("places", [[0], [5000, 5001], [2047, 2048, 9_999]])
def test_what_is_not_finite_is_counted_and_left_out(dtype, places):
    grad = values((10_000,), 1, dtype)
    grad[places] = NAN
    grad[[p // 2 + 3 for p in places]] = -INF
    monitor = GradientMonitor({"w": holder(grad)})
    monitor.update()
    assert_is(monitor.rows()[0], plainly(grad))
    (anomaly,) = monitor.anomalies()
    assert (anomaly.kind, anomaly.value) == ("not finite", (~grad.isfinite()).sum().item())


def test_nothing_finite_and_no_gradient():
    params = {"nan": holder(torch.full((3,), NAN)), "none": torch.zeros(2, requires_grad=True)}
    monitor = GradientMonitor(params)
    monitor.update()
    nan, none = monitor.rows()
    assert (nan["elements"], nan["nan"], nan["zeros"]) == (3, 3, 0)
    assert all(math.isnan(nan[field]) for field in ("mean", "variance", "norm", "smallest", "largest"))
    assert math.isnan(none["elements"])
    assert none["anomaly"] == ""
    assert "no gradient" in monitor.table()


def test_same_bits_whatever_the_threads():
    def figures(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            monitor = GradientMonitor([holder(values((700_000,), 1)), holder(values((333, 777), 2).t())])
            monitor.update()
            return monitor.values("variance")[1].tobytes() + monitor.values("mean")[1].tobytes()
        finally:
            torch.set_num_threads(before)

    assert figures(1) == figures(2) == figures(3)


def test_sparse_complex_and_subclasses():
    class Mine(Seeing, torch.Tensor):
        pass

    weight = torch.zeros(10, 4, requires_grad=True)
    torch.nn.functional.embedding(torch.tensor([1, 1, 7]), weight, sparse=True).pow(2).sum().backward()
    weight.grad = torch.sparse_coo_tensor([[1, 1, 7]], values((3, 4), 1), (10, 4))
    z = holder(torch.complex(values((50,), 2), values((50,), 3)))
    mine = holder(values((20,), 4).as_subclass(Mine))
    monitor = GradientMonitor({"sparse": weight, "complex": z, "subclass": mine})
    monitor.update()
    sparse, of_complex, of_subclass = monitor.rows()
    assert_is(sparse, plainly(values((3, 4), 1)))
    assert_is(of_complex, plainly(torch.view_as_real(z.grad)))
    assert_is(of_subclass, plainly(values((20,), 4)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numpy_arrays(dtype):
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(300, 20)).astype(dtype),
        "reversed": rng.normal(size=50).astype(dtype)[::-2],
        "transposed": rng.normal(size=(6, 7)).astype(dtype).T,
        "scalar": np.array(0.5, dtype),
        "read-only": np.broadcast_to(np.array(2.0, dtype), (5,)),
    }
    monitor = GradientMonitor(arrays)
    monitor.update(arrays)
    for row in monitor.rows():
        assert_is(row, plainly(torch.from_numpy(arrays[row["name"]].copy())))
    monitor.update({**arrays, "scalar": dtype(0.25)})  # as NumPy's own reductions return it
    assert_is(monitor.rows()[3], plainly(torch.tensor(0.25)))
    monitor.update([None, *list(arrays.values())[1:]])
    assert math.isnan(monitor.rows()[0]["norm"])


def test_numpy_works_without_torch():
    code = (
        WITHOUT_TORCH
        + """
import numpy as np, oxistep
monitor = oxistep.diagnostics.GradientMonitor({"w": np.zeros(2)})
monitor.update({"w": np.array([3.0, 4.0])})
report = oxistep.diagnostics.check_gradients(lambda w: w @ w, np.ones(2), lambda w: 2 * w)
found = oxistep.diagnostics.lr_range_test(lambda lr: 1.0 / lr)
print(monitor.rows()[0]["norm"], bool(report), len(found.rates), "torch" in sys.modules)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "5.0 True 100 False", done.stderr


def test_history_is_a_ring():
    w = holder(torch.ones(4))
    monitor = GradientMonitor({"w": w}, history=3)
    for k in range(5):
        w.grad.fill_(k)
        monitor.update()
    steps, norms = monitor.values("norm")
    assert steps.tolist() == [2, 3, 4]
    assert norms.ravel().tolist() == [4.0, 6.0, 8.0]
    assert [row["step"] for row in monitor.rows(2)] == [3, 4]
    assert (len(monitor), monitor.rows(0), len(monitor.rows(None))) == (3, [], 3)
    monitor.update(step=100)
    monitor.update()
    assert monitor.values("norm")[0].tolist() == [4, 100, 101]
    monitor.clear()
    assert (len(monitor), monitor.anomalies(None), bool(monitor)) == (0, [], True)


def test_an_update_that_fails_leaves_no_trace():
    monitor = GradientMonitor({"a": np.zeros(1), "b": np.zeros(1)}, history=2)
    for k in range(3):
        monitor.update([np.full(1, float(k)), np.ones(1)])
    before = monitor.rows(None)
    with pytest.raises(TypeError, match="the gradient of 'b' has dtype int64, expected float32, float64 or float16"):
        monitor.update([np.ones(1), np.ones(1, np.int64)])
    assert monitor.rows(None) == before


def test_nothing_is_allocated_for_an_update():
    import tracemalloc

    params = [holder(values((50, 50), k)) for k in range(20)]
    monitor = GradientMonitor(params, history=4)
    for _ in range(10):
        monitor.update()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            monitor.update()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 1000


def kinds(monitor, last=1):
    return [(a.step, a.name, a.kind) for a in monitor.anomalies(last)]


def test_rules():
    params = {name: holder(torch.ones(3)) for name in ("exploding", "vanishing", "dead", "grown", "well")}
    monitor = GradientMonitor(params, exploding=10.0, vanishing=0.01, growth=50.0, dead_after=2)
    params["grown"].grad.fill_(0.1)
    for _ in range(10):
        monitor.update()
        assert monitor.anomalies() == []
    params["exploding"].grad[1] = -10.5
    params["vanishing"].grad.fill_(0.009)
    params["dead"].grad.zero_()
    params["grown"].grad.fill_(5.1)
    monitor.update()
    expected = [(10, "exploding", "exploding"), (10, "vanishing", "vanishing"), (10, "grown", "exploding")]
    assert kinds(monitor) == expected
    assert "norm 8.83, above 50 times its median of 0.173" in str(monitor.anomalies()[2])
    monitor.update()
    assert (11, "dead", "dead") in kinds(monitor)
    assert kinds(monitor, None)[:3] == expected
    params["dead"].grad[0] = 1.0
    monitor.update()
    assert "dead" not in {name for _, name, _ in kinds(monitor)}


def test_what_lies_on_the_threshold_is_no_anomaly():
    params = {"high": holder(torch.full((2,), 1000.0)), "low": holder(torch.full((2,), 0.5))}
    monitor = GradientMonitor(params, exploding=1000.0, vanishing=0.5)
    monitor.update()
    assert monitor.anomalies() == []
    monitor = GradientMonitor(params, exploding=999.0, vanishing=0.51)
    monitor.update()
    assert kinds(monitor) == [(0, "high", "exploding"), (0, "low", "vanishing")]


def test_rules_can_be_switched_off():
    params = {"high": holder(torch.full((2,), 1e30)), "low": holder(torch.full((2,), 1e-30))}
    monitor = GradientMonitor(params, exploding=INF, vanishing=0, growth=INF)
    for _ in range(12):
        monitor.update()
    assert monitor.anomalies(None) == []


@pytest.mark.parametrize("library", [oxistep.optim, torch.optim], ids=["oxistep", "torch"])
def test_attached_to_an_optimizer(library):
    model = torch.nn.Linear(3, 2)
    optimizer = library.SGD(model.parameters(), lr=0.1)
    monitor = GradientMonitor(model)
    handle = monitor.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert len(monitor) == 3
    assert monitor.names == ["weight", "bias"]
    handle.remove()
    optimizer.step()
    assert len(monitor) == 3


def test_table_with_and_without_rich(monkeypatch):
    monitor = GradientMonitor({"layer[0].weight": holder(torch.tensor([1.0, 0.0, NAN, 3e4]))})
    assert "no update yet" in str(monitor)
    monitor.update()
    with_rich = str(monitor)
    for name in ("rich", "rich.box", "rich.console", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)
    without = str(monitor)
    assert without != with_rich
    for text in (with_rich, without):
        assert "Gradients at step 0" in text
        assert "layer[0].weight" in text
        assert "not finite, exploding" in text
        assert "25.0 %" in text


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        (3, TypeError, "expected a torch module, a dict or an iterable of named tensors or arrays, got int"),
        ("w", TypeError, "got str"),
        (["w"], TypeError, "parameter '0' must be a torch tensor or a NumPy array, got str"),
        (oxistep.SGD([torch.ones(1)]), TypeError, "got SGD; give the model whose parameters it has"),
        ([], ValueError, "expected at least one parameter"),
        (torch.nn.ReLU(), ValueError, "ReLU has no parameters"),
        ({"w": [1.0]}, TypeError, "parameter 'w' must be a torch tensor or a NumPy array, got list"),
        ({"w": torch.ones(1), "v": np.ones(1)}, TypeError, "cannot be mixed"),
        ([("w", torch.ones(1)), ("w", torch.ones(1))], ValueError, "the name 'w' stands for two parameters"),
        ({1: torch.ones(1)}, TypeError, "names of parameters must be str, got 1"),
    ],
)
def test_wrong_parameters(parameters, error, text):
    with pytest.raises(error, match=text.replace("(", r"\(")):
        GradientMonitor(parameters)


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"history": 0}, ValueError, "history: expected at least 1 step, got 0"),
        ({"history": 1.5}, TypeError, "history: expected a number of steps, got float"),
        ({"exploding": 0}, ValueError, "exploding: expected a number above 0, got 0"),
        ({"exploding": NAN}, ValueError, "exploding"),
        ({"growth": 1}, ValueError, "growth: expected a number above 1, got 1"),
        ({"vanishing": -1}, ValueError, "vanishing: expected zero or more, got -1"),
        ({"vanishing": "x"}, TypeError, "vanishing: expected a number, got str"),
        ({"dead_after": 0}, ValueError, "dead_after: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments(keywords, error, text):
    with pytest.raises(error, match=text):
        GradientMonitor([torch.ones(1)], **keywords)


def test_wrong_updates():
    monitor = GradientMonitor({"w": np.zeros(2)})
    for grads, error, text in [
        (None, TypeError, r"call update\(grads\)"),
        ({}, ValueError, "grads lacks 'w'"),
        ({"w": None, "v": None}, ValueError, "grads has 'v'"),
        ([None, None], ValueError, "must have 1 entries"),
        ([[1.0]], TypeError, "the gradient of 'w' must be a numpy.ndarray"),
    ]:
        with pytest.raises(error, match=text):
            monitor.update(grads)
    with pytest.raises(TypeError, match=r"call update\(\) without"):
        GradientMonitor([torch.ones(1)]).update([torch.ones(1)])
    with pytest.raises(ValueError, match="expected one of elements, mean"):
        monitor.values("median")
    with pytest.raises(TypeError, match="before the step"):
        monitor.attach(oxistep.optim.SGD([torch.ones(1)]))


def test_arrays_in_containers_are_named_by_path():
    params = {"layers": [{"W": np.ones(2)}, (np.ones(1), np.ones(3))]}
    monitor = GradientMonitor(params)
    assert monitor.names == ["layers.0.W", "layers.1.0", "layers.1.1"]
    monitor.update({"layers": [{"W": np.array([3.0, 4.0])}, None]})
    assert next(row["norm"] for row in monitor.rows()) == 5.0
    with pytest.raises(ValueError, match="grads lacks 'layers'"):
        monitor.update({})
    assert len(monitor) == 1
