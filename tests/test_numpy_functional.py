"""Optimizers as two functions, and checkpoints in files."""

import copy
import json
import os
import pickle

import numpy as np
import pytest

import oxistep.numpy as optim
from numpy_table import CLASSES, assert_same_state, same_bits, snapshot
from oxistep import schedules
from oxistep.numpy import SGD, Adam, load, save, zoo
from oxistep.numpy._structure import rebuilt

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)
FUNCTIONAL = [name for name in zoo.__all__ if not hasattr(getattr(zoo, name), "train")]


def model(dtype=np.float64):
    return {"layers": [{"W": np.ones((2, 3), dtype), "b": np.zeros(2, dtype)}, (np.ones(3, dtype),)]}


def grads_of(params, step=0):
    rng = np.random.default_rng(step)
    return rebuilt(params, lambda array: np.asarray(rng.standard_normal(array.shape), array.dtype))


def arrays_of(params):
    found = []
    rebuilt(params, lambda array: found.append(array) or array)
    return found


# Functions


@every_class
@pytest.mark.parametrize("how", ["in place", "copy", "in turn", "plain dicts"])
def test_updates_are_the_steps_of_an_optimizer(cls, hyper, how):
    params, other = model(), model()
    functions, optimizer = cls.functional(**hyper), cls(other, **hyper)
    state = functions.init(params)
    for step in range(5):
        grads = grads_of(params, step)
        optimizer.step(grads)
        if how == "plain dicts":
            state = pickle.loads(pickle.dumps(dict(state)))
        old = params, state, copy.deepcopy((params, state))
        by_copy = how == "copy" or (how == "in turn" and step % 2 == 0)
        params, state = functions.update(params, grads, state, copy=by_copy)
        if by_copy:
            assert all(map(same_bits, arrays_of(old[0]), arrays_of(old[2][0])))
            assert repr(old[1]) == repr(old[2][1])
        else:
            assert params is old[0]
            assert state is old[1]
    assert all(map(same_bits, arrays_of(params), arrays_of(other)))
    assert state["step_count"] == 5
    for entry, expected in zip(state["state"].values(), optimizer.state[0], strict=True):
        assert entry.keys() == expected.keys()
        assert all(same_bits(entry[key], expected[key]) for key in entry)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_the_zoo_as_functions(name):
    cls = getattr(zoo, name)
    w, other = np.ones(3), np.ones(3)
    functions, optimizer = cls.functional(lr=0.1), cls([other], lr=0.1)
    state = functions.init(w)
    for step in range(4):
        grad = np.random.default_rng(step).standard_normal(3)
        optimizer.step([grad])
        w, state = functions.update(w, grad, copy.deepcopy(state), copy=step % 2 == 0)
    assert same_bits(w, other)


def test_one_array_and_a_schedule():
    sgd = SGD.functional(lr=schedules.exponential(1.0, factor=0.5))
    w = np.zeros(2)
    state = sgd.init(w)
    for _ in range(3):
        w, state = sgd.update(w, np.ones(2), state)
    assert w.tolist() == [-1.75, -1.75]
    assert repr(sgd).startswith("SGD.functional(lr=")


def test_other_arrays_in_the_same_structure():
    adam = Adam.functional(lr=0.1)
    params = {"w": np.zeros(2)}
    state = adam.init(params)
    params, state = adam.update(params, {"w": np.ones(2)}, state)
    params["w"] = params["w"] * 2
    new = {"w": params["w"].copy()}
    params, state = adam.update(params, {"w": np.ones(2)}, state)
    new, _ = adam.update(new, {"w": np.ones(2)}, copy.deepcopy(state))
    np.testing.assert_allclose(params["w"], [-0.3, -0.3], rtol=1e-6)
    np.testing.assert_allclose(new["w"], params["w"], rtol=1e-6)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda p, g, s: g.update(w=np.ones(3)), ValueError, "shape"),
        (lambda p, g, s: g.pop("w"), ValueError, "lacks 'w'"),
        (lambda p, g, s: s["state"].update(x={"step": 1}), ValueError, "state has 'x'"),
        (lambda p, g, s: s["state"]["w"].update(exp_avg=np.ones(3)), ValueError, "exp_avg.*shape"),
        (lambda p, g, s: s.pop("group"), ValueError, "state must have"),
        (lambda p, g, s: p.update(w=np.ones(2, int)), TypeError, "int64"),
    ],
)
def test_an_update_that_is_refused_changes_nothing(spoil, error, text, copied):
    adam = Adam.functional(lr=0.1)
    params, grads = {"a": np.ones(1), "w": np.ones(2)}, {"a": np.ones(1), "w": np.ones(2)}
    state = adam.init(params)
    params, state = adam.update(params, grads, state)
    spoil(params, grads, state)
    before = repr((params, state))
    with pytest.raises(error, match=text):
        adam.update(params, grads, state, copy=copied)
    assert repr((params, state)) == before


def test_what_cannot_be_functions():
    with pytest.raises(TypeError, match="train\\(\\) and eval\\(\\)"):
        zoo.AdamWScheduleFree.functional()
    with pytest.raises(ValueError, match="Invalid learning rate"):
        Adam.functional(lr=-1)
    with pytest.raises(TypeError, match="learning_rate= is lr= here"):
        Adam.functional(learning_rate=0.1)
    with pytest.raises(TypeError, match="got param groups"):
        Adam.functional().init([{"params": [np.ones(1)]}])
    with pytest.raises(TypeError, match="state must be the dict"):
        Adam.functional().update([np.ones(1)], [np.ones(1)], None)


@pytest.mark.parametrize("steps", [0, 2])
def test_arguments_in_the_order_of_others_are_refused(steps):
    adam = Adam.functional(lr=0.1)
    params, grads = {"w": np.ones(2)}, {"w": np.full(2, 0.5)}
    state = adam.init(params)
    for k in range(steps):
        params, state = adam.update(params, grads, state, copy=k % 2 == 0)
    before = repr((params, grads, state))
    optax = (grads, state, params)
    for wrong in (optax, (state, params, grads), (grads, params, state), (params, state, grads)):
        with pytest.raises(TypeError, match=r"the order is update\(params, grads, state\)"):
            adam.update(*wrong)
    assert repr((params, grads, state)) == before


def test_a_gradient_that_is_the_parameter_is_no_mistake():
    adam = Adam.functional(lr=0.1)
    w = np.ones(2)
    state = adam.init(w)
    for _ in range(2):
        w, state = adam.update(w, w, state, copy=True)
    np.testing.assert_allclose(w, 0.8, atol=1e-3)


def test_the_state_keeps_nothing_alive_but_itself():
    adam = Adam.functional()
    params = {"w": np.zeros(2)}
    params, state = adam.update(params, {"w": np.ones(2)}, adam.init(params))
    again = pickle.loads(pickle.dumps(state))
    assert again.keys() == {"step_count", "group", "state"}
    assert again._bound is None
    assert adam.init(params) == {"step_count": 0, "group": {}, "state": {"w": {}}}
    assert vars(adam).keys() == {"_class", "_hyperparameters"}


# Files


def trained(cls, hyper, steps=3, dtype=np.float64):
    params = model(dtype)
    optimizer = cls(params, **hyper)
    for step in range(steps):
        optimizer.step(grads_of(params, step))
    return params, optimizer


@every_class
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_file_round_trip(cls, hyper, dtype, tmp_path):
    params, optimizer = trained(cls, hyper, dtype=dtype)
    save(tmp_path / "run.npz", params, optimizer)
    other = model(dtype)
    held = arrays_of(other)
    again = cls(other, lr=0.5)
    load(tmp_path / "run.npz", other, again)
    assert all(a is b for a, b in zip(held, arrays_of(other), strict=True))
    assert snapshot(again) == snapshot(optimizer)
    for step in range(3, 6):
        optimizer.step(grads_of(params, step))
        again.step(grads_of(other, step))
    assert snapshot(again) == snapshot(optimizer)


@pytest.mark.parametrize("name", zoo.__all__)
def test_a_file_of_the_zoo(name, tmp_path):
    cls = getattr(zoo, name)
    w, other = np.ones(3), np.ones(3)
    one, again = cls([w], lr=0.1), cls([other], lr=0.1)
    if hasattr(one, "train"):
        one.train()
    for _ in range(2):
        one.step([np.arange(3.0)])
    save(tmp_path / "run", [w], one)
    load(tmp_path / "run", [other], again)
    for optimizer in (one, again):
        optimizer.step([np.arange(3.0)])
    assert same_bits(w, other)
    assert_same_state(one, again)
    plain = [{key: value for key, value in o.param_groups[0].items() if key != "params"} for o in (one, again)]
    assert repr(plain[0]) == repr(plain[1])


def test_numpy_opens_the_file_without_pickle(tmp_path):
    params, optimizer = trained(Adam, {})
    save(str(tmp_path / "run"), params, optimizer)
    assert os.listdir(tmp_path) == ["run.npz"]
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        assert {"params/layers.0.W", "params/layers.1.0", "state/0/exp_avg", "oxistep"} <= set(file)
        assert all(not file[key].dtype.hasobject for key in file)
        assert json.loads(str(file["oxistep"]))["optimizer"]["step_count"] == 3


def test_parameters_alone_and_a_learning_rate_function(tmp_path):
    w = np.arange(3)
    save(tmp_path / "w", w)
    other = np.zeros(3)
    load(tmp_path / "w", other)
    assert other.tolist() == [0, 1, 2]
    optimizer = SGD([other], lr=schedules.exponential(1.0, factor=0.5))
    with pytest.raises(ValueError, match="parameters alone"):
        load(tmp_path / "w", other, optimizer)
    for _ in range(2):
        optimizer.step([np.ones(3)])
    save(tmp_path / "o", [other], optimizer)
    again = SGD([np.zeros(3)], lr=schedules.exponential(1.0, factor=0.5))
    load(tmp_path / "o", again.param_groups[0]["params"], again)
    again.step([np.ones(3)])
    assert again.last_lr == 0.25
    assert again.param_groups[0]["params"][0].tolist() == [-1.75, -0.75, 0.25]


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (lambda: {"w": np.zeros(2)}, ValueError, "the file has the parameters 'w', 'b', expected 'w'"),
        (lambda: {"w": np.zeros(3), "b": np.zeros(1)}, ValueError, r"params\['w'\] of shape \(2,\), expected \(3,\)"),
        (lambda: {"w": np.zeros(2), "b": np.zeros(1, int)}, ValueError, r"params\['b'\] of dtype float64"),
        (lambda: {"w": np.zeros(2), "b": np.broadcast_to(np.zeros(1), 1)}, ValueError, "read-only"),
        (lambda: {"w": np.zeros(2), "b": 1.0}, TypeError, r"params\['b'\] is a float"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(target, error, text, tmp_path):
    params = {"w": np.ones(2), "b": np.ones(1)}
    optimizer = Adam(params)
    optimizer.step({"w": np.ones(2), "b": np.ones(1)})
    save(tmp_path / "run", params, optimizer)
    other, fresh = target(), Adam({"w": np.zeros(2), "b": np.zeros(1)})
    before = snapshot(fresh)
    with pytest.raises(error, match=text):
        load(tmp_path / "run", other, fresh)
    assert snapshot(fresh) == before
    assert not other["w"].any()


FUNCTIONS = [cls.functional(**hyper) for cls, hyper in CLASSES.values()]
FUNCTIONS += [getattr(zoo, name).functional(lr=0.1) for name in FUNCTIONAL]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("functions", FUNCTIONS, ids=repr)
def test_a_file_of_a_state_of_functions(functions, plain, tmp_path):
    params = model()
    state = functions.init(params)
    for step in range(3):
        params, state = functions.update(params, grads_of(params, step), state)
    save(tmp_path / "run", params, dict(state) if plain else state)
    other = model()
    again = functions.init(other)
    again = dict(again) if plain else again
    load(tmp_path / "run", other, again)
    assert repr(again) == repr(state)
    for step in range(3, 6):
        params, state = functions.update(params, grads_of(params, step), state)
        other, again = functions.update(other, grads_of(other, step), again)
    assert all(map(same_bits, arrays_of(params), arrays_of(other)))
    assert repr(again) == repr(state)


def test_a_file_of_another_kind_of_state_changes_nothing(tmp_path):
    adam = Adam.functional()
    params = {"w": np.ones(2)}
    params, state = adam.update(params, {"w": np.ones(2)}, adam.init(params))
    optimizer = Adam(params)
    save(tmp_path / "functions", params, state)
    save(tmp_path / "object", params, optimizer)
    save(tmp_path / "alone", params)
    before = repr((params, state)), snapshot(optimizer)
    for name, what, text in (
        ("functions", optimizer, "that of functions"),
        ("object", state, "it is an optimizer's"),
        ("alone", state, "parameters alone"),
        ("functions", adam.init({"v": np.ones(2)}), "state of 'w', expected that of 'v'"),
    ):
        with pytest.raises(ValueError, match=text):
            load(tmp_path / name, params, what)
    assert (repr((params, state)), snapshot(optimizer)) == before


def test_a_file_of_another_class_names_both(tmp_path):
    w = np.ones(2)
    save(tmp_path / "run", [w], Adam([w]))
    with pytest.raises(ValueError, match="saved by Adam, and this optimizer is SGD"):
        load(tmp_path / "run", [w], SGD([w]))


def test_the_arguments_of_files_in_another_order(tmp_path):
    params, path = {"w": np.ones(2)}, tmp_path / "run"
    optimizer, state = Adam(params), Adam.functional().init(params)
    save(path, params, optimizer)
    for function in (save, load):
        order = rf"the order is {function.__name__}\(path, params, optimizer\)"
        for wrong in ((params, path, optimizer), (optimizer, path, params), (path, optimizer, params)):
            with pytest.raises(TypeError, match=order):
                function(*wrong)
        for wrong in ((path, state, params), (params, path)):
            with pytest.raises(TypeError, match=order):
                function(*wrong)
    assert os.listdir(tmp_path) == ["run.npz"]


def test_an_optimizer_that_does_not_fit_changes_nothing(tmp_path):
    params, optimizer = trained(Adam, {})
    save(tmp_path / "run", params, optimizer)
    other = model()
    for wrong in (optim.RMSprop(other), Adam([{"params": other}, {"params": [np.ones(1)]}])):
        with pytest.raises(ValueError):
            load(tmp_path / "run", other, wrong)
        assert same_bits(other["layers"][0]["W"], np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"optimizer must be one of oxistep.numpy, got object"):
        load(tmp_path / "run", other, object())
    with pytest.raises(TypeError, match=r"optimizer must be one of oxistep.numpy, got object"):
        save(tmp_path / "run", other, object())
    optimizer.param_groups[0]["mine"] = object()
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['mine'\] is a object"):
        save(tmp_path / "run", params, optimizer)


def test_other_files(tmp_path):
    np.savez(tmp_path / "other.npz", w=np.ones(2))
    with pytest.raises(ValueError, match=r"was not written by oxistep.numpy.save"):
        load(tmp_path / "other", [np.ones(2)])
    with pytest.raises(OSError):
        load(tmp_path / "none", [np.ones(2)])
    with pytest.raises(TypeError, match=r"without pickle|no file can hold"):
        save(tmp_path / "object", [np.array([None])])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path / "run", [np.ones(2)])

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "run", [np.zeros(2)])
    assert os.listdir(tmp_path) == ["run.npz"]
    w = np.zeros(2)
    load(tmp_path / "run", [w])
    assert w.tolist() == [1, 1]


def test_what_savez_made_of_a_state_dict_loads(tmp_path):
    _params, optimizer = trained(Adam, {})
    np.savez(tmp_path / "pickled.npz", optimizer=optimizer.state_dict())
    with np.load(tmp_path / "pickled.npz", allow_pickle=True) as file:
        again = Adam(model())
        again.load_state_dict(file["optimizer"])
    assert_same_state(again, optimizer)


def test_a_file_of_functions_in_another_dtype_goes_on_in_that_of_the_parameters(tmp_path):
    adam, path = Adam.functional(lr=0.1), tmp_path / "state.npz"
    params = {"w": np.ones(3)}
    params, state = adam.update(params, {"w": np.ones(3)}, adam.init(params))
    save(path, params, state)
    other = {"w": np.ones(3, np.float32)}
    read = adam.init(other)
    load(path, other, read)
    assert read["state"]["w"]["exp_avg"].dtype == np.float32
    adam.update(other, {"w": np.ones(3, np.float32)}, read)
    assert read["step_count"] == 2


def test_a_file_of_functions_of_another_class_names_both(tmp_path):
    adam, path = Adam.functional(lr=0.1), tmp_path / "state.npz"
    params = {"w": np.ones(3)}
    params, state = adam.update(params, {"w": np.ones(3)}, adam.init(params))
    save(path, params, state)
    momentum = SGD.functional(lr=0.1, momentum=0.9)
    other = {"w": np.zeros(3)}
    read = momentum.init(other)
    with pytest.raises(ValueError, match="saved by Adam, and this state is of SGD"):
        load(path, other, read)
    assert read == momentum.init(other)
    assert not other["w"].any()
