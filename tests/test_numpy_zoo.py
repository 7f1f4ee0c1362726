"""The zoo for NumPy's arrays: the same definitions, so the same numbers, and no second constructor."""

import doctest
import inspect
import pickle
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest

import brief
from numpy_table import layouts, same_bits, snapshot
from oxistep.numpy import zoo

NAMES = zoo.__all__
SHAPES = [(), (5,), (4, 6), (2, 3, 2, 2), (0, 3)]
REQUIRED = {"StableAdamW": {"lr": 0.01}}

# What has an effect only with other settings than the defaults.
MORE = {
    "Lion": [{"lr": 0.1, "weight_decay": 0.1, "caution": True, "corrected_weight_decay": True}],
    "LAMB": [{"weight_decay": 0.1, "trust_clip": True, "max_grad_norm": None}],
    "AdamW": [{"caution": True, "clipping_threshold": 0.5, "amsgrad": True}],
    "AdEMAMix": [{"t_alpha": 5, "t_beta3": 7}],
    "AdamWScheduleFree": [{"warmup_steps": 3, "r": 1.0, "weight_decay": 0.1}],
    "Prodigy": [{"d0": 1e-3, "use_bias_correction": True, "safeguard_warmup": True}],
    "MARS": [{"mars_type": "lion"}, {"optimize_1d": True, "caution": True}],
    "SGDW": [{"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "LARS": [{"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "trust_clip": True}],
    "RMSpropTF": [{"momentum": 0.9, "centered": True, "caution": True}],
}
ROWS = [(name, hyper) for name in NAMES for hyper in ({}, {"maximize": True}, *MORE.get(name, []))]

every_class = pytest.mark.parametrize("name", brief.some(NAMES, 4))
every_row = pytest.mark.parametrize(("name", "hyper"), brief.some(ROWS, 2), ids=str)


def made(name, params, **hyper):
    optimizer = getattr(zoo, name)(params, **{**REQUIRED.get(name, {}), **hyper})
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def params(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def gradients(step, dtype=np.float64):
    return params(dtype, seed=100 + step)


@every_row
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_equals_the_class_for_tensors(name, hyper, dtype):
    torch = pytest.importorskip("torch")
    import oxistep.zoo

    arrays = params(dtype)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    ours = made(name, arrays, **hyper)
    theirs = getattr(oxistep.zoo, name)(tensors, **REQUIRED.get(name, {}), **hyper)
    if hasattr(theirs, "train"):
        theirs.train()
    for step in range(9):
        grads = gradients(step, dtype)
        if step < 3:
            grads[1] = None  # unfrozen late
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        ours.step(grads)
        theirs.step()
    for method in ("eval", "train", "eval"):
        for optimizer in (ours, theirs) if hasattr(ours, method) else ():
            getattr(optimizer, method)()
    tolerance = {np.float64: 1e-13, np.float32: 1e-6, np.float16: 4e-3}[dtype]
    for array, tensor, state in zip(arrays, tensors, ours.state[0], strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), tolerance, tolerance)
        assert state.keys() == theirs.state[tensor].keys()
        for key, value in state.items():
            np.testing.assert_allclose(value, theirs.state[tensor][key].numpy(), tolerance, tolerance)
    group, expected = ours.param_groups[0], theirs.param_groups[0]
    assert expected.keys() - group.keys() <= {"foreach", "capturable", "differentiable"}
    assert group.keys() <= expected.keys()
    assert {key: value for key, value in group.items() if key != "params"} == {
        key: pytest.approx(expected[key], 1e-5, 1e-9) if isinstance(expected[key], float) else expected[key]
        for key in group
        if key != "params"
    }


@every_class
def test_arguments_are_those_for_tensors(name):
    import oxistep.zoo

    ours = inspect.signature(getattr(zoo, name)).parameters
    theirs = inspect.signature(getattr(oxistep.zoo, name)).parameters
    missing = {"foreach", "capturable", "differentiable", "state_dtype", "grad_norm_group", "weights", "seed"}
    missing |= {"ema", "ema_warmup"}
    assert theirs.keys() - ours.keys() <= missing
    assert ours.keys() - theirs.keys() == {"follow"}
    assert all(parameter.default == theirs[key].default for key, parameter in ours.items() if key != "follow")
    positional = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)], "one given by position means the same"
    spec = inspect.getfullargspec(getattr(zoo, name).__init__)
    assert [*spec.args, *spec.kwonlyargs] == ["self", *ours]


@every_class
def test_docstrings_speak_of_arrays(name):
    cls = getattr(zoo, name)
    doc = cls.__doc__
    assert f":class:`oxistep.zoo.{name}`" in doc
    documented = doc.split("Args:\n")[1].split("\n\n")[0]
    assert all(f"{key}" in documented for key in inspect.signature(cls).parameters)
    assert not any(word in documented for word in ("foreach", "state_dtype", "tensors"))
    assert all(f"\n{section}:\n" in doc for section in ("State", "Raises", "Example", "Reference"))
    test = doctest.DocTestParser().get_doctest(doc, {}, name, None, 0)
    assert doctest.DocTestRunner().run(test).failed == 0


@every_class
def test_bad_hyperparameters(name):
    cls = getattr(zoo, name)
    required = REQUIRED.get(name, {})
    for bad, error, text in (
        ({"lr": -1.0}, ValueError, "nvalid learning rate|lr|learning_rate"),
        ({"lr": float("nan")}, ValueError, "nan"),
        ({"lr": "0.1"}, TypeError, "lr must be a number or a function"),
        ({"weight_decay": float("nan")}, ValueError, "nan"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
        ({"foreach": True}, TypeError, "foreach"),
        ({"state_dtype": None}, TypeError, "state_dtype"),
    ):
        with pytest.raises(error, match=text):
            cls([np.ones(2)], **{**required, **bad})
        if "foreach" in bad or "state_dtype" in bad:
            continue
        optimizer = made(name, [{"params": [np.ones(2)]}, {"params": [np.ones(2)]}])
        before = snapshot(optimizer)
        with pytest.raises(error, match=text) as caught:
            optimizer.add_param_group({"params": [np.ones(3)], **bad})
        assert "param_groups[2]" in str(caught.value)
        assert snapshot(optimizer) == before
        optimizer.param_groups[1].update(bad)
        before = snapshot(optimizer)
        one_lr = name == "Prodigy" and "lr" in bad  # and says that there must be one
        with pytest.raises((RuntimeError, error) if one_lr else error) as caught:
            optimizer.step([[np.ones(2)], [np.ones(2)]])
        assert "param_groups[1]" in str(caught.value) or one_lr
        assert str(snapshot(optimizer)) == str(before)  # NaN equals nothing


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), [0.9, -0.5]])
def test_checks_of_the_constructor_hold_for_groups_and_later(betas):
    with pytest.raises(ValueError, match="Invalid beta parameter at index"):
        zoo.Lion([np.ones(2)], betas=betas)
    optimizer = zoo.Lion([np.ones(2)])
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index .* in param_groups\[1\]"):
        optimizer.add_param_group({"params": [np.ones(3)], "betas": betas})
    good = optimizer.param_groups[0]["betas"]
    optimizer.param_groups[0]["betas"] = betas
    for _ in range(2):  # what was refused is not remembered as good
        with pytest.raises(ValueError, match=r"Invalid beta parameter at index .* in param_groups\[0\]"):
            optimizer.step([np.ones(2)])
    optimizer.param_groups[0]["betas"] = good
    optimizer.step([np.ones(2)])


@every_class
def test_state_dict_round_trip(name):
    arrays = params()
    optimizer = made(name, arrays)
    for step in range(3):
        optimizer.step(gradients(step))
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    copies = [array.copy() for array in arrays]
    fresh = made(name, copies, lr=0.5)
    fresh.load_state_dict(saved)
    assert snapshot(fresh) == snapshot(optimizer)
    for step in range(3, 6):
        optimizer.step(gradients(step))
        fresh.step(gradients(step))
    assert snapshot(fresh) == snapshot(optimizer)


@every_class
@pytest.mark.parametrize("steps", [0, 3])
def test_checkpoints_move_to_tensors_and_back(name, steps):
    torch = pytest.importorskip("torch")
    import oxistep.zoo

    arrays = params()
    optimizer = made(name, arrays)
    for step in range(steps):
        optimizer.step(gradients(step))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    theirs = getattr(oxistep.zoo, name)(tensors, **REQUIRED.get(name, {}))
    saved = deepcopy(optimizer.state_dict())
    saved["state"] = {
        i: {key: torch.as_tensor(value) for key, value in state.items()} for i, state in saved["state"].items()
    }
    theirs.load_state_dict(saved)
    copies = [array.copy() for array in arrays]
    back = made(name, copies)
    back.load_state_dict(theirs.state_dict())
    for step in range(steps, steps + 3):
        grads = gradients(step)
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        optimizer.step(grads)
        back.step(grads)
    for ours, copy, tensor in zip(arrays, copies, tensors, strict=True):
        np.testing.assert_allclose(ours, copy, 1e-7, 1e-9)  # numbers that were float32 on the way
        np.testing.assert_allclose(ours, tensor.detach().numpy(), 1e-7, 1e-9)


@every_class
@pytest.mark.parametrize("copy", [deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on_alone(name, copy):
    optimizer = made(name, params())
    optimizer.step(gradients(0))
    before = snapshot(optimizer)
    twin = copy(optimizer)
    assert type(twin) is getattr(zoo, name)
    twin.step(gradients(1))
    assert snapshot(optimizer) == before
    optimizer.step(gradients(1))
    assert snapshot(optimizer) == snapshot(twin)


@every_class
def test_nothing_moves_at_a_learning_rate_of_zero_without_gradients(name):
    arrays = params()
    before = [array.copy() for array in arrays]
    optimizer = getattr(zoo, name)(arrays, lr=0.0)  # not in train mode, where there is one
    for _ in range(2):
        optimizer.step([np.zeros(shape) for shape in SHAPES])
    assert all(same_bits(array, old) for array, old in zip(arrays, before, strict=True))


@every_class
def test_a_learning_rate_function_is_the_number_it_returns(name):
    by_number, by_function = params(), params()
    one = made(name, by_number, lr=0.01)
    other = made(name, by_function, lr=lambda step: 0.01 * 0.5**step)
    for step in range(4):
        one.param_groups[0]["lr"] = 0.01 * 0.5**step
        one.step(gradients(step))
        other.step(gradients(step))
    assert all(same_bits(a, b) for a, b in zip(by_number, by_function, strict=True))


def test_a_function_does_not_say_what_the_largest_learning_rate_is():
    with pytest.raises(ValueError, match="corrected_weight_decay needs the largest learning rate"):
        zoo.Lion([np.ones(2)], lr=lambda step: 0.1, corrected_weight_decay=True)


@every_class
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layout_changes_little(name, dtype):
    rng = np.random.default_rng(3)
    start = np.asarray(rng.standard_normal((5, 7)), dtype)
    grads = [np.asarray(rng.standard_normal((5, 7)), dtype) for _ in range(3)]
    plain = start.copy()
    expected = made(name, [plain])
    for grad in grads:
        expected.step([grad])
    for n, (_, array) in enumerate(layouts(start)):
        optimizer = made(name, [array])
        for step, grad in enumerate(grads):
            _, laid_out = list(layouts(grad))[(n + 3 * step) % 7]
            optimizer.step([laid_out])
            assert same_bits(laid_out, grad), "a gradient is only read"
        # sums over elements come in the order of memory
        np.testing.assert_allclose(array, plain, *((1e-5, 1e-6) if dtype is np.float32 else (1e-12, 1e-12)))


@every_class
def test_one_group_is_as_good_as_two(name):
    together, apart = params(), params()
    one = made(name, together)
    two = made(name, [{"params": apart[:2]}, {"params": apart[2:]}])
    for step in range(4):
        grads = gradients(step)
        one.step(grads)
        two.step([grads[:2], grads[2:]])
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a, b, 1e-12, 1e-14)


# Schedule-free


def test_a_schedule_free_step_wants_train_mode():
    w = np.ones(3)
    optimizer = zoo.AdamWScheduleFree([w])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="train mode"):
        optimizer.step([np.ones(3)])
    assert snapshot(optimizer) == before
    optimizer.train()
    optimizer.step([np.ones(3)])
    optimizer.eval()
    averaged = w.copy()
    optimizer.eval()
    assert same_bits(w, averaged), "it is there already"


# SophiaG


def test_the_hessian_of_sophia_is_not_a_step():
    w = np.array([1.0, -2.0])
    optimizer = zoo.SophiaG([w, np.ones(1)])
    optimizer.step([np.array([0.5, 0.5]), None], bs=2)
    before, moved = snapshot(optimizer), w.copy()
    optimizer.update_hessian([np.array([2.0, 4.0]), None])
    assert same_bits(w, moved)
    np.testing.assert_allclose(optimizer.state[0][0]["hessian"], 0.01 * np.array([4.0, 16.0]))
    assert optimizer.state[0][0]["step"] == 1
    assert optimizer.state[0][1] == {}
    assert optimizer.step_count == before["step_count"]
    optimizer.step([np.array([0.5, 0.5]), None], bs=2)
    assert optimizer.state[0][0]["step"] == 2


def test_a_step_of_sophia_that_is_refused_leaves_the_batch_size():
    w = [np.ones(3), np.ones(2)]
    optimizer = zoo.SophiaG(w)
    optimizer.step([np.ones(3), np.ones(2)], bs=2)
    before, moved = snapshot(optimizer), w[0].copy()
    with pytest.raises(ValueError, match=r"the gradient of params\[1\] has shape \(5,\)"):
        optimizer.step([np.ones(3), np.ones(5)], bs=3)
    assert snapshot(optimizer) == before
    assert optimizer.param_groups[0]["bs"] == 2
    assert same_bits(w[0], moved)


# The public face


def test_every_class_of_the_zoo_is_here():
    import oxistep.zoo

    wrappers = {"Grokfast", "Lookahead", "SAM"}
    assert set(NAMES) == set(oxistep.zoo.__all__) - wrappers
    for name in NAMES:
        assert issubclass(getattr(zoo, name), oxistep.numpy.Optimizer)
        assert getattr(zoo, name) is getattr(zoo, name)
        if name != "AdamW":
            assert getattr(oxistep.numpy, name) is getattr(zoo, name)
    assert oxistep.numpy.AdamW is not zoo.AdamW
    assert set(NAMES) <= set(dir(zoo))
    assert set(NAMES) <= set(dir(oxistep.numpy))
    for module in (zoo, oxistep.numpy):
        with pytest.raises(AttributeError, match="no attribute 'Leon'"):
            _ = module.Leon


def test_example_in_the_module():
    result = doctest.testmod(zoo)
    assert result.attempted
    assert not result.failed


def test_works_without_torch():
    program = """
import sys
sys.modules["torch"] = None  # import torch now raises ImportError
import copy, pickle
import numpy as np
import oxistep.numpy
from oxistep.numpy import zoo
for name in zoo.__all__:
    w = {"w": np.ones((3, 2), np.float32)}
    optimizer = getattr(zoo, name)(w, lr=0.1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(9):
        optimizer.step({"w": np.ones((3, 2), np.float32)})
    assert (w["w"] < 1).all(), name
    pickle.loads(pickle.dumps(copy.deepcopy(optimizer)))
from oxistep.zoo import Lion
try:
    Lion([])
except ModuleNotFoundError as error:
    assert "oxistep.numpy.zoo.Lion" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_import_does_not_import_the_zoo():
    program = "import sys, oxistep.numpy.zoo; sys.exit('torch' in sys.modules or 'oxistep.rules' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
