"""Rules over NumPy's arrays: they behave as the other classes of oxistep.numpy do."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import oxistep
import oxistep.numpy
import traced
from numpy_table import layouts, snapshot
from oxistep import rules


@oxistep.rule
def momentum(p, g, s, lr=0.1, beta=0.9):
    """Momentum, as textbooks write it."""
    s.v = beta * s.v - lr * g
    return p + s.v


@oxistep.rule
def counted(p, g, s, lr=0.1, betas=(0.9, 0.99), slowly=False):
    k = s.group.get("k", 0)
    s.group.k = k + 1
    s.product = s.get("product", 1.0) * betas[0]
    s.z = s.get("z", p) - lr * g
    if slowly:
        return betas[0] * p + (1 - betas[0]) * s.z
    return s.z * rules.minimum(1, 10 / rules.sqrt(rules.total(rules.dot(p, p)))) * (1 - s.product)


@oxistep.rule
def no_rate(p, g, s):
    return p - rules.sign(g)


# Of each class of oxistep.numpy: a rule that is the same, and what it is given.
SAME = [
    (oxistep.numpy.SGD, traced.sgd, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}, {}),
    (oxistep.numpy.Adagrad, traced.adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}, {}),
    (oxistep.numpy.RMSprop, traced.rmsprop, {"momentum": 0.9, "centered": True}, {}),
    (oxistep.numpy.Adam, traced.adam, {"amsgrad": True, "weight_decay": 0.1, "maximize": True}, {}),
    (oxistep.numpy.AdamW, traced.adam, {"weight_decay": 0.1}, {"decoupled": True}),
]


@pytest.mark.parametrize(("cls", "function", "both", "ours"), SAME, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_classes_of_oxistep_numpy_as_a_user_writes_them(cls, function, both, ours, dtype):
    random = np.random.default_rng(0)
    start = [random.standard_normal((4, 3)).astype(dtype) for _ in range(2)]
    params = [[array.copy() for array in start] for _ in range(2)]
    theirs = cls({"a": params[0][0], "b": params[0][1]}, lr=0.01, **both)
    mine = oxistep.rule(function)({"a": params[1][0], "b": params[1][1]}, lr=0.01, **both, **ours)
    assert isinstance(mine, oxistep.numpy.Optimizer)
    for k in range(8):
        grads = {name: random.standard_normal((4, 3)).astype(dtype) for name in "ab"}
        for optimizer in (theirs, mine):
            optimizer.step(grads if k > 3 else grads | {"b": None})
    tolerance = {np.float32: 1e-6, np.float64: 1e-12, np.float16: 2e-3}[dtype]
    for one, other in zip(*params, strict=True):
        np.testing.assert_allclose(other, one, rtol=4 * tolerance, atol=tolerance)
        assert other.dtype == dtype
    assert mine.step_count == theirs.step_count == 8


def test_arithmetic_is_that_of_the_arrays():
    @oxistep.rule
    def added(p, g, s):
        return rules.where(g > 0, (p + 2**-30) - 1, 0.1)

    w, double = np.ones(2, np.float32), np.ones(2)
    for array in (w, double):
        added([array]).step([np.array([1, -1], array.dtype)])
    assert w.tolist() == [0, np.float32(0.1)] and double.tolist() == [2**-30, 0.1]


def test_learning_rates_may_be_functions():
    w = np.zeros(1)
    optimizer = momentum([w], lr=lambda step: 1.0 / (1 + step), beta=0.0)
    optimizer.step([np.ones(1)])
    optimizer.step([np.ones(1)])
    assert w == [-1.5]
    assert optimizer.state_dict()["param_groups"][0]["lr"] is None
    with pytest.raises(TypeError, match="lr must be a number or a function"):
        momentum([w], lr="fast")


def test_a_rule_without_a_learning_rate():
    w = np.zeros(2)
    optimizer = no_rate([w])
    optimizer.step([np.array([3.0, -4.0])])
    assert w.tolist() == [-1, 1]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step([np.array([3.0, -4.0])])
    assert w.tolist() == [-2, 2]


def test_structures_groups_and_their_numbers():
    w, b, c = np.full(2, 3.0), np.array(4.0), np.ones(1)
    optimizer = counted([{"params": {"w": w, "b": b}}, {"params": [c], "lr": 0.5, "slowly": True}])
    assert [group["k"] for group in optimizer.param_groups] == [0, 0]
    for _ in range(2):
        optimizer.step([{"w": np.ones(2), "b": None}, [np.ones(1)]])
    assert [group["k"] for group in optimizer.param_groups] == [2, 2]
    assert b == 4
    assert {key: value.shape for key, value in optimizer.state[0][0].items()} == {"step": (), "product": (), "z": (2,)}
    assert optimizer.state[0][1] == {}
    assert optimizer.state[0][0]["step"] == 2 and optimizer.state[0][0]["product"] == 0.9**2
    assert "k: 2" in repr(optimizer) and repr(optimizer).startswith("counted (")


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_checkpoints_go_on_as_if_nothing_had_been(way, dtype):
    def arrays():
        return {"w": np.full((2, 2), 3, dtype), "b": np.array(4, dtype)}

    grads = {"w": np.full((2, 2), 0.1, dtype), "b": np.array(0.3, dtype)}
    one = counted(arrays())
    one.step(grads), one.step(grads | {"b": None})
    if way == "state_dict":
        other = counted({name: p.copy() for name, p in zip("wb", one.param_groups[0]["params"], strict=True)})
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    else:
        other = copy.deepcopy(one) if way == "deepcopy" else pickle.loads(pickle.dumps(one))
    for optimizer in (one, other):
        optimizer.step(grads)
    assert snapshot(one) == snapshot(other)


def test_checkpoints_of_torch():
    torch = pytest.importorskip("torch")
    w, p = np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    theirs, mine = momentum([p]), momentum([w])
    p.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    theirs.step()
    mine.step([p.grad.numpy()])
    fresh = momentum([w.copy()])
    fresh.load_state_dict(theirs.state_dict())
    fresh.step([p.grad.numpy()])
    theirs.step()
    assert np.array_equal(fresh.param_groups[0]["params"][0], p.detach().numpy())
    assert fresh.step_count == 2
    back = momentum([p])
    state = mine.state_dict()
    state["state"] = {i: {k: torch.as_tensor(v) for k, v in s.items()} for i, s in state["state"].items()}
    back.load_state_dict(state)
    back.step()


def test_every_layout():
    for name, (_, view) in zip(range(99), layouts(np.arange(12.0).reshape(3, 4)), strict=False):
        plain = np.ascontiguousarray(view).copy()
        one, other = momentum([view]), momentum([plain])
        for _ in range(2):
            one.step([np.ones(view.shape)]), other.step([np.ones(view.shape)])
        assert np.array_equal(view, plain), name


def test_the_update_monitor():
    w = np.array([3.0, 4.0])
    optimizer = momentum([w], lr=0.5)
    monitor = oxistep.diagnostics.UpdateMonitor(optimizer)
    optimizer.step([np.array([0.0, 2.0])])
    (row,) = monitor.rows()
    assert (row["parameter"], row["update"], row["gradient"]) == (5.0, 1.0, 2.0)


def overlapping():
    whole = np.ones(5)
    return [whole[:3], whole[2:]], [np.ones(3), np.ones(3)]


BAD_STEPS = [
    (lambda: ([np.ones(2)], [np.ones(3)]), ValueError, r"gradient of params\[0\] has shape \(3,\), expected \(2,\)"),
    (lambda: ([np.ones(2)], [np.ones(2, complex)]), TypeError, "has dtype complex128, expected float"),
    (lambda: ([np.ones(2)], [[1.0, 2.0]]), TypeError, "must be a numpy.ndarray, got list"),
    (lambda: ([np.ones(2)], np.ones(2)), TypeError, "grads must be a list of 1 gradient"),
    (overlapping, ValueError, r"shares memory with params\[0\], .*an optimizer of its own"),
    (lambda: ([np.ones(2)], [np.ma.ones(2)]), TypeError, "is a masked array"),
]


@pytest.mark.parametrize(("make", "error", "text"), BAD_STEPS)
def test_bad_steps_change_nothing(make, error, text):
    params, grads = make()
    other = np.ones(1)
    optimizer = momentum([other, *params])
    before = snapshot(optimizer)
    with pytest.raises(error, match=text.replace("params[0]", "params[1]").replace(r"params\[0\]", r"params\[1\]")
                       .replace("of 1 gradient", "of 2 gradients")):  # fmt: skip
        optimizer.step([np.ones(1), *grads] if isinstance(grads, list) else grads)
    assert snapshot(optimizer) == before


BAD_HYPERPARAMETERS = [
    ({"lr": -1}, ValueError, "Invalid learning rate: -1"),
    ({"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
    ({"beta": float("nan")}, ValueError, "Invalid beta: nan"),
    ({"beta": "0.9"}, TypeError, "beta must be a number, got str: '0.9'"),
    ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
    ({"state_dtype": "8bit"}, TypeError, "state_dtype"),
    ({"foreach": True}, TypeError, "foreach"),
]


@pytest.mark.parametrize(("bad", "error", "text"), BAD_HYPERPARAMETERS)
def test_bad_hyperparameters(bad, error, text):
    with pytest.raises(error, match=text):
        momentum([np.ones(2)], **bad)
    optimizer = momentum([np.ones(2)])
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": [np.ones(3)], **bad})
    assert snapshot(optimizer) == before
    if bad.keys() <= {"lr", "beta", "maximize"}:
        optimizer.param_groups[0].update(bad)
        with pytest.raises(error, match=text):
            optimizer.step([np.ones(2)])


def test_several_numbers_and_words():
    with pytest.raises(TypeError, match=r"betas: expected a tuple of 2 numbers, got float: 0\.9"):
        counted([np.ones(1)], betas=0.9)
    with pytest.raises(TypeError, match="slowly must be True or False, got 'yes'"):
        counted([np.ones(1)], slowly="yes")


@pytest.mark.parametrize("params", [[], {}])
def test_nothing_to_optimize(params):
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        momentum(params)


def test_states_of_another_optimizer_are_refused():
    optimizer = momentum([np.ones(2)])
    other = oxistep.numpy.Adam([np.ones(2)])
    other.step([np.ones(2)])
    state = other.state_dict()
    state["param_groups"] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(state)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"exp_avg, exp_avg_sq, and the rule's are v: was its state saved by another"):
        optimizer.step([np.ones(2)])
    assert snapshot(optimizer) == before


def test_without_torch():
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import numpy as np, oxistep
from oxistep.rules import *
@oxistep.rule
def descent(p, g, s, lr=0.5):
    return p - lr * g
w = np.ones(2)
descent([w]).step([np.ones(2)])
print(w, descent.program().conditions)
for needs in (lambda: descent.torch, lambda: oxistep.rules.Optimizer):
    try:
        needs()
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "[0.5 0.5] ['']"
    assert second.startswith("descent.torch needs PyTorch: pip install 'torch>=2.10'")
    assert third.startswith("oxistep.rules.Optimizer needs PyTorch: pip install 'torch>=2.10'")
