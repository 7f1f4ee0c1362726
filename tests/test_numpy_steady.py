"""Steps over arrays that are like the last one take a short way: what it believes, and what ends it."""

import gc
import pickle
import weakref
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import pytest

from numpy_table import CLASSES, same_bits, snapshot
from oxistep.numpy import SGD, Adam, AdamW, RMSprop

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)

DTYPES = [np.float64, np.float32, np.float16]
OTHERS = [*DTYPES, np.int8, np.int32, np.int64, np.uint8, np.uint64, np.bool_]


def forget(optimizer):
    """Lets the next step be a general one."""
    optimizer._oxistep_plan = None


def laid_out(draw, shape, dtype):
    """An array of some layout, whose memory may have gaps."""
    way = draw.integers(6)
    if way == 0 or not shape:
        return np.zeros(shape, dtype)
    if way == 1:
        return np.zeros(shape[::-1], dtype).T
    if way == 2:
        return np.zeros((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    if way == 3:
        return np.zeros((*shape[:-1], shape[-1] + 3), dtype)[..., : shape[-1]]
    if way == 4:
        return np.zeros((2 * shape[0], *shape[1:]), dtype)[::2]
    return np.zeros(shape, dtype)[::-1]


def some_gradient(draw, param, kind):
    """A gradient of some dtype and layout."""
    if kind == "number" and param.ndim == 0:
        return [float(draw.normal()), int(draw.integers(5)), np.float32(draw.normal()), np.float64(1.5)][
            draw.integers(4)
        ]
    dtype = param.dtype if kind == "same" else OTHERS[draw.integers(len(OTHERS))]
    grad = laid_out(draw, param.shape, dtype)
    grad[...] = draw.integers(0, 2, param.shape) if dtype is np.bool_ else draw.integers(0, 50, param.shape) / 8
    return grad


@every_class
@pytest.mark.parametrize("seed", range(4))
def test_short_and_general_steps_agree(cls, hyper, seed):
    """Shapes, layouts, dtypes, gradients of every kind and gradients that are missing, mixed."""
    draw = np.random.default_rng(seed)
    shapes = [(), (3,), (4, 5), (70, 33), (2, 3, 4), (0, 2), (1,)]
    params = []
    for shape in shapes:
        params.append(laid_out(draw, shape, DTYPES[draw.integers(3)]))
        params[-1][...] = draw.normal(size=shape)
    copies = deepcopy(params)
    short, general = cls(params, **hyper), cls(copies, **hyper)
    kinds = [["same", "other", "number"][draw.integers(3)] for _ in shapes]
    grads = [some_gradient(draw, param, kind) for param, kind in zip(params, kinds, strict=True)]
    for step in range(8):
        if step % 3 == 2:
            grads = [some_gradient(draw, param, kind) for param, kind in zip(params, kinds, strict=True)]
        now = [None if draw.random() < 0.1 else grad for grad in grads]
        short.step(now)
        forget(general)
        general.step(
            [None if grad is None else np.asarray(grad).astype(p.dtype) for grad, p in zip(now, params, strict=True)]
        )
        for param, copy in zip(params, copies, strict=True):
            assert same_bits(param, copy)
    assert short.step_count == general.step_count == 8


@every_class
def test_what_ends_the_short_way_is_found(cls, hyper):
    """Each of these, between two steps, and then the same as in an optimizer that never takes the short way."""

    def smaller(optimizer, params):
        optimizer.param_groups[0]["lr"] *= 0.5

    def another_list(optimizer, params):
        optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])

    def loaded(optimizer, params):
        optimizer.load_state_dict(deepcopy(optimizer.state_dict()))

    def maximized(optimizer, params):
        optimizer.param_groups[0]["maximize"] = not optimizer.param_groups[0]["maximize"]

    def one_more(optimizer, params):
        params.append(np.ones(2))
        optimizer.param_groups[0]["params"].append(params[-1])
        optimizer.state[0].append(optimizer._oxistep_first_state(params[-1], optimizer.param_groups[0]))

    def copied_states(optimizer, params):
        for state in optimizer.state[0]:
            state.update({key: value.copy() for key, value in state.items()})

    def other_shape(optimizer, params):
        with pytest.warns(DeprecationWarning) if np.lib.NumpyVersion(np.__version__) >= "2.5.0" else nullcontext():
            params[1].shape = (2, 2)
        for value in optimizer.state[0][1].values():
            if value.ndim:
                value.shape = (2, 2)

    def a_label(optimizer, params):
        optimizer.param_groups[0]["label"] = ["mine"]

    for change in (smaller, another_list, loaded, maximized, one_more, copied_states, other_shape, a_label):
        params = [np.ones(3), np.ones(4)]
        copies = deepcopy(params)
        short, general = cls(params, **hyper), cls(copies, **hyper)
        for step in range(6):
            if step == 3:
                change(short, params)
                change(general, copies)
            grads = [np.full(param.shape, 0.5 + step) for param in params]
            short.step(grads)
            forget(general)
            general.step(grads)
            assert all(map(same_bits, params, copies)), change.__name__


@every_class
@pytest.mark.parametrize("steps", [1, 3])
def test_what_a_short_step_refuses_changes_nothing(cls, hyper, steps):
    a, b, c = np.ones(3), np.ones((2, 2)), np.array(1.0)
    optimizer = cls([a, b, c], **hyper)
    good = [np.ones(3), np.ones((2, 2)), 1.0]
    for _ in range(steps):
        optimizer.step(good)
    bad = [
        ([np.ones(3), np.ones((2, 3)), 1.0], ValueError, "shape"),
        ([np.ones(3), np.ones(4), 1.0], ValueError, "shape"),
        ([np.ones(3), np.ones((2, 2), complex), 1.0], TypeError, "complex128"),
        ([np.ones(3), np.ones((2, 2)), "1"], TypeError, "str"),
        ([np.ones(3), np.ones((2, 2)), [1.0]], TypeError, "list"),
        ([np.ones(3), np.ones((2, 2)), 1j], TypeError, "complex"),
        ([np.ones(3), np.ones((2, 2))], ValueError, "entries"),
        ([a, np.ones((2, 2)), 1.0], ValueError, "shares memory"),
        ([np.ones(3), b.T, 1.0], ValueError, "shares memory"),
        ([np.ones(3), np.ones((2, 2)), c], ValueError, "shares memory"),
        ([b.reshape(-1)[:3], np.ones((2, 2)), 1.0], ValueError, "shares memory"),
    ]
    for grads, error, text in bad:
        before = snapshot(optimizer)
        with pytest.raises(error, match=text):
            optimizer.step(grads)
        assert snapshot(optimizer) == before
        optimizer.step(good)


def test_a_parameter_that_became_read_only():
    w = np.ones(3)
    optimizer = SGD([w], lr=0.5)
    for _ in range(2):
        optimizer.step([np.ones(3)])
    w.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[0\] is read-only"):
        optimizer.step([np.ones(3)])
    assert w.tolist() == [0, 0, 0]
    w.flags.writeable = True
    optimizer.step([np.ones(3)])
    assert w.tolist() == [-0.5] * 3


def test_a_parameter_that_was_resized():
    w = np.ones(3)
    optimizer = SGD([w], lr=0.5)
    for _ in range(2):
        optimizer.step([np.ones(3)])
    w.resize(5, refcheck=False)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step([np.ones(3)])
    optimizer.step([np.ones(5)])
    assert w.tolist() == [-0.5, -0.5, -0.5, -0.5, -0.5]


def test_learning_rates_are_read_afresh():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0 / (1 + step)

    w = np.zeros(1)
    optimizer = SGD([w], lr=schedule)
    for _ in range(4):
        optimizer.step([np.ones(1)])
    assert asked == [0, 1, 2, 3]  # once a step, whichever way it takes
    assert w[0] == pytest.approx(-(1 + 1 / 2 + 1 / 3 + 1 / 4))
    for lr in (0.25, np.float64(0.5), 1):
        optimizer.param_groups[0]["lr"] = lr
        before = w[0]
        optimizer.step([np.ones(1)])
        optimizer.step([np.ones(1)])
        assert w[0] == pytest.approx(before - 2 * lr)
    for lr in (-1.0, float("nan")):
        optimizer.param_groups[0]["lr"] = lr
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match="Invalid learning rate"):
            optimizer.step([np.ones(1)])
        optimizer.param_groups[0]["lr"] = lr
        assert snapshot(optimizer) == before


def test_a_new_learning_rate_outlives_a_step_that_raises():
    w = np.zeros(1)
    optimizer = SGD([w], lr=1.0)
    for _ in range(2):
        optimizer.step([np.ones(1)])
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="must have 1 entry"):
        optimizer.step([np.ones(1), np.ones(1)])
    optimizer.step([np.ones(1)])
    assert w.tolist() == [-2.5]


def test_dicts_are_matched_by_name():
    params = {"w": np.zeros(2), "b": np.zeros(2)}
    optimizer = SGD(params, lr=1.0)
    for _ in range(3):
        optimizer.step({"w": np.ones(2), "b": np.full(2, 2.0)})
    optimizer.step({"b": np.full(2, 2.0), "w": np.ones(2)})
    key = "".join(["w"])  # another string, with the same letters
    optimizer.step({key: np.ones(2), "b": np.full(2, 2.0)})
    assert params["w"].tolist() == [-5, -5] and params["b"].tolist() == [-10, -10]
    for bad in ({"w": np.ones(2)}, {"w": np.ones(2), "c": np.ones(2)}, {"w": np.ones(2), "b": None, "c": None}):
        with pytest.raises(ValueError, match="grads"):
            optimizer.step(bad)
    assert params["w"].tolist() == [-5, -5]


def test_groups_with_other_settings():
    a, b = np.zeros(2), np.zeros(2)
    optimizer = Adam([{"params": [a], "lr": 0.5}, {"params": {"b": b}, "betas": (0.5, 0.5), "maximize": True}], lr=0.25)
    c, d = np.zeros(2), np.zeros(2)
    first, second = Adam([c], lr=0.5), Adam([d], lr=0.25, betas=(0.5, 0.5), maximize=True)
    for k in range(5):
        grads = [np.full(2, k + 1.0), np.full(2, k + 2.0)]
        optimizer.step([[grads[0]], {"b": grads[1]}])
        first.step([grads[0]])
        second.step([grads[1]])
    assert same_bits(a, c) and same_bits(b, d)


def test_gradients_are_not_kept():
    class Watched(np.ndarray):
        pass

    optimizer = RMSprop([np.ones(3)])
    for _ in range(3):
        base = np.ones(3).view(Watched)
        gradient = np.asarray(base)
        optimizer.step([gradient])
    gone = weakref.ref(base)
    del base, gradient
    assert gone() is None


def test_an_optimizer_in_a_circle_is_collected():
    class Trainer:
        def __init__(self):
            self.optimizer = SGD([np.ones(2)], lr=lambda step: self.lr)
            self.lr = 0.5

    trainer = Trainer()
    for _ in range(3):
        trainer.optimizer.step([np.ones(2)])
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


@every_class
def test_copies_begin_without(cls, hyper):
    w = np.ones(3)
    optimizer = cls([w], **hyper)
    for _ in range(3):
        optimizer.step([np.ones(3)])
    for copy in (deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        own = copy.param_groups[0]["params"][0]
        assert own is not w
        before = w.copy()
        copy.step([np.ones(3)])
        assert same_bits(w, before) and not same_bits(own, w)
        optimizer_too = deepcopy(optimizer)
        optimizer_too.step([np.ones(3)])
        assert same_bits(own, optimizer_too.param_groups[0]["params"][0])


def test_large_steps_are_the_same_whichever_way_they_take():
    draw = np.random.default_rng(0)
    w = draw.normal(size=(700, 700)).astype(np.float32)
    own = w.copy()
    short, general = AdamW([w]), AdamW([own])
    for k in range(4):
        grad = draw.normal(size=w.shape).astype(np.float64 if k > 1 else np.float32)
        grad = grad.T if k % 2 else grad
        for _ in range(2):
            short.step([grad])
            forget(general)
            general.step([grad])
    assert same_bits(w, own)


def test_every_class_takes_the_short_way():
    """Else what is above would compare the general step with itself."""
    for cls, hyper in CLASSES.values():
        optimizer = cls([np.ones(3), np.ones((2, 2)), np.array(1.0)], **hyper)
        grads = [np.ones(3), np.ones((2, 2)).T, 1.0]
        optimizer.step(grads)
        optimizer.step(grads)  # SGD's buffer is there from now on
        taken = optimizer._oxistep_plan.again(optimizer, optimizer.param_groups, optimizer.state, grads)
        assert taken is None, cls
