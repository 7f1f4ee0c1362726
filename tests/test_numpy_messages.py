"""Remedies: a message is followed to the letter, and the model trains."""

import re

import numpy as np
import pytest

from numpy_table import CLASSES
from oxistep.numpy import SGD, Adam, RMSprop, clip_grad_norm, zoo

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)


def read_only():
    array = np.ones(3)
    array.flags.writeable = False
    return array


SPOILT = {
    "int": lambda: np.ones(3, int),
    "bool": lambda: np.ones(3, bool),
    "read-only": read_only,
    "broadcast": lambda: np.broadcast_to(np.ones(1), 3),
    "byte-swapped": lambda: np.ones(3).astype(np.dtype(float).newbyteorder()),
    "unaligned": lambda: np.zeros(25, np.uint8)[1:].view(np.float64),
    "list": lambda: [1.0, 1.0, 1.0],
    "scalar": lambda: np.float64(1.0),
    "number": lambda: 1.0,
}
if np.dtype(np.longdouble).itemsize > 8:
    SPOILT["longdouble"] = lambda: np.ones(3, np.longdouble)


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("form", ["list", "dict", "nested"])
def test_a_remedy_for_a_parameter_is_code_that_leads_to_a_model_that_trains(spoilt, form):
    names = {"np": np, "w": spoilt(), "params": {"W": spoilt()}}
    if form == "nested":
        names["params"] = {"layers": [names["params"]]}

    def made():
        return SGD([names["w"]] if form == "list" else names["params"], lr=0.5)

    with pytest.raises((TypeError, ValueError)) as caught:
        made()
    message = str(caught.value)
    assert "copy of" not in message
    assert "before the optimizer is made, and let the model use that array" in message
    (code,) = re.findall(r"(?:;|:|array,) (\S+ = .*?),? before the optimizer", message)
    exec(code, names)
    optimizer = made()
    if form == "list":
        array, grads = names["w"], [np.ones_like(names["w"])]
    else:
        layer = names["params"]["layers"][0] if form == "nested" else names["params"]
        array, grads = layer["W"], {"W": np.ones_like(layer["W"])}
        grads = {"layers": [grads]} if form == "nested" else grads
    before = array.copy()
    optimizer.step(grads)
    assert (array == before - 0.5).all(), "the model's array has moved"


def test_overlapping_parameters_are_for_two_optimizers():
    matrix = np.zeros((4, 6))
    params = [matrix[:, :3], matrix[:, 2:]]
    grads = [np.ones(array.shape) for array in params]
    with pytest.raises(ValueError, match=r"shares memory with.* give each of them an optimizer of its own") as caught:
        SGD(params, lr=1).step(grads)
    assert "copy" not in str(caught.value)
    assert not matrix.any()
    for array, grad in zip(params, grads, strict=True):
        SGD([array], lr=1).step([grad])
    assert matrix[0].tolist() == [-1, -1, -2, -1, -1, -1]


@every_class
def test_a_parameter_that_became_read_only_is_not_to_be_copied(cls, hyper):
    params = {"w": np.ones(3)}
    optimizer = cls(params, **hyper)
    params["w"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['w'\] is read-only.*params\['w'\] = params\['w'\].copy\(\) before"):
        optimizer.step({"w": np.ones(3)})


def test_a_gradient_that_is_the_parameter_may_be_copied():
    w = np.ones(3)
    with pytest.raises(ValueError, match="copy"):
        SGD([w]).step([w])
    SGD([w], lr=1.0).step([w.copy()])
    assert not w.any()


def foreign(module, name, **members):
    return type(name, (), {"__module__": module, **members})()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (foreign("cupy", "ndarray"), "is a cupy.ndarray; it lies on a GPU"),
        (foreign("jaxlib.xla_extension", "ArrayImpl"), r"is a jaxlib.ArrayImpl; .* w = np.array\(w\)"),
        (foreign("pandas.core.series", "Series"), "is a pandas.Series; .*to_numpy"),
        (foreign("scipy.sparse._csr", "csr_matrix"), r"is a scipy.csr_matrix; .*w.toarray\(\)"),
        (foreign("mylib", "Weights"), "is a mylib.Weights"),
    ],
)
def test_foreign_parameters_are_named_by_their_library(value, text):
    with pytest.raises(TypeError, match=text):
        SGD([value])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (foreign("scipy.sparse._csr", "csr_matrix", toarray=lambda self: np.ones(2)), r"give it as grad.toarray\(\)"),
        (foreign("cupy", "ndarray"), r"is a cupy.ndarray, not a NumPy array: give grad.get\(\)"),
        (foreign("torch", "Tensor"), r"give grad.numpy\(\)"),
        (foreign("jaxlib", "ArrayImpl"), r"give np.asarray\(grad\)"),
    ],
)
@pytest.mark.parametrize("cls", [SGD, zoo.Lion])
def test_foreign_gradients(cls, value, text):
    w = np.ones(2)
    with pytest.raises(TypeError, match=r"the gradient of params\[0\] .*" + text):
        cls([w]).step([value])
    assert (w == 1).all()


@pytest.mark.parametrize(
    ("cls", "wrong", "text"),
    [
        (
            SGD,
            {"learning_rate": 0.1},
            "SGD got an unexpected keyword argument 'learning_rate'; learning_rate= is lr= here",
        ),
        (Adam, {"beta1": 0.9, "beta2": 0.99}, r"beta1= and beta2= are betas=\(beta1, beta2\) here"),
        (Adam, {"alpha": 0.1, "epsilon": 1e-8}, "alpha= is lr= here; epsilon= is eps= here"),
        (SGD, {"mu": 0.9}, "mu= is momentum= here"),
        (SGD, {"clipnorm": 1.0}, "clipnorm= is max_grad_norm= here"),
        (RMSprop, {"decay_rate": 0.9}, "decay_rate= is alpha= here"),
        (RMSprop, {"rho": 0.9}, "rho= is alpha= here"),
        (zoo.Lion, {"learning_rate": 0.1}, "learning_rate= is lr= here"),
        (Adam, {"no_such_thing": 1}, "no_such_thing"),
    ],
)
def test_arguments_by_the_names_of_other_libraries(cls, wrong, text):
    with pytest.raises(TypeError, match=text):
        cls([np.ones(2)], **wrong)
    with pytest.raises(TypeError, match="has unknown keys"):
        cls([{"params": [np.ones(2)], **wrong}])


def test_names_that_a_class_has_are_its_own():
    assert RMSprop([np.ones(2)], alpha=0.9).defaults["alpha"] == 0.9

    class Mine(SGD):
        def __init__(self, params, learning_rate, **others):
            super().__init__(params, lr=learning_rate, **others)

    assert Mine([np.ones(2)], learning_rate=0.5, momentum=0.9).lr == 0.5
    with pytest.raises(TypeError, match="learning_rate= is lr= here"):
        SGD([{"params": [np.ones(2)], "learning_rate": 0.5}])


@pytest.mark.parametrize(
    ("grads", "text"),
    [
        ([1.0, 1.0, 1.0], r"must have 1 entry.*got 3; the gradient of an array is one array: step\(\[np.array"),
        ((0.5, [np.ones(3)]), r"of a pair \(value, gradients\) give the second"),
        ([np.ones(3), np.ones(3)], "None stands for no gradient"),
        (np.ones(3), "put a single one into a list"),
    ],
)
def test_gradients_in_a_wrong_form(grads, text):
    with pytest.raises((TypeError, ValueError), match=text):
        SGD([np.ones(3)]).step(grads)


@pytest.mark.parametrize("form", ["list", "dict", "nested"])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_the_remedy_for_a_replaced_array_ends_the_error(form, momentum):
    """In a notebook the other array stays where it is, whatever is written into it."""
    w = np.ones(2)
    params = {"list": [w], "dict": {"W": w}, "nested": {"out": {"W": w}}}[form]
    where = params["out"] if form == "nested" else params
    key = 0 if form == "list" else "W"
    grads = {"list": [np.ones(2)], "dict": {"W": np.ones(2)}, "nested": {"out": {"W": np.ones(2)}}}[form]
    optimizer = SGD(params, lr=0.5, momentum=momentum)
    optimizer.step(grads)
    for new in (where[key] * 2, where[key] * 3):
        where[key] = new
        with pytest.raises(ValueError, match="has been replaced by another array") as caught:
            optimizer.step(grads)
        assert ("(named 'out.W')" in str(caught.value)) == (form == "nested")
        (code,) = re.findall(r"and (optimizer\.replace\(.*\)) once to train", str(caught.value))
        exec(code, {"optimizer": optimizer, "params": params})
        assert where[key] is new
        before = new.copy()
        optimizer.step(grads)
        assert (where[key] < before).all(), "the array that is there now has moved"


def test_the_remedy_for_an_array_that_became_a_number():
    params = {"b": np.zeros(())}
    optimizer = SGD(params, lr=0.5)
    params["b"] = params["b"] - 1.0
    with pytest.raises(ValueError, match="has been replaced by another array") as caught:
        optimizer.step({"b": 1.0})
    first, second = re.findall(r"and (params\S+ = .*?) and (optimizer\.replace\(.*\)) once", str(caught.value))[0]
    names = {"np": np, "optimizer": optimizer, "params": params}
    exec(first, names)
    exec(second, names)
    optimizer.step({"b": 1.0})
    assert params["b"] == -1.5


@pytest.mark.parametrize("cls", [SGD, Adam, zoo.Lion])
def test_names_of_schedules_and_of_torch_lead_on(cls):
    for name in ("schedule", "scheduler", "lr_schedule", "lr_scheduler"):
        with pytest.raises(TypeError, match=rf"{name}= is lr=schedules.cosine\(0.1, steps=1000\) here"):
            cls([np.ones(1)], **{name: 1})
        with pytest.raises(AttributeError, match=rf"no attribute '{name}': lr takes a function of the step"):
            getattr(cls([np.ones(1)]), name)
    optimizer = cls([np.ones(1)])
    for name, text in (("zero_grad", "leave the call out"), ("learning_rate", "optimizer.lr"), ("update", r"step\(")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}': .*{text}"):
            getattr(optimizer, name)
    assert not hasattr(optimizer, "zero_grad")
    with pytest.raises(AttributeError, match=r"no attribute 'anything'$"):
        optimizer.anything  # noqa: B018
    optimizer.scheduler = 1
    assert optimizer.scheduler == 1


def test_a_complex_gradient_is_to_be_made_real():
    w = np.ones(2)
    with pytest.raises(TypeError, match=r"complex128.*: give its real part, \.real$"):
        SGD([w], lr=1.0).step([w + 1j])
    SGD([w], lr=1.0).step([(w + 1j).real])
    assert not w.any()


def locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    memory[:] = array.view(np.uint8)
    return memory.view(array.dtype)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda state: state.astype(np.float32),
        lambda state: state.astype(int),
        locked,
        misaligned,
        lambda state: np.broadcast_to(state[:1], state.shape),
    ],
    ids=["float32", "integers", "read-only", "misaligned", "broadcast"],
)
@pytest.mark.parametrize("make", [Adam, zoo.Lion], ids=["Adam", "Lion"])
def test_what_is_said_of_a_state_leads_to_one_that_is_taken(make, spoilt):
    w = np.zeros(3)
    optimizer = make([w], lr=0.5)
    optimizer.step([np.ones(3)])
    before, entry = w.copy(), optimizer.state[0][0]
    entry["exp_avg"] = spoilt(entry["exp_avg"])
    with pytest.raises((TypeError, ValueError), match='state "exp_avg" of') as caught:
        optimizer.step([np.ones(3)])
    assert (w == before).all()
    (method,) = re.findall(r"replace it in optimizer\.state by its (\.\S+\))$", str(caught.value))
    entry["exp_avg"] = eval(f"state{method}", {"np": np, "state": entry["exp_avg"]})
    optimizer.step([np.ones(3)])
    assert (w < before).all()


def test_a_state_that_shares_memory_is_replaced_by_a_copy():
    w = np.zeros(3)
    optimizer = Adam([w], lr=0.5)
    optimizer.step([np.ones(3)])
    entry = optimizer.state[0][0]
    entry["exp_avg"] = entry["exp_avg_sq"]
    with pytest.raises(ValueError, match=r"replace the state in optimizer\.state by its \.copy\(\)$"):
        optimizer.step([np.ones(3)])
    entry["exp_avg"] = entry["exp_avg"].copy()
    optimizer.step([np.ones(3)])
    assert optimizer.step_count == 2


def test_a_gradient_that_cannot_be_clipped_is_copied_for_the_step_too():
    grad = locked(np.full(4, 3.0))
    with pytest.raises(ValueError, match=r"grad = np\.array\(grad\), and give that one to the step too") as caught:
        clip_grad_norm([grad], 1.0)
    names = {"np": np, "grad": grad}
    exec(re.findall(r"grad = np\.array\(grad\)", str(caught.value))[0], names)
    clip_grad_norm([names["grad"]], 1.0)
    w = np.zeros(4)
    SGD([w], lr=1.0).step([names["grad"]])
    assert np.allclose(w, -0.5)


def test_a_key_that_is_written_otherwise_is_named():
    with pytest.raises(ValueError, match="lacks 'w', but has 'W'; None stands for no gradient"):
        SGD({"w": np.ones(3)}).step({"W": np.ones(3)})
    with pytest.raises(ValueError, match="lacks 'w'; None stands for no gradient"):
        SGD({"w": np.ones(3), "b": np.ones(3)}).step({"b": np.ones(3)})
