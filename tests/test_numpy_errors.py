"""Bad input to the NumPy optimizers: a clear error that names what is wrong, and nothing has been changed."""

from copy import deepcopy

import numpy as np
import pytest

from numpy_table import CLASSES, snapshot
from oxistep.numpy import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

NAN = float("nan")

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)

BAD_HYPERPARAMETERS = [
    # Range and wording are torch's.
    (SGD, {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    (SGD, {"momentum": -0.5}, ValueError, "Invalid momentum value: -0.5"),
    (SGD, {"weight_decay": -0.5}, ValueError, "Invalid weight_decay value: -0.5"),
    (SGD, {"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    (
        SGD,
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        "Nesterov momentum requires a momentum and zero dampening",
    ),
    (Adagrad, {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    (Adagrad, {"lr_decay": -0.5}, ValueError, "Invalid lr_decay value: -0.5"),
    (Adagrad, {"weight_decay": -0.5}, ValueError, "Invalid weight_decay value: -0.5"),
    (Adagrad, {"initial_accumulator_value": -1}, ValueError, "Invalid initial_accumulator_value value: -1"),
    (Adagrad, {"eps": -1}, ValueError, "Invalid epsilon value: -1"),
    (RMSprop, {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    (RMSprop, {"alpha": -1}, ValueError, "Invalid alpha value: -1"),
    (RMSprop, {"eps": -1}, ValueError, "Invalid epsilon value: -1"),
    (RMSprop, {"momentum": -1}, ValueError, "Invalid momentum value: -1"),
    (RMSprop, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    (Adam, {"lr": -1}, ValueError, "Invalid learning rate: -1"),
    (Adam, {"betas": (1.0, 0.5)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    (Adam, {"betas": (0.5, -0.5)}, ValueError, "Invalid beta parameter at index 1: -0.5"),
    (Adam, {"eps": -1}, ValueError, "Invalid epsilon value: -1"),
    (Adam, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    (AdamW, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    *[
        (cls, {key: -1}, ValueError, f"Invalid {name}: -1")
        for cls, keys in {
            Adadelta: ("lr", "rho", "eps", "weight_decay"),
            Adamax: ("lr", "eps", "weight_decay"),
            NAdam: ("lr", "eps", "weight_decay", "momentum_decay"),
            RAdam: ("lr", "eps", "weight_decay"),
            ASGD: ("lr", "lambd", "alpha", "weight_decay"),
            Rprop: ("lr",),
        }.items()
        for key in keys
        for name in [{"lr": "learning rate", "eps": "epsilon value"}.get(key, f"{key} value")]
    ],
    *[
        (cls, {"betas": pair}, ValueError, f"Invalid beta parameter at index {index}: {pair[index]}")
        for cls in (Adamax, NAdam, RAdam)
        for pair, index in (((1.0, 0.5), 0), ((0.5, -0.5), 1))
    ],
    (Adadelta, {"rho": 1.5}, ValueError, "Invalid rho value: 1.5"),
    (Rprop, {"etas": (0.0, 1.2)}, ValueError, "Invalid eta values: 0.0, 1.2"),
    (Rprop, {"etas": (0.5, 1.0)}, ValueError, "Invalid eta values: 0.5, 1.0"),
]

# torch lets these pass, or fails later.
BAD_FOR_US = [
    *[
        (cls, {key: NAN}, ValueError, r"Invalid .*: nan")
        for cls, keys in {
            SGD: ("lr", "momentum", "dampening", "weight_decay"),
            Adagrad: ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"),
            RMSprop: ("lr", "alpha", "eps", "weight_decay", "momentum"),
            Adam: ("lr", "eps", "weight_decay"),
            AdamW: ("lr", "eps", "weight_decay"),
            Adadelta: ("lr", "rho", "eps", "weight_decay"),
            Adamax: ("lr", "eps", "weight_decay"),
            NAdam: ("lr", "eps", "weight_decay", "momentum_decay"),
            RAdam: ("lr", "eps", "weight_decay"),
            ASGD: ("lr", "lambd", "alpha", "t0", "weight_decay"),
            Rprop: ("lr",),
        }.items()
        for key in keys
    ],
    (NAdam, {"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay must be True or False, got 1"),
    (RAdam, {"decoupled_weight_decay": 0}, TypeError, "decoupled_weight_decay must be True or False, got 0"),
    (Rprop, {"etas": (0.5, NAN)}, ValueError, "Invalid .*nan"),
    (Rprop, {"etas": 0.5}, TypeError, "etas must be a tuple of two numbers, got 0.5"),
    (Rprop, {"step_sizes": (NAN, 50)}, ValueError, "Invalid step size at index 0: nan"),
    (Rprop, {"step_sizes": (1e-6, "50")}, TypeError, "step size at index 1 must be a number, got str: '50'"),
    (Adam, {"betas": (NAN, 0.5)}, ValueError, "Invalid beta parameter at index 0: nan"),
    (Adam, {"betas": 0.9}, TypeError, "betas must be a tuple of two numbers, got 0.9"),
    (Adam, {"betas": (0.9, 0.99, 0.999)}, TypeError, "betas must be a tuple of two numbers"),
    (Adam, {"betas": ("0.9", 0.99)}, TypeError, "beta parameter at index 0 must be a number, got str: '0.9'"),
    (Adam, {"amsgrad": 1}, TypeError, "amsgrad must be True or False, got 1"),
    (Adam, {"maximize": None}, TypeError, "maximize must be True or False, got None"),
    (RMSprop, {"centered": "yes"}, TypeError, "centered must be True or False, got 'yes'"),
    (SGD, {"lr": "0.1"}, TypeError, "lr must be a number or a function.*got str: '0.1'"),
    (SGD, {"lr": None}, TypeError, "lr must be a number or a function"),
    (SGD, {"lr": True}, TypeError, "lr must be a number or a function"),
    (SGD, {"lr": np.ones(1)}, TypeError, "lr must be a number or a function.*ndarray"),
    (SGD, {"momentum": 1j}, TypeError, "momentum value must be a number, got complex"),
    # What we do not implement is not accepted.
    (Adam, {"foreach": True}, TypeError, "foreach"),
    (AdamW, {"fused": None}, TypeError, "fused"),
    (AdamW, {"decoupled_weight_decay": True}, TypeError, "decoupled_weight_decay"),
]


@pytest.mark.parametrize(("cls", "bad", "error", "text"), [*BAD_HYPERPARAMETERS, *BAD_FOR_US])
def test_bad_hyperparameters(cls, bad, error, text):
    with pytest.raises(error, match=text):
        cls([np.ones(2)], **bad)


@pytest.mark.parametrize(("cls", "bad", "error", "text"), BAD_HYPERPARAMETERS)
def test_torch_says_the_same(cls, bad, error, text):
    torch = pytest.importorskip("torch")
    with pytest.raises(error, match=text):
        getattr(torch.optim, cls.__name__)([torch.ones(2, requires_grad=True)], **bad)


@pytest.mark.parametrize(("cls", "bad", "error", "text"), [*BAD_HYPERPARAMETERS, *BAD_FOR_US])
def test_bad_hyperparameters_of_a_group(cls, bad, error, text):
    good = np.ones(2)
    optimizer = cls([good])
    before = snapshot(optimizer)
    if cls is AdamW and "decoupled_weight_decay" in bad:
        bad, error, text = {"decoupled_weight_decay": False}, ValueError, "decoupled"
    with pytest.raises(error, match=text) as caught:
        optimizer.add_param_group({"params": [np.ones(3)], **bad})
    assert "param_groups[1]" in str(caught.value)
    assert snapshot(optimizer) == before
    optimizer.step([np.ones(2)])


def masked():
    return np.ma.masked_array(np.ones(2), [True, False])


def read_only():
    array = np.ones(2)
    array.flags.writeable = False
    return array


def unaligned():
    return np.zeros(17, np.uint8)[1:].view(np.float64)


BAD_PARAMETERS = [
    (lambda: np.ones(2, int), TypeError, r"has dtype int64; .* = .*\.astype\(np\.float64\) before the optimizer"),
    (lambda: np.ones(2, bool), TypeError, "has dtype bool"),
    (lambda: np.ones(2, complex), TypeError, "has dtype complex128"),
    (lambda: np.ones(2, object), TypeError, "has dtype object"),
    (lambda: np.array(["a"]), TypeError, "has dtype <U1"),
    (lambda: np.float64(1), TypeError, "is a NumPy scalar.*0-dimensional array"),
    (
        lambda: 1.0,
        TypeError,
        r"but .* is a float; .* = np.array\(1\.0\) before the optimizer",
    ),
    (lambda: [1.0, 2.0], TypeError, "can only optimize NumPy arrays, but .* is a list"),
    (lambda: None, TypeError, "can only optimize NumPy arrays, but .* is a NoneType"),
    (masked, TypeError, "is a masked array"),
    (read_only, ValueError, "is read-only.*copy"),
    (lambda: np.broadcast_to(np.ones(1), 2), ValueError, "is read-only.*copy"),
    (lambda: np.ones(2, ">f4" if np.little_endian else "<f4"), ValueError, "is byte-swapped.*astype"),
    (unaligned, ValueError, "is not aligned.*copy"),
]


# Where a long double is a double, it is served.
if np.dtype(np.longdouble).itemsize > 8:
    BAD_PARAMETERS.append((lambda: np.ones(2, np.longdouble), TypeError, "has dtype (float|longdouble)"))


@pytest.mark.parametrize(("make", "error", "text"), BAD_PARAMETERS)
def test_bad_parameters(make, error, text):
    good = np.ones(2)
    with pytest.raises(error, match=text) as caught:
        SGD([good, make()])
    assert "params[1]" in str(caught.value)
    with pytest.raises(error, match=text) as caught:
        SGD({"good": good, "bad": make()})
    assert "params['bad']" in str(caught.value)
    optimizer = SGD([good])
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": [np.ones(2), make()]})
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ([], ValueError, "optimizer got an empty parameter list"),
        ({}, ValueError, "optimizer got an empty parameter list"),
        (
            np.ones(2),
            TypeError,
            "should be an iterable of arrays or dicts, but got ndarray; put a single array",
        ),
        ("ab", TypeError, "should be an iterable of arrays or dicts, but got str"),
        (None, TypeError, "should be an iterable of arrays or dicts, but got NoneType"),
        ({"params": [np.ones(2)]}, TypeError, "a group dict must be in a list"),
        ([{"lr": 0.1}], ValueError, r"param_groups\[0\] has no 'params'"),
        (
            [{"params": 3}],
            TypeError,
            r"params of param_groups\[0\] must be a list or a dict of arrays, got 3",
        ),
        ([{"params": [np.ones(2)]}, np.ones(2)], TypeError, "param_group must be a dict, but got ndarray"),
        (
            [{"params": [np.ones(2)], "learning_rate": 1}],
            TypeError,
            r"param_groups\[0\] has unknown keys.*'lr'",
        ),
        (
            [{"params": [np.ones(2)], "foreach": True}],
            TypeError,
            r"param_groups\[0\] has unknown keys \['foreach'\]",
        ),
        (
            [{"params": [np.ones(2)]}, {"params": [1]}],
            TypeError,
            r"param_groups\[1\]\['params'\]\[0\] is a int",
        ),
    ],
)
def test_bad_structures(params, error, text):
    with pytest.raises(error, match=text):
        SGD(params)


def test_a_parameter_given_twice():
    w, v = np.ones(2), np.ones(2)
    with pytest.raises(ValueError, match=r"some parameters appear more than once: params\[2\] is params\[0\]"):
        SGD([w, v, w])
    optimizer = SGD([w])
    with pytest.raises(ValueError, match=r"some parameters appear more than once"):
        optimizer.add_param_group({"params": [v, w]})
    assert len(optimizer.param_groups) == len(optimizer.state) == 1
    optimizer.step([v])


# Bad gradients


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda: np.ones(3), ValueError, "shape"),
        (lambda: np.ones((2, 1)), ValueError, "shape"),
        (lambda: np.array(1.0), ValueError, "shape"),
        (lambda: np.ones(2, np.longdouble), TypeError, "expected float32, float64 or float16"),
        (lambda: np.ones(2, complex), TypeError, "complex128"),
        (lambda: np.ones(2, object), TypeError, "object"),
        (
            lambda: np.ones(2, ">f8" if np.little_endian else "<f8"),
            (TypeError, ValueError),
            "byte|swap|>f8|native",
        ),
        (lambda: np.float64(1), ValueError, r"has shape \(\), expected \(2,\)"),
        (lambda: 1.0, TypeError, "float"),
        (lambda: [1.0, 2.0], TypeError, "list"),
        (masked, TypeError, "masked"),
        (unaligned, ValueError, "align"),
    ],
)
@every_class
@pytest.mark.parametrize("steps", [0, 1])
def test_bad_gradients(cls, hyper, bad, error, text, steps):
    params = {"first": np.ones(4), "second": np.ones(2), "third": np.ones(1)}
    named, listed = cls(params, **hyper), cls(list(deepcopy(params).values()), **hyper)
    grouped = cls([{"params": [array]} for array in deepcopy(params).values()], **hyper)
    good = [np.ones(4), np.ones(2), np.ones(1)]
    cases = [
        (named, lambda grads: dict(zip(params, grads, strict=True)), "second"),
        (listed, lambda grads: grads, "params[1]"),
        (grouped, lambda grads: [[grad] for grad in grads], "param_groups[1]"),
    ]
    for optimizer, arrange, name in cases:
        for _ in range(steps):
            optimizer.step(arrange(good))
        before = snapshot(optimizer)
        with pytest.raises(error, match=text) as caught:
            optimizer.step(arrange([good[0], bad(), good[2]]))
        assert name in str(caught.value)
        assert snapshot(optimizer) == before
        optimizer.step(arrange(good))


@pytest.mark.parametrize(
    ("grads", "error", "text"),
    [
        (
            [np.ones(2)],
            ValueError,
            "grads must have 2 entries, one for each parameter, got 1; None stands for",
        ),
        ([np.ones(2)] * 3, ValueError, "grads must have 2 entries, one for each parameter, got 3"),
        ([], ValueError, "grads must have 2 entries, one for each parameter, got 0"),
        (
            np.ones((2, 2)),
            TypeError,
            "grads must be a list of 2 gradients, as the parameters are, got ndarray",
        ),
        ({"a": np.ones(2), "b": np.ones(2)}, TypeError, "grads must be a list of 2 gradients.*got dict"),
        ({1.0, 2.0}, TypeError, "grads must be a list of 2 gradients.*got set"),
        ((np.ones(2) for _ in range(3)), ValueError, "grads must have 2 entries, one for each parameter, got 3"),
        (None, TypeError, "grads must be a list of 2 gradients.*got NoneType"),
        ([[np.ones(2), np.ones(2)], None], TypeError, r"params\[0\].*list"),
    ],
)
def test_wrong_number_or_kind_of_gradients_for_a_list(grads, error, text):
    optimizer = SGD([np.ones(2), np.ones(2)], momentum=0.9)
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.step(grads)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("grads", "error", "text"),
    [
        ({"a": np.ones(2)}, ValueError, "grads lacks 'b'; None stands for no gradient"),
        ({}, ValueError, "grads lacks 'a', 'b'"),
        ({"a": None, "b": None, "c": None}, ValueError, "grads has 'c', but the parameters are 'a', 'b'"),
        ({"a": None, "B": None}, ValueError, "grads lacks 'b'"),
        ([np.ones(2), np.ones(2)], TypeError, "grads must be a dict, .* with the keys 'a', 'b'; got list"),
    ],
)
def test_wrong_names_of_gradients(grads, error, text):
    optimizer = SGD({"a": np.ones(2), "b": np.ones(2)}, momentum=0.9)
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.step(grads)
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("grads", "error", "text"),
    [
        ([[np.ones(2)]], ValueError, "for each of the 2 groups, got 1 entries"),
        (
            [np.ones(2), np.ones(2)],
            TypeError,
            r"grads\[0\] must be a list of 1 gradient, .*got ndarray; put a single one into a list",
        ),
        ([[None], [None]], TypeError, r"grads\[1\] must be a dict.*'b'; got list"),
        ([[None, None], {"b": None}], ValueError, r"grads\[0\] must have 1 entry.*got 2"),
        ([[None], {}], ValueError, r"grads\[1\] lacks 'b'"),
        ({"a": None}, TypeError, "for each of the 2 groups, got dict"),
    ],
)
def test_wrong_gradients_for_groups(grads, error, text):
    optimizer = SGD([{"params": [np.ones(2)]}, {"params": {"b": np.ones(2)}}], momentum=0.9)
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.step(grads)
    assert snapshot(optimizer) == before


# Bad memory, found by the step


def overlapping_views():
    memory = np.ones(6)
    return [memory[:4], memory[2:]]


def same_memory():
    memory = np.ones(6)
    return [memory, memory.reshape(2, 3)]


def in_itself():
    return [np.ones(2), np.lib.stride_tricks.as_strided(np.ones(4), (3, 2), (8, 8))]


def stride_zero():
    return [np.ones(2), np.lib.stride_tricks.as_strided(np.ones(4), (4,), (0,))]


def two_owners():
    """The same memory, but nothing in the arrays' bases says so."""
    memory = bytearray(32)
    return [np.frombuffer(memory), np.frombuffer(memory)]


def through_a_memoryview():
    array = np.ones(4)
    return [array, np.asarray(memoryview(array))[2:]]


@every_class
@pytest.mark.parametrize(
    "make",
    [overlapping_views, same_memory, in_itself, stride_zero, two_owners, through_a_memoryview],
)
def test_overlapping_parameters(cls, hyper, make):
    params = make()
    optimizer = cls([np.ones(3), *params], **hyper)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"shares? memory") as caught:
        optimizer.step([np.ones(3), *(np.ones(array.shape) for array in params)])
    assert "params[1]" in str(caught.value) or "params[2]" in str(caught.value)
    assert snapshot(optimizer) == before


@every_class
def test_gradient_in_the_memory_of_a_parameter(cls, hyper):
    a, b = np.ones(3), np.ones(3)
    same_as_a = np.asarray(memoryview(a))
    for grads in ([a, np.ones(3)], [b, np.ones(3)], [np.ones(3), a[::-1]], [same_as_a, np.ones(3)]):
        optimizer = cls([a, b], **hyper)
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=r"shares? memory"):
            optimizer.step(grads)
        assert snapshot(optimizer) == before


def test_views_between_each_others_elements_do_not_overlap():
    matrix, interleaved, number = np.zeros((5, 3)), np.zeros(6), np.zeros(4, complex)
    params = [*matrix.T, interleaved[::2], interleaved[1::2], number.real]
    grads = [np.full(array.shape, i + 1.0) for i, array in enumerate(params)]
    SGD(params, lr=1).step([*grads[:-1], number.imag])
    assert matrix.tolist() == [[-1, -2, -3]] * 5
    assert interleaved.tolist() == [-4, -5] * 3
    assert not number.any()


@every_class
@pytest.mark.parametrize("cut", [np.s_[::2, :], np.s_[:, :40], np.s_[:, :3]], ids=["rows", "columns", "few columns"])
def test_matrices_between_each_others_rows_are_apart(cls, hyper, cut):
    """As if each had memory of its own."""

    def parts(base):
        columns = cut[1].stop
        return [base[cut], base[1::2] if columns is None else base[:, columns:]]

    base, draw = np.ones((20, 80), np.float32), np.random.default_rng(0)
    params, own = parts(base), [part.copy() for part in parts(base)]
    optimizer, expected = cls(params, **hyper), cls(own, **hyper)
    for dtype, order in ((np.float32, "C"), (np.float32, "F"), (np.float64, "C"), (np.float64, "F")):
        grads = [np.asarray(draw.normal(size=part.shape), dtype, order) for part in params]
        optimizer.step(grads)
        expected.step(grads)
    for part, alone in zip(params, own, strict=True):
        np.testing.assert_array_equal(part, alone)


def test_memory_that_is_only_read_may_overlap():
    a, b, shared = np.ones(3), np.ones(3), np.ones(3)
    SGD([a, b], lr=1).step([shared, np.broadcast_to(np.ones(1), 3)])
    SGD([a, b], lr=1).step([shared, shared])
    assert a.tolist() == b.tolist() == [-1, -1, -1]


def test_frozen_parameters_are_not_looked_at():
    a, b = np.ones(3), np.ones(3)
    optimizer = SGD([a, b], lr=1)
    b.flags.writeable = False
    optimizer.step([np.ones(3), None])
    assert (a[0], b[0]) == (0, 1)


@every_class
def test_parameter_that_became_read_only(cls, hyper):
    a, b = np.ones(3), np.ones(3)
    optimizer = cls([a, b], **hyper)
    optimizer.step([np.ones(3), np.ones(3)])
    b.flags.writeable = False
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"read-only") as caught:
        optimizer.step([np.ones(3), np.ones(3)])
    assert "params[1]" in str(caught.value)
    assert snapshot(optimizer) == before


@every_class
@pytest.mark.parametrize("damage", ["shape", "dtype", "read-only", "missing", "alias", "type"])
def test_damaged_states(cls, hyper, damage):
    optimizer = cls([np.ones(3), np.ones(3)], **hyper)
    optimizer.step([np.ones(3), np.ones(3)])
    state = optimizer.state[0][1]
    key = next(key for key in state if key != "step")
    if damage == "missing" and cls is SGD:
        pytest.skip("SGD starts a missing buffer anew, as torch does")
    if damage == "shape":
        state[key] = np.ones(4)
    elif damage == "dtype":
        state[key] = np.ones(3, np.float32)
    elif damage == "read-only":
        state[key].flags.writeable = False
    elif damage == "missing":
        del state[key]
    elif damage == "alias":
        state[key] = optimizer.state[0][0][key]
    else:
        state[key] = [1.0, 1.0, 1.0]
    before = {name: np.array(value) for name, value in state.items()}
    params = [array.copy() for array in optimizer.param_groups[0]["params"]]
    first = deepcopy(optimizer.state[0][0])
    with pytest.raises((TypeError, ValueError, KeyError)) as caught:
        optimizer.step([np.ones(3), np.ones(3)])
    assert key in str(caught.value)
    assert "params[1]" in str(caught.value) or damage == "alias"
    for array, copy in zip(optimizer.param_groups[0]["params"], params, strict=True):
        assert array.tobytes() == copy.tobytes()
    for name, value in before.items():
        assert np.array_equal(state[name], value)
    for name, value in first.items():
        assert np.array_equal(optimizer.state[0][0][name], value)


def test_parameter_lists_changed_behind_our_back():
    optimizer = SGD([np.ones(2)], momentum=0.9)
    optimizer.param_groups[0]["params"].append(np.ones(2))
    before = snapshot(optimizer)
    with pytest.raises(ValueError):
        optimizer.step([np.ones(2), np.ones(2)])
    assert snapshot(optimizer) == before


# Learning rates, found by the step


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-1, ValueError, "Invalid learning rate: -1 in"),
        (NAN, ValueError, "Invalid learning rate: nan in"),
        ("0.1", TypeError, "lr must be a number, got str: '0.1' in"),
        (np.ones(1), TypeError, "lr must be a number, got ndarray"),
        (None, ValueError, "no learning rate in"),
    ],
)
def test_bad_learning_rates_in_a_step(value, error, text):
    optimizer = SGD([{"params": [np.ones(2)]}, {"params": [np.ones(2)]}], momentum=0.9)
    optimizer.param_groups[1]["lr"] = value
    before = snapshot(optimizer)
    with pytest.raises(error, match=text) as caught:
        optimizer.step([[np.ones(2)], [np.ones(2)]])
    assert "param_groups[1]" in str(caught.value)
    if value is not None:
        optimizer.param_groups[1]["lr"] = lambda step: value
        with pytest.raises(error, match=text + r".*param_groups\[1\], returned by its function for step 0"):
            optimizer.step([[np.ones(2)], [np.ones(2)]])
        optimizer.param_groups[1]["lr"] = value
    assert {**snapshot(optimizer), "groups": 0} == {**before, "groups": 0}


def test_a_learning_rate_function_that_raises():
    def schedule(step):
        raise RuntimeError("no more steps")

    optimizer = SGD([np.ones(2)], lr=schedule)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="no more steps"):
        optimizer.step([np.ones(2)])
    assert snapshot(optimizer) == before


# Settings changed after construction, found by the step


AFTERWARDS = [
    (cls, bad, error, text)
    for cls, bad, error, text in [*BAD_HYPERPARAMETERS, *BAD_FOR_US]
    if not {"lr", "foreach", "fused"} & bad.keys() and not (cls is AdamW and "decoupled_weight_decay" in bad)
] + [
    (AdamW, {"decoupled_weight_decay": False}, ValueError, "AdamW's weight decay is decoupled"),
    (Adam, {"betas": (1.0, 0.999)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
    (AdamW, {"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    (AdamW, {"betas": [0.9, 1.0]}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    (SGD, {"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
    (RMSprop, {"momentum": np.array(0.9)}, TypeError, "momentum value must be a number, got ndarray"),
]


def test_every_setting_that_constructors_check_is_spoilt_afterwards():
    for cls in {cls for cls, _ in CLASSES.values()}:
        spoilt = {key for other, bad, *_ in AFTERWARDS if issubclass(cls, other) for key in bad}
        spoilt |= {"decoupled_weight_decay"} if cls in (Adam, AdamW) else set()
        assert cls._oxistep_checks.keys() - {"lr", "maximize"} <= spoilt, cls


@pytest.mark.parametrize(("cls", "bad", "error", "text"), AFTERWARDS)
@pytest.mark.parametrize("steps", [0, 2])
def test_bad_settings_put_into_a_group(cls, bad, error, text, steps):
    optimizer = cls([{"params": [np.ones(2)]}, {"params": [np.ones(2)]}])
    grads = [[np.ones(2)], [np.ones(2)]]
    for _ in range(steps):
        optimizer.step(grads)
    good = dict(optimizer.param_groups[1])
    optimizer.param_groups[1].update(bad)
    before = snapshot(optimizer)
    for _ in range(2):  # what was refused is not remembered as good
        with pytest.raises(error, match=text) as caught:
            optimizer.step(grads)
        assert str(caught.value).endswith(" in param_groups[1]") or "param_groups[1];" in str(caught.value)
        assert snapshot(optimizer) == before
    optimizer.param_groups[1].update(good)
    optimizer.step(grads)


def test_a_list_of_betas_changed_in_place():
    optimizer = Adam([np.ones(2)])
    betas = optimizer.param_groups[0]["betas"] = [0.5, 0.5]
    optimizer.step([np.ones(2)])
    betas[0] = 1.0
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1\.0"):
        optimizer.step([np.ones(2)])
    assert snapshot(optimizer) == before


def test_a_learning_rate_function_that_spoils_its_group():
    def schedule(step):
        optimizer.param_groups[0]["betas"] = (1.0, 0.999)
        return 0.1

    w = np.ones(2)
    optimizer = Adam([w], lr=schedule)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1\.0"):
        optimizer.step([np.ones(2)])
    assert w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("cls", sorted({cls for cls, _ in CLASSES.values()} - {SGD}, key=lambda cls: cls.__name__))
@pytest.mark.parametrize("count", [-1.0, NAN, float("inf")])
def test_a_step_counter_that_counts_no_steps(cls, count):
    optimizer = cls([np.ones(2), np.ones(2)])
    optimizer.step([np.ones(2), np.ones(2)])
    optimizer.state[0][1]["step"][...] = count
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r'state "step" of params\[1\] must be a number of steps, got'):
        optimizer.step([np.ones(2), np.ones(2)])
    assert snapshot(optimizer) == before


# Bad checkpoints


def damage(path, value):
    """A function that sets what lies at the path in a state dict, or deletes it."""

    def apply(state_dict):
        *way, last = path
        for key in way:
            state_dict = state_dict[key]
        if value is damage:
            del state_dict[last]
        else:
            state_dict[last] = value

    return apply


GROUP = ("param_groups", 0)
STATE = ("state", 1)


@pytest.mark.parametrize(
    ("apply", "error", "text"),
    [
        (damage(("state",), damage), ValueError, "must have 'state' and 'param_groups'"),
        (damage(("state",), []), TypeError, "'state' of a state_dict must be a dict"),
        (damage(("param_groups",), {}), TypeError, "'param_groups' a list"),
        (damage(("param_groups",), []), ValueError, "different number of parameter groups"),
        (damage(GROUP, 3), TypeError, r"expected a dict in param_groups\[0\] of the loaded"),
        (damage((*GROUP, "params"), [0]), ValueError, "that doesn't match the size of optimizer's group"),
        (damage((*GROUP, "params"), damage), ValueError, r"'params' missing in param_groups\[0\]"),
        (damage((*GROUP, "betas"), damage), ValueError, "'betas' missing.*was it saved by Adam"),
        (
            damage((*GROUP, "lr"), -1),
            ValueError,
            r"Invalid learning rate: -1 in param_groups\[0\] of the loaded",
        ),
        (damage((*GROUP, "eps"), NAN), ValueError, "Invalid epsilon value: nan"),
        (
            damage((*GROUP, "amsgrad"), True),
            ValueError,
            r"loaded state of params\[0\] lacks 'max_exp_avg_sq'",
        ),
        (damage((*STATE, "exp_avg"), damage), ValueError, r"loaded state of params\[1\] lacks 'exp_avg'"),
        (damage((*STATE, "exp_avg"), None), ValueError, r"loaded state of params\[1\] lacks 'exp_avg'"),
        (
            damage((*STATE, "exp_avg"), np.ones(3)),
            ValueError,
            r"loaded exp_avg of params\[1\] has shape \(3,\)",
        ),
        (
            damage((*STATE, "exp_avg"), "abc"),
            TypeError,
            r"loaded exp_avg of params\[1\] must be an array of numbers",
        ),
        (damage((*STATE, "exp_avg"), masked()), TypeError, r"loaded exp_avg of params\[1\].*MaskedArray"),
        (
            damage((*STATE, "exp_avg"), [[1.0], [1.0, 2.0]]),
            TypeError,
            r"exp_avg of params\[1\] cannot be read",
        ),
        (damage((*STATE, "step"), np.ones(2)), ValueError, r"loaded step of params\[1\] has shape \(2,\)"),
        (damage((*STATE, "step"), -1), ValueError, r"loaded step of params\[1\] must be a number of steps"),
        (damage((*STATE, "step"), NAN), ValueError, r"loaded step of params\[1\] must be a number of steps"),
        (damage((*STATE, "sum"), np.ones(2)), ValueError, "has 'sum', that of Adam has.*another optimizer"),
        (damage(STATE, [1]), TypeError, r"loaded state of params\[1\] must be a dict, got list"),
        (damage(("state", 7), {}), ValueError, "states for 7"),
        (damage(("step_count",), -1), ValueError, "step_count must be a whole number"),
        (damage(("step_count",), 1.5), ValueError, "step_count must be a whole number"),
    ],
)
def test_bad_state_dicts(apply, error, text):
    params = [np.ones(2), np.ones(2)]
    optimizer = Adam(params)
    optimizer.step([np.ones(2), np.ones(2)])
    saved = deepcopy(optimizer.state_dict())
    # Something to lose: every entry of the checkpoint now differs from the optimizer.
    optimizer.step([np.ones(2), np.ones(2)])
    optimizer.param_groups[0]["lr"] = 0.5
    apply(saved)
    before = snapshot(optimizer)
    with pytest.raises(error, match=text):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before
    optimizer.step([np.ones(2), np.ones(2)])


def test_state_dict_of_another_class():
    saved = SGD([np.ones(2)], momentum=0.9).state_dict()
    with pytest.raises(ValueError, match="was it saved by Adam"):
        Adam([np.ones(2)]).load_state_dict(saved)
    with pytest.raises(TypeError, match="state_dict must be a dict, got list"):
        Adam([np.ones(2)]).load_state_dict([])


def test_state_dict_with_other_names():
    saved = SGD({"a": np.ones(2), "b": np.ones(2)}).state_dict()
    optimizer = SGD({"a": np.ones(2), "c": np.ones(2)})
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"'a', 'b'.*'a', 'c'; delete 'param_names' there"):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer) == before
    del saved["param_groups"][0]["param_names"]
    optimizer.load_state_dict(saved)


def test_tensors_that_numpy_cannot_read():
    torch = pytest.importorskip("torch")
    optimizer = SGD([np.ones(2)], momentum=0.9)
    saved = optimizer.state_dict()
    saved["state"][0] = {"momentum_buffer": torch.ones(2, dtype=torch.bfloat16)}
    with pytest.raises(
        TypeError, match=r"loaded momentum_buffer of params\[0\] cannot be read as a NumPy array.*BFloat16"
    ):
        optimizer.load_state_dict(saved)
    with pytest.raises(TypeError, match=r"can only optimize NumPy arrays, but .* is a torch\.Tensor; oxistep.optim"):
        SGD([torch.ones(2)])
