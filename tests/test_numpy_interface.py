"""Groups, names, schedules, checkpoints: what the NumPy optimizers have around the step."""

import doctest
import importlib
import inspect
import pickle
import subprocess
import sys
import tracemalloc
from copy import deepcopy

import numpy as np
import pytest

import oxistep.numpy
from numpy_table import CLASSES, ROWS, assert_same_state, same_bits, snapshot
from oxistep.numpy import ASGD, SGD, Adam, AdamW, NAdam, Rprop

every_row = pytest.mark.parametrize(("cls", "hyper"), ROWS.values(), ids=ROWS)
every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)

# How torch runs a step; not part of ours.
TORCH_ONLY = {"foreach", "fused", "capturable", "differentiable"}
# Ours.
SETTINGS = {"max_grad_norm": None, "skip_nonfinite": False, "follow": False}


def model(dtype=np.float64):
    rng = np.random.default_rng(1)
    return {
        "w": np.asarray(rng.standard_normal((3, 2)), dtype),
        "b": np.asarray(rng.standard_normal(2), dtype),
    }


def gradients(step, dtype=np.float64):
    rng = np.random.default_rng(100 + step)
    return {
        "w": np.asarray(rng.standard_normal((3, 2)), dtype),
        "b": np.asarray(rng.standard_normal(2), dtype),
    }


def trained(cls, hyper, steps=3, dtype=np.float64):
    params = model(dtype)
    optimizer = cls(list(params.values()), **hyper)
    for step in range(steps):
        optimizer.step(list(gradients(step, dtype).values()))
    return optimizer, params


# Structures


@every_class
def test_list_dict_and_groups_are_the_same(cls, hyper):
    as_list, as_tuple, as_dict, as_groups, as_named_groups = (model() for _ in range(5))
    optimizers = [
        cls(iter(as_list.values()), **hyper),
        cls(tuple(as_tuple.values()), **hyper),
        cls(as_dict, **hyper),
        cls([{"params": [as_groups["w"]]}, {"params": as_groups["b"]}], **hyper),
        cls([{"params": as_named_groups}], **hyper),
    ]
    for step in range(3):
        g = gradients(step)
        optimizers[0].step([g["w"], g["b"]])
        optimizers[1].step((g["w"], g["b"]))
        optimizers[2].step({"b": g["b"], "w": g["w"]})
        optimizers[3].step([[g["w"]], (g["b"],)])
        optimizers[4].step([g])
    for params in (as_tuple, as_dict, as_groups, as_named_groups):
        assert all(same_bits(params[name], as_list[name]) for name in params)


def test_groups_have_their_own_hyperparameters():
    a, b = np.ones(2), np.ones(2)
    optimizer = SGD([{"params": [a]}, {"params": {"b": b}, "lr": 1.0, "name": "head"}], lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    assert optimizer.param_groups[1]["name"] == "head"
    optimizer.step([[np.ones(2)], {"b": np.ones(2)}])
    assert (a[0], b[0]) == (0.5, 0.0)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step([[np.ones(2)], {"b": None}])
    assert (a[0], b[0]) == (0.25, 0.0)


def test_add_param_group():
    a, b = np.ones(2), np.ones(2)
    optimizer = SGD([a], lr=0.5, momentum=0.9)
    optimizer.step([np.ones(2)])
    group = {"params": [b], "lr": 1}
    optimizer.add_param_group(group)
    assert group == {"params": [b], "lr": 1}, "the caller's dict is left alone"
    assert optimizer.param_groups[1] == {**optimizer.param_groups[0], "params": [b], "lr": 1.0}
    optimizer.step([[None], [np.ones(2)]])
    assert (a[0], b[0]) == (0.5, 0.0)


@every_class
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_gradient_of_a_number_may_be_a_numpy_scalar(cls, hyper, dtype):
    """What NumPy's own reductions return: `error.mean()`."""
    a, b = (np.array(1.5, dtype) for _ in "ab")
    first, second = cls({"b": a}, **hyper), cls([b], **hyper)
    for k in range(3):
        grad = np.arange(1 + k, 4 + k, dtype=dtype).mean()
        assert type(grad) is dtype
        first.step({"b": grad})
        second.step([np.array(grad)])
    assert same_bits(a, b)
    assert a != 1.5
    # and any other real number, rounded to the parameter's dtype
    for number in (np.float64(0.3), np.float32(0.3), np.int64(1), np.bool_(True), 0.3, 1):
        first.step({"b": number})
        second.step([np.array(number).astype(dtype)])
        assert same_bits(a, b)
    before = snapshot(first)
    for wrong, text in ((1j, "complex"), (np.complex128(1), "complex128"), ("1", "str")):
        with pytest.raises(TypeError, match=rf"gradient of params\['b'\].*{text}"):
            first.step({"b": wrong})
    assert snapshot(first) == before


@every_class
def test_a_gradient_is_only_read(cls, hyper):
    a, b = (np.arange(3.0) for _ in "ab")
    fixed = np.array([1.0, 2.0, 3.0])
    fixed.flags.writeable = False
    first, second = cls([a], **hyper), cls([b], **hyper)
    for read_only, same in ((fixed, fixed.copy()), (np.broadcast_to(2.0, (3,)), np.full(3, 2.0))):
        first.step([read_only])
        second.step([same])
    assert same_bits(a, b)


def test_an_empty_group_is_allowed():
    w = np.ones(2)
    optimizer = SGD([{"params": []}, {"params": [w]}], lr=1)
    optimizer.step([[], [np.ones(2)]])
    assert w[0] == 0


def test_hyperparameters_from_numpy_become_plain():
    optimizer = Adam(
        [np.ones(2)],
        lr=np.float32(0.5),
        betas=[np.float64(0.5), 0],
        weight_decay=np.int64(1),
        amsgrad=np.True_,
    )
    group = optimizer.param_groups[0]
    assert {key: type(group[key]) for key in ("lr", "betas", "weight_decay", "amsgrad")} == {
        "lr": float,
        "betas": tuple,
        "weight_decay": int,
        "amsgrad": bool,
    }
    assert group["betas"] == (0.5, 0.0)


def test_a_parameter_may_be_a_memory_map(tmp_path):
    w = np.memmap(tmp_path / "w", np.float32, "w+", shape=(4,))
    optimizer = Adam([w], lr=1.0)
    optimizer.step([np.ones(4, np.float32)])
    assert np.allclose(w, -1)
    assert type(optimizer.state[0][0]["exp_avg"]) is np.ndarray


def test_updates_in_place_and_allocates_nothing_large():
    w, grad = np.ones(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    for cls, hyper in CLASSES.values():
        optimizer = cls([w], **hyper)
        optimizer.step([grad])
        states = [id(value) for value in optimizer.state[0][0].values()]
        tracemalloc.start()
        optimizer.step([grad])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
        assert states == [id(value) for value in optimizer.state[0][0].values()]
        assert optimizer.param_groups[0]["params"][0] is w


# Learning rate functions


def test_lr_function_counts_from_zero():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 / (1 + step)

    w = np.zeros(1)
    optimizer = SGD([w], lr=schedule)
    path = []
    for _ in range(4):
        optimizer.step([-np.ones(1)])
        path.append(w[0])
    assert asked == [0, 1, 2, 3]
    np.testing.assert_allclose(path, np.cumsum([1, 1 / 2, 1 / 3, 1 / 4]))
    assert optimizer.step_count == 4


def test_lr_function_per_group_and_for_steps_without_gradient():
    a, b = np.zeros(1), np.zeros(1)
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": lambda step: np.float32(step)}], lr=lambda step: 1)
    optimizer.step([[None], [None]])
    optimizer.step([[-np.ones(1)], [-np.ones(1)]])
    optimizer.step([[-np.ones(1)], [-np.ones(1)]])
    assert (a[0], b[0]) == (2.0, 3.0)


@pytest.mark.parametrize("cls", [ASGD, Rprop])
def test_a_state_that_begins_as_the_learning_rate_is_that_of_its_step(cls):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5**step

    first, late = np.ones(1), np.ones(1)
    optimizer = cls([{"params": [first]}, {"params": [late]}], lr=schedule)
    optimizer.step([[np.ones(1)], [None]])
    optimizer.step([[np.ones(1)], [np.ones(1)]])
    assert asked == [0, 0, 1, 1], "once a group and step"
    assert late[0] < 1
    np.testing.assert_allclose(1 - late[0], 0.5, rtol=1e-3)


@every_class
def test_lr_function_is_the_number_it_returns(cls, hyper):
    by_number, by_function = model(), model()
    one = cls(by_number, **hyper)
    other = cls(by_function, **{**hyper, "lr": lambda step: np.array(0.5**step)})
    for step in range(5):
        one.param_groups[0]["lr"] = 0.5**step
        one.step(gradients(step))
        other.step(gradients(step))
    assert all(same_bits(by_number[name], by_function[name]) for name in by_number)


# Checkpoints


@every_row
def test_state_dict_round_trip(cls, hyper):
    optimizer, params = trained(cls, hyper)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    copies = {name: array.copy() for name, array in params.items()}
    fresh = cls(list(copies.values()), lr=0.5)
    fresh.load_state_dict(saved)
    assert snapshot(fresh) == snapshot(optimizer)
    for step in range(3, 6):
        optimizer.step(list(gradients(step).values()))
        fresh.step(list(gradients(step).values()))
    assert snapshot(fresh) == snapshot(optimizer)


def to_torch(torch, value):
    if isinstance(value, dict):
        return {key: to_torch(torch, inner) for key, inner in value.items()}
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


@every_row
@pytest.mark.parametrize("steps", [0, 3])
def test_checkpoints_move_to_torch_and_back(cls, hyper, steps):
    torch = pytest.importorskip("torch")
    optimizer, params = trained(cls, hyper, steps)
    tensors = [torch.tensor(array, requires_grad=True) for array in params.values()]
    theirs = getattr(torch.optim, cls.__name__)(tensors, foreach=False)
    theirs.load_state_dict(to_torch(torch, deepcopy(optimizer.state_dict())))

    copies = [array.copy() for array in params.values()]
    back = cls(copies)
    back.load_state_dict(theirs.state_dict())
    assert snapshot(back)["groups"] == snapshot(optimizer)["groups"]
    assert_same_state(back, optimizer)
    assert back.step_count == (0 if cls is SGD else steps)

    for step in range(steps, steps + 3):
        grads = list(gradients(step).values())
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
        optimizer.step(grads)
        back.step(grads)
    for ours, copy, tensor in zip(params.values(), copies, tensors, strict=True):
        assert same_bits(ours, copy)
        # torch's load_state_dict casts NAdam's product, a float32 number, to the parameter's type
        tolerance = 1e-9 if cls is NAdam else 1e-12
        np.testing.assert_allclose(ours, tensor.detach().numpy(), tolerance, tolerance)


@every_row
def test_state_dict_has_the_structure_of_torch(cls, hyper):
    torch = pytest.importorskip("torch")
    optimizer, params = trained(cls, hyper)
    tensors = [torch.tensor(array, requires_grad=True) for array in params.values()]
    theirs = getattr(torch.optim, cls.__name__)(tensors, **hyper)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    theirs.step()
    ours, expected = optimizer.state_dict(), theirs.state_dict()
    assert ours.keys() - expected.keys() == {"step_count"}
    assert [group.keys() for group in ours["param_groups"]] == [
        group.keys() - TORCH_ONLY for group in expected["param_groups"]
    ]
    for key, value in expected["param_groups"][0].items():
        assert key in TORCH_ONLY or ours["param_groups"][0][key] == value
    # torch may list parameters without a state, with an empty dict.
    assert {i: state.keys() for i, state in ours["state"].items()} == {
        i: state.keys() for i, state in expected["state"].items() if state
    }


def test_state_dict_numbers_parameters_through_groups():
    a, b, c = (np.ones(i) for i in (1, 2, 3))
    optimizer = Adam([{"params": [a, b]}, {"params": {"c": c}}])
    optimizer.step([[None, np.ones(2)], {"c": np.ones(3)}])
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2]]
    assert saved["param_groups"][1]["param_names"] == ["c"]
    assert list(saved["state"]) == [1, 2]
    assert saved["state"][2]["exp_avg"] is optimizer.state[1][0]["exp_avg"], "a reference, as in torch"


def test_loading_copies_and_casts():
    w = np.asfortranarray(np.ones((2, 3), np.float32))
    optimizer = Adam([w])
    saved = {"step": 3, "exp_avg": [[1, 2, 3], [4, 5, 6]], "exp_avg_sq": np.full((2, 3), 0.1)}
    groups = Adam([w], lr=0.5).state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: saved}, "param_groups": groups})
    state = optimizer.state[0][0]
    assert (state["step"].dtype, state["step"].shape, state["step"]) == (np.float32, (), 3)
    assert state["exp_avg"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert state["exp_avg_sq"].dtype == np.float32
    assert state["exp_avg_sq"].strides == w.strides, "the parameter's layout, which is the fast one"
    assert (optimizer.param_groups[0]["lr"], optimizer.step_count) == (0.5, 3)
    optimizer.step([np.ones((2, 3), np.float32)])
    assert np.all(saved["exp_avg_sq"] == 0.1), "not shared with its source"


def test_loading_takes_old_and_foreign_groups():
    """Keys that torch added over the years may be missing; those of its schedulers come along."""
    optimizer = SGD([np.ones(2)])
    group = {"params": ["x"], "lr": np.array(0.5), "momentum": 0.9, "dampening": 0, "weight_decay": 0}
    optimizer.load_state_dict(
        {
            "state": {"x": {"momentum_buffer": None}},
            "param_groups": [{**group, "initial_lr": 1.0, "fused": True}],
        }
    )
    loaded = optimizer.param_groups[0]
    assert (loaded["lr"], loaded["nesterov"], loaded["maximize"], loaded["initial_lr"]) == (
        0.5,
        False,
        False,
        1.0,
    )
    assert "fused" not in loaded
    assert optimizer.state == [[{}]]
    optimizer.step([np.ones(2)])
    assert optimizer.state[0][0]["momentum_buffer"].tolist() == [1, 1]


def test_adam_and_adamw_load_each_other_as_torch_does():
    w = np.ones(2)
    adam, adamw = Adam([w]), AdamW([w])
    adam.load_state_dict(AdamW([w]).state_dict())
    adamw.load_state_dict(Adam([w]).state_dict())
    assert adam.param_groups[0]["decoupled_weight_decay"] is True
    assert adamw.param_groups[0]["decoupled_weight_decay"] is True
    assert adamw.param_groups[0]["weight_decay"] == 0


def test_loading_matches_names():
    params = model()
    saved = SGD(params, momentum=0.9)
    saved.step(gradients(0))
    swapped = SGD({"b": params["b"], "w": params["w"]}, momentum=0.9)
    swapped.load_state_dict(saved.state_dict())
    assert list(swapped.param_groups[0]["param_names"]) == ["b", "w"]
    assert [state["momentum_buffer"].shape for state in swapped.state[0]] == [(2,), (3, 2)]
    unnamed = SGD([params["w"], params["b"]], momentum=0.9)
    unnamed.load_state_dict(saved.state_dict())
    assert "param_names" not in unnamed.param_groups[0]
    unnamed.step(list(gradients(1).values()))


def test_a_learning_rate_function_is_given_again():
    def schedule(step):
        return 1.0 / (1 + step)

    saved = SGD([np.zeros(1)], lr=schedule)
    for _ in range(3):
        saved.step([np.zeros(1)])
    state_dict = saved.state_dict()
    assert state_dict["param_groups"][0]["lr"] is None

    w = np.zeros(1)
    has_one = SGD([w], lr=schedule)
    has_one.load_state_dict(state_dict)
    has_one.step([-np.ones(1)])
    assert w[0] == 1 / 4, "the function stays, and goes on where the saved one was"

    w = np.zeros(1)
    has_none = SGD([w], lr=0.5)
    has_none.load_state_dict(state_dict)
    with pytest.raises(
        ValueError, match=r"no learning rate in param_groups\[0\].*set optimizer.param_groups\[0\]\['lr'\]"
    ):
        has_none.step([-np.ones(1)])
    assert (w[0], has_none.step_count) == (0, 3)
    has_none.param_groups[0]["lr"] = schedule
    has_none.step([-np.ones(1)])
    assert w[0] == 1 / 4

    has_one.load_state_dict(SGD([w], lr=0.125).state_dict())
    assert has_one.param_groups[0]["lr"] == 0.125, "a saved number replaces a function"


@every_class
@pytest.mark.parametrize("copy", [deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on_alone(cls, hyper, copy):
    optimizer, _ = trained(cls, hyper)
    optimizer.add_param_group({"params": {"scalar": np.array(1.0)}})
    before = snapshot(optimizer)
    twin = copy(optimizer)
    assert type(twin) is cls
    assert snapshot(twin) == before
    grads = [list(gradients(3).values()), {"scalar": np.array(1.0)}]
    twin.step(grads)
    assert snapshot(optimizer) == before
    optimizer.step(grads)
    assert snapshot(optimizer) == snapshot(twin)


# The public face


@every_class
def test_signature_and_defaults_are_torchs(cls, hyper):
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.optim, cls.__name__)).parameters
    ours = inspect.signature(cls).parameters
    assert list(ours)[-len(SETTINGS) :] == list(SETTINGS)
    assert all(ours[name].kind is inspect.Parameter.KEYWORD_ONLY for name in SETTINGS)
    for name, parameter in ours.items():
        assert parameter.default == (SETTINGS[name] if name in SETTINGS else theirs[name].default), name
    # Positional ones in torch's order.
    positional = [name for name, p in inspect.signature(cls).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name in theirs if name not in TORCH_ONLY][: len(positional)]


@every_class
def test_programs_that_are_driven_by_configuration_find_every_parameter(cls, hyper):
    """The four ways in which such programs ask what a constructor takes."""
    parameters = list(inspect.signature(cls).parameters)
    hidden = {"decoupled_weight_decay"} if cls is AdamW else set()
    assert set(parameters) == {"params", *cls._oxistep_checks, *SETTINGS} - hidden
    assert list(inspect.signature(cls.__init__).parameters) == ["self", *parameters]
    spec = inspect.getfullargspec(cls.__init__)
    assert [*spec.args, *spec.kwonlyargs] == ["self", *parameters]
    assert (spec.varargs, spec.varkw) == (None, None)
    assert inspect.getfullargspec(cls).args[1:] == spec.args[1:]
    code = cls.__init__.__code__
    assert code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] == ("self", *parameters)


@every_class
def test_repr_is_torchs(cls, hyper):
    torch = pytest.importorskip("torch")
    ours = repr(cls([{"params": [np.ones(2)]}, {"params": [np.ones(2)], "lr": 0.5}], **hyper))
    tensors = [torch.ones(2, requires_grad=True) for _ in range(2)]
    theirs = getattr(torch.optim, cls.__name__)([{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.5}], **hyper)
    expected = [line for line in repr(theirs).splitlines() if line.split(":")[0].strip() not in TORCH_ONLY]
    assert ours.splitlines() == expected


def test_public_names():
    assert set(oxistep.numpy.__all__) >= {"Optimizer", *(cls.__name__ for cls, _ in ROWS.values())}
    assert issubclass(AdamW, Adam)
    assert all(issubclass(cls, oxistep.numpy.Optimizer) for cls, _ in ROWS.values())


@pytest.mark.parametrize("module", ["", "._base", *sorted({f".{cls.__name__.lower()}" for cls, _ in ROWS.values()})])
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"oxistep.numpy{module}"))
    assert result.attempted
    assert not result.failed


def test_works_without_torch():
    program = """
import sys
sys.modules["torch"] = None  # import torch now raises ImportError
import pickle
import numpy as np
import oxistep.numpy as onp
for name in "SGD Adagrad Adam AdamW RMSprop Adadelta Adamax NAdam RAdam ASGD Rprop".split():
    cls = getattr(onp, name)
    w = {"w": np.ones((3, 2), np.float32)}
    optimizer = cls(w, lr=0.1)
    optimizer.step({"w": np.ones((3, 2), np.float32)})
    assert (w["w"] < 1).all()
    cls(w).load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_import_does_not_import_torch():
    program = "import sys, oxistep.numpy; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


OWN_NAMES = {name for cls, _ in CLASSES.values() for base in cls.__mro__[:-1] for name in vars(base)} - set(
    vars(object)
)


def test_private_names_are_those_of_subclasses():
    private = {name for name in OWN_NAMES if name.startswith("_") and not name.startswith("__")}
    assert private
    assert all(name.startswith(("_oxistep_", "_abc_")) for name in private), private


@every_class
def test_a_subclass_may_have_helpers_of_any_name(cls, hyper):
    def trap(*args, **kwargs):
        raise AssertionError("the step called a helper of the subclass")

    names = [name.removeprefix("_oxistep") for name in OWN_NAMES if name.startswith("_oxistep_")]
    assert "_add" in names
    own = type(cls.__name__, (cls,), dict.fromkeys(names, trap))
    ours, plain = ([np.ones(3)], [np.ones(3)])
    first, second = own(ours, **hyper), cls(plain, **hyper)
    for name in names:
        setattr(first, name, trap)
    for optimizer in (first, second):
        optimizer.step([np.full(3, 0.5)])
        optimizer.add_param_group({"params": [np.ones(2)]})
        optimizer.load_state_dict(optimizer.state_dict())
    np.testing.assert_array_equal(ours[0], plain[0])


def test_a_half_gradient_of_a_float32_array_has_the_bits_of_its_widened_copy():
    rng = np.random.default_rng(0)
    for shape in ((3,), (40, 50), (300, 700)):
        w = np.asarray(rng.standard_normal(shape), np.float32)
        other = w.copy()
        grad = np.asarray(rng.standard_normal(shape), np.float16)
        one, two = Adam([w], lr=0.1, max_grad_norm=0.5), Adam([other], lr=0.1, max_grad_norm=0.5)
        for given in (grad, grad.T.copy().T, np.asfortranarray(grad)):
            one.step([given])
            two.step([given.astype(np.float32)])
        assert w.tobytes() == other.tobytes()
        assert one.last_grad_norm == two.last_grad_norm
