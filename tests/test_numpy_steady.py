"""Steps over arrays that are like the last one take a short way: what it believes, and what ends it."""

import gc
import pickle
import weakref
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import pytest

import oxistep
from numpy_table import CLASSES, same_bits, snapshot
from oxistep.numpy import SGD, Adam, AdamW, RMSprop, zoo

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


# Numbers in a row, arrays without dimensions, are updated together


def numbers(draw, dtypes):
    return [np.array(draw.normal(), dtype) for dtype in dtypes]


MIXED = [np.float64] * 5 + [np.float32] * 4 + [np.float16] * 3 + [np.float64]


@every_class
@pytest.mark.parametrize("dtypes", [[np.float64] * 41, [np.float32] * 7, MIXED], ids=["f64", "f32", "mixed"])
@pytest.mark.parametrize("form", ["list", "tuple", "dict", "nested", "with arrays"])
def test_numbers_in_a_row_are_updated_as_each_alone(cls, hyper, dtypes, form):
    draw = np.random.default_rng(0)
    params = numbers(draw, dtypes)
    if form == "with arrays":
        params[3:3] = [draw.normal(size=(2, 3)), draw.normal(size=4).astype(np.float32)]
    copies = deepcopy(params)

    def given(row):
        if form in ("dict", "nested"):
            row = {f"x{k}": one for k, one in enumerate(row)}
        return {"list": list, "tuple": list, "nested": lambda row: {"all": [row]}}.get(form, lambda row: row)(row)

    def gradient(param, step, k):
        if param.ndim:
            return np.full(param.shape, 0.25 * step)
        kinds = [float, lambda x: int(3 * x), np.float64, np.float32, lambda x: x > 0]
        return kinds[k % 5 if step > 4 else 0](draw.normal())

    short, general = cls(given(params), **hyper), cls(given(copies), **hyper)
    for step in range(9):
        row = [gradient(param, step, k) for k, param in enumerate(params)]
        if step > 6:
            row[2] = None  # and counters differ from then on
        short.step(tuple(row) if form == "tuple" else given(row))
        forget(general)
        general.step(given(row))
        assert all(map(same_bits, params, copies)), step
        for own, others in zip(short.state[0], general.state[0], strict=True):
            assert own.keys() == others.keys()
            assert all(same_bits(own[key], others[key]) for key in own)


@every_class
@pytest.mark.parametrize("settings", [{"max_grad_norm": 0.5}, {"skip_nonfinite": True}])
def test_numbers_in_a_row_with_a_norm(cls, hyper, settings):
    draw = np.random.default_rng(0)
    params = numbers(draw, [np.float64] * 9)
    copies = deepcopy(params)
    short, general = cls(params, **hyper, **settings), cls(copies, **hyper, **settings)
    for step in range(6):
        row = [float(draw.normal()) for _ in params]
        if step == 4:
            row[5] = float("nan") if "skip_nonfinite" in settings else row[5]
        short.step(row)
        forget(general)
        general.step(row)
        assert all(map(same_bits, params, copies))
    assert short.step_count == general.step_count == (6 if "max_grad_norm" in settings else 5)


@every_class
def test_what_ends_the_short_way_of_numbers_in_a_row(cls, hyper):
    """Each of these, between two steps, and then the same as in an optimizer that never takes the short way."""

    def smaller(optimizer):
        optimizer.param_groups[0]["lr"] *= 0.5

    def another_parameter(optimizer):
        group = optimizer.param_groups[0]
        group["params"][2] = group["params"][2].copy()

    def another_state(optimizer):
        optimizer.state[0][2] = deepcopy(optimizer.state[0][2])

    def other_arrays_in_a_state(optimizer):
        optimizer.state[0][1].update(
            {key: np.array(value + 1, value.dtype) for key, value in optimizer.state[0][1].items()}
        )

    def a_counter_ahead(optimizer):
        for key, value in optimizer.state[0][1].items():
            if key == "step":
                value += 3

    def other_memory(optimizer):
        with pytest.warns(DeprecationWarning) if np.lib.NumpyVersion(np.__version__) >= "2.5.0" else nullcontext():
            optimizer.param_groups[0]["params"][3].dtype = np.int64
            optimizer.param_groups[0]["params"][3].dtype = np.float64

    def with_dimensions(optimizer):
        optimizer.param_groups[0]["params"][0].resize((1,), refcheck=False)
        for value in optimizer.state[0][0].values():
            if value.dtype == np.float64:
                value.resize((1,), refcheck=False)

    changes = (smaller, another_parameter, another_state, other_arrays_in_a_state, a_counter_ahead, other_memory)
    for change in (*changes, with_dimensions):
        params = numbers(np.random.default_rng(1), [np.float64] * 5)
        copies = deepcopy(params)
        short, general = cls(iter(params), **hyper), cls(iter(copies), **hyper)
        for step in range(7):
            if step == 3:
                change(short)
                change(general)
            row = [0.5 + k - step for k in range(5)]
            if change is with_dimensions and step >= 3:
                row[0] = np.array([row[0]])
            short.step(row)
            forget(general)
            general.step(row)
            now = [optimizer.param_groups[0]["params"] for optimizer in (short, general)]
            assert all(map(same_bits, *now)), change.__name__
            for own, others in zip(short.state[0], general.state[0], strict=True):
                assert all(same_bits(own[key], others[key]) for key in others), change.__name__


@every_class
def test_what_a_step_of_numbers_in_a_row_refuses_changes_nothing(cls, hyper):
    params = numbers(np.random.default_rng(2), [np.float64] * 6)
    optimizer = cls(params, **hyper)
    good = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    for _ in range(3):
        optimizer.step(good)
    for bad, error, text in (
        ([*good[:5], "6"], TypeError, "str"),
        ([*good[:5], 6j], TypeError, "complex"),
        ([*good[:5], np.ones(1)], ValueError, "shape"),
        ([*good[:5], params[5]], ValueError, "shares memory"),
        (good[:5], ValueError, "entries"),
        ([*good, 7.0], ValueError, "entries"),
    ):
        before = snapshot(optimizer)
        with pytest.raises(error, match=text):
            optimizer.step(bad)
        assert snapshot(optimizer) == before
        optimizer.step(good)
        optimizer.step(good)
    params[4].flags.writeable = False
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step(good)
    assert snapshot(optimizer) == before
    for entry in optimizer.state[0]:
        if "step" in entry:
            entry["step"][...] = -1
    params[4].flags.writeable = True
    before = snapshot(optimizer)
    if "step" in optimizer.state[0][0]:
        with pytest.raises(ValueError, match="number of steps"):
            optimizer.step(good)
        assert snapshot(optimizer) == before


def test_containers_are_seen_whatever_they_are():
    """Lists and dicts of Python's own are compared natively, others by Python."""

    class Mine(dict):
        pass

    made = {name: np.zeros(()) for name in "abc"}
    for given in (dict(made), Mine(made), list(made.values()), dict(made).values(), {"deep": [dict(made)]}):
        optimizer = SGD(given, lr=1.0)
        inner = given["deep"][0] if isinstance(given, dict) and "deep" in given else given
        grads = [1.0, 1.0, 1.0]
        if isinstance(inner, dict):
            grads = dict(zip(inner, grads, strict=True))
        if inner is not given:
            grads = {"deep": [grads]}
        for _ in range(3):
            optimizer.step(grads)
        if hasattr(inner, "mapping"):
            continue  # of a view one array cannot be put in the place of another
        inner["b" if isinstance(inner, dict) else 1] = np.zeros(())
        with pytest.raises(ValueError, match="has been replaced"):
            optimizer.step(grads)


# Rules that users write, and the zoo


@oxistep.rule
def momentum(p, g, s, lr=0.01, beta=0.9, nesterov=False):
    s.v = beta * s.v - lr * g
    return p + beta * s.v - lr * g if nesterov else p + s.v


@oxistep.rule
def by_steps(p, g, s, lr=0.01, warm=3):
    """Another program after some steps, a state of one number, a size, a norm."""
    s.total = s.get("total", 0.5) + lr
    if s.step > warm:
        s.v = 0.5 * s.v + g / oxistep.rules.norm(g)
        return p - lr * s.v / s.total
    return p - lr * g * p.numel()


@oxistep.rule
def without_rate(p, g, s, by=0.25):
    return p - by * g


PROGRAMS = {rule.__name__: rule for rule in (momentum, by_steps, without_rate)} | {
    name: getattr(zoo, name) for name in zoo.__all__
}
every_program = pytest.mark.parametrize("cls", PROGRAMS.values(), ids=PROGRAMS)
COUNTING = ["Adan", "LAMB", "Prodigy", "StableAdamW", *(name for name in zoo.__all__ if name.endswith("ScheduleFree"))]
"""Those whose steps count in the groups."""


def made(cls, params, **settings):
    optimizer = cls(params, **settings, **({"lr": 0.01} if cls.__name__ == "StableAdamW" else {}))
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


@every_program
def test_short_and_general_steps_of_programs_agree(cls):
    """Parameters of several shapes and types, gradients that are missing, settings that change."""
    draw = np.random.default_rng(0)
    params = [draw.normal(size=shape).astype(dtype) for shape, dtype in (((4, 3), "f4"), ((3,), "f8"), ((), "f8"))]
    params.append(draw.normal(size=(6, 2)).T)
    copies = deepcopy(params)
    short, general = made(cls, params), made(cls, copies)
    for step in range(12):
        grads = [draw.normal(size=param.shape).astype(param.dtype) for param in params]
        if step % 5 == 3:
            grads[1] = None
        grads[2] = float(grads[2])
        if "lr" in short.param_groups[0] and step in (6, 9):
            for optimizer in (short, general):
                optimizer.param_groups[0]["lr"] = 0.02 if step == 6 else lambda t: 0.1 / (1 + t)
        if step == 8:
            for optimizer in (short, general):
                optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        short.step(grads)
        general.step(grads)
        forget(general)
        for param, copy in zip(params, copies, strict=True):
            assert same_bits(param, copy), step
        for own, others in zip(short.state[0], general.state[0], strict=True):
            assert own.keys() == others.keys()
            assert all(same_bits(own[key], others[key]) for key in own)
        if "lr" in short.param_groups[0]:
            assert short.last_lr == general.last_lr
        assert repr(of_groups(short)) == repr(of_groups(general))
    assert short.step_count == general.step_count == 12


@every_program
def test_programs_take_the_short_way(cls):
    """Else what is above would compare the general step with itself."""
    optimizer = made(cls, [np.ones((2, 2)), np.array(1.0)])
    grads = [np.ones((2, 2)).T, 1.0]
    for _ in range(7):
        optimizer.step(grads)
    live = optimizer._oxistep_live.seen
    left = optimizer._oxistep_plan.again(optimizer, optimizer.param_groups, optimizer.state, grads, live)
    assert left is None


def of_groups(optimizer):
    kept = [group.items() for group in optimizer.param_groups]
    return [{key: value for key, value in group if key != "params" and not callable(value)} for group in kept]


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("name", COUNTING)
def test_numbers_of_groups_count_alike(name, settings):
    """Two groups, of which one has no gradient now and then, and numbers that somebody changes."""
    draw = np.random.default_rng(1)
    params = [draw.normal(size=shape) for shape in ((4, 3), (3,), ())]
    copies = deepcopy(params)
    short, general = (
        made(getattr(zoo, name), [{"params": ps[:2]}, {"params": ps[2:]}], **settings) for ps in (params, copies)
    )
    first = of_groups(short)
    for step in range(14):
        grads = [[draw.normal(size=param.shape) for param in params[:2]], [draw.normal()]]
        if step % 6 == 4:
            grads[1] = [None]
        if step == 9 and settings.get("skip_nonfinite"):
            grads[0][0][0] = np.nan
        if step in (7, 11):
            for optimizer in (short, general):
                for group in optimizer.param_groups:
                    group.update({key: 2 * group[key] for key in ("k", "step", "d") if key in group})
        short.step(grads)
        general.step(grads)
        forget(general)
        assert all(map(same_bits, params, copies)), step
        assert repr(of_groups(short)) == repr(of_groups(general)), step
    assert repr(of_groups(short)) != repr(first)


@every_program
def test_what_a_short_step_of_a_program_refuses_changes_nothing(cls):
    a, b = np.ones((2, 2)), np.ones(3)
    optimizer = made(cls, [a, b])
    for _ in range(4):
        optimizer.step([a * 0.5, b * 0.5])
    for grads, error, text in (
        ([np.ones((2, 3)), np.ones(3)], ValueError, "shape"),
        ([np.ones((2, 2)), "b"], TypeError, "str"),
        ([np.ones((2, 2)), b], ValueError, "shares memory"),
        ([np.ones((2, 2))], ValueError, "entries"),
    ):
        before = snapshot(optimizer)
        with pytest.raises(error, match=text):
            optimizer.step(grads)
        assert snapshot(optimizer) == before
        optimizer.step([a * 0.5, b * 0.5])
    if optimizer.state[0][1]:
        optimizer.state[0][1]["step"][...] = np.nan
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match="number of steps"):
            optimizer.step([a * 0.5, b * 0.5])
        assert snapshot(optimizer) == before


def test_a_schedule_of_a_rule_is_called_once_a_step():
    called = []

    def rate(step):
        called.append(step)
        return 0.5

    w = np.zeros(2)
    optimizer = momentum([w], lr=rate)
    for step in range(5):
        optimizer.step([np.ones(2)])
        if step == 2:
            optimizer.param_groups[0]["label"] = "ends the short way"
    assert called == [0, 1, 2, 3, 4]
    assert optimizer.last_lr == 0.5


def test_a_rule_whose_settings_change_between_steps():
    w, own = np.ones(2), np.ones(2)
    short, general = momentum([w], lr=0.5), momentum([own], lr=0.5)
    for step in range(9):
        for optimizer in (short, general):
            if step == 3:
                optimizer.param_groups[0]["nesterov"] = True
            if step == 6:
                optimizer.param_groups[0]["maximize"] = True
            optimizer.step([np.full(2, 0.25)])
        forget(general)
        assert same_bits(w, own)
    short.param_groups[0]["beta"] = "a"
    with pytest.raises(TypeError, match="beta"):
        short.step([np.ones(2)])
    assert same_bits(w, own)
