"""Weights in any structure: names by path, gradients in the same structure, arrays that are replaced or grow."""

import copy
import pickle
from collections import OrderedDict, UserDict, namedtuple
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brief import number
from numpy_table import CLASSES, assert_same_state, same_bits, snapshot
from oxistep.diagnostics import UpdateMonitor
from oxistep.numpy import ASGD, SGD, Adagrad, Adam, Rprop, zoo
from oxistep.numpy._structure import rebuilt

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)

Layer = namedtuple("Layer", "W b")


def model():
    return {
        "layers": [{"W": np.ones((2, 3)), "b": np.zeros(2)}, (np.ones(3), np.zeros(()))],
        7: Layer(np.ones(2), np.ones(1)),
        ("a", 1): OrderedDict(x=np.ones(4)),
        "empty": [],
    }


NAMES = ["layers.0.W", "layers.0.b", "layers.1.0", "layers.1.1", "7.W", "7.b", "('a', 1).x"]


def grads_of(params, number=0.5):
    numbers = count(1)
    return rebuilt(params, lambda array: np.full_like(array, number * next(numbers)))


def arrays_of(params):
    found = []
    rebuilt(params, lambda array: found.append(array) or array)
    return found


# Names and gradients


@every_class
def test_a_structure_is_its_arrays_in_a_list(cls, hyper):
    nested, flat = model(), arrays_of(model())
    one, other = cls(nested, **hyper), cls(flat, **hyper)
    assert one.param_groups[0]["param_names"] == NAMES
    for step in range(3):
        one.step(grads_of(nested, 0.1 * (step + 1)))
        other.step(arrays_of(grads_of(nested, 0.1 * (step + 1))))
    assert all(map(same_bits, arrays_of(nested), flat))
    assert_same_state(one, other)


def test_names_are_paths_wherever_they_are_told():
    params = {"layers": [{"W": np.ones(2)}, {"W": np.ones(3)}]}
    optimizer = SGD(params, momentum=0.9)
    monitor = UpdateMonitor(optimizer)
    assert monitor.names == ["layers.0.W", "layers.1.W"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["layers.0.W", "layers.1.W"]
    with pytest.raises(ValueError, match=r"gradient of params\['layers.1.W'\] has shape \(2,\)"):
        optimizer.step({"layers": [{"W": np.ones(2)}, {"W": np.ones(2)}]})


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({1: np.ones(1), "1": np.ones(1)}, ["[1]", "['1']"]),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}, "c": np.ones(1)}, ["['a.b']", "['a']['b']", "c"]),
        ([(np.ones(1), np.ones(2)), (np.ones(3),)], ["0.0", "0.1", "1.0"]),
        ({frozenset({1}): np.ones(1), None: np.ones(2)}, ["frozenset({1})", "None"]),
        (UserDict(w=np.ones(2)), ["w"]),
        ([{"W": np.ones(1)}, {"W": np.ones(2)}], ["0.W", "1.W"]),
    ],
)
def test_names_of_other_structures(params, names):
    optimizer = SGD(params, lr=1.0)
    assert optimizer.param_groups[0]["param_names"] == names
    optimizer.step(rebuilt(params, np.ones_like))
    assert not any(array.any() for array in optimizer.param_groups[0]["params"])


def test_a_plain_list_has_no_names():
    assert "param_names" not in SGD([np.ones(1)]).param_groups[0]
    assert "param_names" not in SGD((np.ones(1),)).param_groups[0]


@pytest.mark.parametrize(
    "arrange",
    [
        lambda grads: list(grads.values()),
        lambda grads: tuple(grads.values()),
        lambda grads: grads.values(),
        lambda grads: (grad for grad in grads.values()),
        lambda grads: iter(grads.values()),
        lambda grads: map(np.asarray, grads.values()),
    ],
)
@pytest.mark.parametrize("given_as", [list, dict.values, lambda params: (array for array in params.values())])
def test_gradients_in_the_order_of_the_parameters(arrange, given_as):
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    optimizer = SGD(list(params.values()) if given_as is list else given_as(params), lr=1.0)
    optimizer.step(arrange({"a": np.ones(2), "b": np.full(3, 2.0)}))
    assert (params["a"] == -1).all()
    assert (params["b"] == -2).all()


def test_the_values_of_a_dict_are_told_apart_by_its_keys():
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    optimizer = SGD(params, lr=1.0)
    optimizer.step({"b": np.full(2, 2.0), "a": np.ones(2)}.values())
    assert (params["a"][0], params["b"][0]) == (-1, -2)
    with pytest.raises(TypeError, match="must be a dict, as the parameters are, with the keys 'a', 'b'; got generator"):
        optimizer.step(np.ones(2) for _ in "ab")


def test_a_generator_that_raises_changes_nothing():
    def grads():
        yield np.ones(2)
        raise RuntimeError("no more gradients")

    optimizer = SGD([np.ones(2), np.ones(2)], momentum=0.9)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="no more gradients"):
        optimizer.step(grads())
    assert snapshot(optimizer) == before


def test_none_stands_for_all_that_is_in_a_container():
    params = model()
    optimizer = Adam(params)
    grads = grads_of(params)
    grads["layers"][0] = None
    grads[7] = None
    optimizer.step(grads)
    assert [bool(entry) for entry in optimizer.state[0]] == [False, False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda g: g.pop("layers"), ValueError, "grads lacks 'layers'; None stands for no gradient"),
        (lambda g: g.update(more=1), ValueError, "grads has 'more', but the parameters are 'layers', 7"),
        (lambda g: g["layers"].pop(), ValueError, r"grads\['layers'\] must have 2 entries, .*got 1"),
        (lambda g: g["layers"][0].pop("b"), ValueError, r"grads\['layers'\]\[0\] lacks 'b'"),
        (
            lambda g: g["layers"].__setitem__(0, np.ones(2)),
            TypeError,
            r"grads\['layers'\]\[0\] must be a dict.*ndarray",
        ),
        (lambda g: g["layers"].__setitem__(1, {}), TypeError, r"grads\['layers'\]\[1\] must be a list of 2.*got dict"),
        (lambda g: g["layers"][0].update(W=[1.0]), TypeError, r"params\['layers.0.W'\]"),
        (lambda g: g["layers"][0].update(W=np.ones(5)), ValueError, r"params\['layers.0.W'\].*shape"),
    ],
)
def test_gradients_of_another_structure(spoil, error, text):
    params = model()
    optimizer = SGD(params, momentum=0.9)
    optimizer.step(grads_of(params))
    before = snapshot(optimizer)
    grads = grads_of(params)
    spoil(grads)
    with pytest.raises(error, match=text):
        optimizer.step(grads)
    assert snapshot(optimizer) == before


def test_what_is_no_structure():
    loop = [np.ones(1)]
    loop.append({"again": loop})
    with pytest.raises(ValueError, match=r"params\[1\]\['again'\] holds itself"):
        SGD(loop)
    with pytest.raises(ValueError, match="empty parameter list"):
        SGD({"layers": [], "more": {}})
    with pytest.raises(TypeError, match=r"params\['layers.0'\] is a list of numbers"):
        SGD({"layers": [[1.0, 2.0], np.ones(1)]})
    shared = np.ones(2)
    with pytest.raises(ValueError, match=r"more than once: params\['b.0'\] is params\['a'\]"):
        SGD({"a": shared, "b": [shared]})


def test_a_file_of_arrays_is_no_model(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.ones(2))
    with np.load(tmp_path / "w.npz") as file, pytest.raises(TypeError, match=r"NpzFile.*params = dict\(params\)"):
        SGD(file)


def test_groups_of_structures():
    head, body = {"W": np.zeros(2)}, [(np.zeros(2), np.zeros(1))]
    optimizer = SGD([{"params": head}, {"params": body, "lr": 0.5}], lr=1.0)
    optimizer.step([{"W": np.ones(2)}, [(np.ones(2), None)]])
    assert (head["W"][0], body[0][0][0], body[0][1][0]) == (-1, -0.5, 0)


def test_one_dict_for_all_groups_that_have_names():
    params = {"W": np.zeros(2)}
    optimizer = SGD(params, lr=1.0)
    params["head"] = [np.zeros(1)]
    optimizer.add_param_group({"params": {"head": params["head"]}, "lr": 0.5})
    optimizer.step({"head": [np.ones(1)], "W": np.ones(2)})
    optimizer.step([{"W": np.ones(2)}, {"head": [np.ones(1)]}])
    assert (params["W"][0], params["head"][0][0]) == (-2, -1)
    for bad, text in (({"W": np.ones(2)}, "lacks 'head'"), ({"W": None, "head": None, "x": None}, "has 'x'")):
        with pytest.raises(ValueError, match=text):
            optimizer.step(bad)
    optimizer.add_param_group({"params": {"W": np.zeros(2)}})
    with pytest.raises(TypeError, match="for each of the 3 groups, got dict"):
        optimizer.step({"W": np.ones(2), "head": [np.ones(1)]})


def test_gradients_that_can_be_read_once_reach_classes_that_read_them_twice():
    for name in ("Prodigy", "AdamWScheduleFree", "SophiaG"):
        by_list, by_generator = np.ones(3), np.ones(3)
        one, other = (getattr(zoo, name)([{"params": [array]}]) for array in (by_list, by_generator))
        for optimizer in (one, other):
            if hasattr(optimizer, "train"):
                optimizer.train()
        for _ in range(3):
            one.step([[np.ones(3)]])
            other.step([iter([np.ones(3)])])
        if name == "SophiaG":
            one.update_hessian([[np.ones(3)]])
            other.update_hessian([iter([np.ones(3)])])
        assert same_bits(by_list, by_generator), name
        assert_same_state(one, other)


# Arrays that are replaced


REPLACED = [
    (lambda: {"W": np.ones(2)}, lambda p: p.update(W=p["W"] - 1), r"params\['W'\]"),
    (lambda: [np.ones(2)], lambda p: p.__setitem__(0, p[0] - 1), r"params\[0\]"),
    (lambda: {"l": [{"W": np.ones(2)}]}, lambda p: p["l"][0].update(W=np.ones(2)), r"params\['l'\]\[0\]\['W'\]"),
    (lambda: {"l": [{"W": np.ones(2)}]}, lambda p: p["l"].__setitem__(0, {"W": np.ones(2)}), r"params\['l'\]\[0\]"),
    (lambda: ({"b": np.ones(())},), lambda p: p[0].update(b=p[0]["b"] - 1.0), r"params\[0\]\['b'\]"),
    (lambda: {3: np.ones(1)}, lambda p: p.update({3: np.ones(1)}), r"params\[3\]"),
]


@pytest.mark.parametrize(("make", "replace", "name"), REPLACED)
@pytest.mark.parametrize("copied", [lambda pair: pair, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replaced_array_is_noticed(make, replace, name, copied, when):
    params = make()
    optimizer = SGD(params, lr=1.0, momentum=0.9)
    grads = rebuilt(params, np.ones_like)
    optimizer.step(grads)
    if when == "before":
        replace(params)
    params, optimizer = copied((params, optimizer))
    if when == "after":
        replace(params)
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=name + r".* has been replaced by another array.*\[\.\.\.\] = .*follow=True"
        ):
            optimizer.step(grads)
        assert snapshot(optimizer) == before


def test_the_array_that_was_there_may_come_back():
    params = {"W": np.ones(2)}
    kept = params["W"]
    optimizer = SGD(params, lr=1.0)
    params["W"] = np.ones(2)
    with pytest.raises(ValueError, match="has been replaced"):
        optimizer.step({"W": np.ones(2)})
    del params["W"]
    with pytest.raises(ValueError, match=r"params\['W'\] is gone"):
        optimizer.step({"W": np.ones(2)})
    params["W"] = kept
    optimizer.step({"W": np.ones(2)})
    assert not kept.any()


def test_an_array_of_one_equal_number_is_another():
    """Lists and dicts compare such arrays by value."""
    params = [np.array(1.0), np.ones(1)]
    optimizer = SGD(params)
    params[0] = np.array(1.0)
    with pytest.raises(ValueError, match="has been replaced"):
        optimizer.step([np.array(1.0), np.ones(1)])


def test_a_new_array_is_noticed():
    params = {"W": np.ones(2)}
    optimizer = SGD(params)
    params["V"] = np.ones(2)
    with pytest.raises(ValueError, match=r"params\['V'\] is new.*add_param_group"):
        optimizer.step({"W": np.ones(2)})
    optimizer.add_param_group({"params": {"V": params["V"]}})
    optimizer.step({"W": np.ones(2), "V": np.ones(2)})


def test_the_order_of_a_dict_may_change():
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    optimizer = SGD(params, lr=1.0)
    params["a"] = params.pop("a")
    for _ in range(2):
        optimizer.step({"a": np.ones(2), "b": np.full(2, 2.0)})
    assert (params["a"][0], params["b"][0]) == (-2, -4)


@every_class
@pytest.mark.parametrize(("make", "replace", "name"), REPLACED)
def test_a_replaced_array_is_followed(cls, hyper, make, replace, name):
    params, same = make(), make()
    optimizer, other = cls(params, follow=True, **hyper), cls(same, **hyper)
    for _ in range(3):
        for one, of in ((optimizer, params), (other, same)):
            one.step(rebuilt(of, np.ones_like))
        values = arrays_of(params)[0]
        replace(params)
        arrays_of(same)[0][...] = arrays_of(params)[0]
        assert arrays_of(params)[0] is not values
    for one, of in ((optimizer, params), (other, same)):
        one.step(rebuilt(of, np.ones_like))
    assert all(map(same_bits, arrays_of(params), arrays_of(same)))
    assert_same_state(optimizer, other)
    assert optimizer.param_groups[0]["params"][0] is arrays_of(params)[0]


@pytest.mark.parametrize(
    ("new", "error", "text"),
    [
        (np.ones(3), ValueError, r"array of shape \(3,\).*optimizer.replace\(old, new\)"),
        (np.ones(2, np.float32), ValueError, "dtype float32.*optimizer.replace"),
        (np.ones(2, int), TypeError, "has dtype int64"),
        ([1.0, 2.0], TypeError, "is a list"),
        ("b", ValueError, "more than once"),
    ],
)
def test_what_cannot_be_followed_changes_nothing(new, error, text):
    params = {"a": np.ones(2), "b": np.ones(2)}
    optimizer = SGD(params, follow=True, momentum=0.9)
    optimizer.step({"a": np.ones(2), "b": np.ones(2)})
    before = snapshot(optimizer)
    held = list(optimizer.param_groups[0]["params"])
    params["a"] = params["b"] if isinstance(new, str) else new
    with pytest.raises(error, match=text):
        optimizer.step({"a": np.ones(2), "b": np.ones(2)})
    assert snapshot(optimizer) == before
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))


def test_the_values_of_a_dict_are_looked_at_too():
    params = {"a": np.ones(2)}
    optimizer = SGD(params.values())
    params["a"] = np.ones(2)
    with pytest.raises(ValueError, match=r"params\[0\] has been replaced"):
        optimizer.step([np.ones(2)])
    copied = copy.deepcopy(optimizer)  # which cannot know of what the values are
    copied.step([np.ones(2)])
    copied.add_param_group({"params": {"b": np.ones(1)}})
    copied.step([[np.ones(2)], {"b": np.ones(1)}])


# Arrays that grow


@every_class
@pytest.mark.parametrize("shape", [(5, 3), (2, 3), (4, 2), (3, 6), (4, 3), (0, 3)])
def test_replace_keeps_the_state_of_what_both_have(cls, hyper, shape):
    params = {"E": np.ones((4, 3)), "b": np.ones(2)}
    optimizer = cls(params, **hyper)
    grads = {"E": np.arange(12.0).reshape(4, 3), "b": np.ones(2)}
    for _ in range(3):
        optimizer.step(grads)
    old, new = params["E"], np.ones(shape, np.float32)
    both = tuple(slice(min(a, b)) for a, b in zip(old.shape, shape, strict=True))
    new[both] = old[both]
    before = copy.deepcopy(optimizer.state[0][0])
    optimizer.replace(old, new)
    assert params["E"] is optimizer.param_groups[0]["params"][0] is new
    beyond = np.ones(shape, bool)
    beyond[both] = False
    begins = {"step_size": hyper.get("lr"), "sum": hyper.get("initial_accumulator_value", 0), "ax": 1.0}
    for key, value in before.items():
        now = optimizer.state[0][0][key]
        if value.shape == ():
            assert now == value
        else:
            assert (now.dtype, now.shape) == (np.float32, shape)
            np.testing.assert_array_equal(now[both], value[both].astype(np.float32))
            expected = begins.get(key, 0.0) if cls in (Rprop, Adagrad, ASGD) else 0.0
            np.testing.assert_array_equal(now[beyond], np.float32(expected))
    optimizer.step({"E": np.ones(shape, np.float32), "b": np.ones(2)})


def test_the_old_elements_go_on_as_if_nothing_had_been():
    for name in ("Lion", "Prodigy", "MADGRAD", "AdaBelief", "SGDScheduleFree"):
        cls = getattr(zoo, name)
        one, params = np.ones((3, 2)), {"E": np.ones((3, 2))}
        plain, growing = cls([one], lr=0.1), cls(params, lr=0.1)
        for optimizer in (plain, growing):
            if hasattr(optimizer, "train"):
                optimizer.train()
        for step in range(4):
            grad = np.arange(6.0).reshape(3, 2) - step
            if step == 2:
                new = np.ones((4, 2))
                new[:3] = params["E"]
                growing.replace("E", new)
            plain.step([grad])
            grown = np.zeros(params["E"].shape)
            grown[:3] = grad
            growing.step({"E": grown})
        tolerance = 1e-12 if name == "Prodigy" else 0  # whose step size is a sum over all
        np.testing.assert_allclose(params["E"][:3], one, tolerance)
        np.testing.assert_array_equal(params["E"][3:], 1.0)


def test_replace_in_either_order_and_by_name():
    params = {"E": [np.ones(2)]}
    optimizer = SGD(params, lr=1.0, momentum=0.9)
    optimizer.step({"E": [np.ones(2)]})
    first = np.zeros(3)
    params["E"][0] = first
    optimizer.replace("E.0", first)
    optimizer.step({"E": [np.ones(3)]})
    second = np.zeros(1)
    optimizer.replace(first, second)
    assert params["E"][0] is second
    optimizer.replace(second, second)
    optimizer.step({"E": [np.ones(1)]})
    assert second == -(0.9 * (0.9 + 1) + 1)


@pytest.mark.parametrize(
    ("old", "new", "error", "text"),
    [
        (np.ones(2), np.ones(2), ValueError, "old is no parameter"),
        ("c", np.ones(2), ValueError, "'c' is no parameter"),
        ("a", "b", ValueError, r"more than once: params\['a'\] would be params\['b'\]"),
        ("a", np.ones(2, int), TypeError, "dtype int64"),
        ("a", np.broadcast_to(np.ones(1), 2), ValueError, "read-only"),
        ("a", np.ones((2, 2)), ValueError, "has 1 dimensions, the array in its place 2"),
    ],
)
def test_a_replacement_that_is_refused_changes_nothing(old, new, error, text):
    params = {"a": np.ones(2), "b": np.ones(2)}
    optimizer = SGD(params, momentum=0.9)
    optimizer.step({"a": np.ones(2), "b": np.ones(2)})
    before, held = snapshot(optimizer), dict(params)
    with pytest.raises(error, match=text):
        optimizer.replace(old, params["b"] if isinstance(new, str) else new)
    assert snapshot(optimizer) == before
    assert all(params[name] is held[name] for name in params)


def test_replace_before_the_first_step():
    optimizer = Adagrad([np.ones(2)], initial_accumulator_value=0.5)
    new = np.ones((3, 3))
    optimizer.replace(optimizer.param_groups[0]["params"][0], np.ones(2, np.float32))
    assert optimizer.state[0][0]["sum"].dtype == np.float32
    optimizer = Adam([np.ones(2)])
    optimizer.replace(optimizer.param_groups[0]["params"][0], new)
    optimizer.step([np.ones((3, 3))])
    assert new[0, 0] != 1


# Everything at once

keys = st.one_of(st.text("ab.", max_size=2), st.integers(0, 3), st.tuples(st.integers(0, 2)), st.booleans())
leaves = st.tuples(st.lists(st.integers(0, 3), max_size=2), st.sampled_from([np.float64, np.float32, np.float16]))
structures = st.recursive(
    leaves.map(lambda leaf: np.ones(*leaf)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3), st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=6,
).filter(lambda tree: not isinstance(tree, np.ndarray) and arrays_of(tree))


def spoilt(grads, wrong):
    """The same gradients, but for one of them."""
    return rebuilt(grads, lambda grad: np.ones(7) if grad is wrong else grad)


def containers_of(tree):
    found = [tree] if isinstance(tree, dict | list) else []
    for value in tree.values() if isinstance(tree, dict) else tree:
        if not isinstance(value, np.ndarray):
            found += containers_of(value)
    return found


@settings(max_examples=number(whole=100, brief=30), deadline=None)
@given(tree=structures, data=st.data(), follow=st.booleans())
def test_any_structure_with_arrays_that_are_replaced(tree, data, follow):
    """A step is that over a plain list; what it refuses leaves all as it is, whatever is done in between."""
    flat = [array.copy() for array in arrays_of(tree)]
    optimizer, plain = Adam(tree, lr=0.1, follow=follow), Adam(flat, lr=0.1)
    names = optimizer.param_groups[0]["param_names"] if "param_names" in optimizer.param_groups[0] else None
    assert names is None or len(set(names)) == len(names) == len(flat)
    for _ in range(data.draw(st.integers(1, 4))):
        event = data.draw(st.sampled_from(["step", "step", "replace", "grow", "bad gradient", "copy"]))
        grads = rebuilt(tree, lambda a: np.full_like(a, data.draw(st.integers(-3, 3))))
        held = [(c, k) for c in containers_of(tree) for k in (c if isinstance(c, dict) else range(len(c)))]
        held = [(c, k) for c, k in held if isinstance(c[k], np.ndarray)]
        if event == "copy":
            tree, optimizer = data.draw(st.sampled_from([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]))(
                (tree, optimizer)
            )
        elif event == "grow":
            i = data.draw(st.integers(0, len(flat) - 1))
            old = arrays_of(tree)[i]
            new = np.ones([n + data.draw(st.integers(0, 1)) for n in old.shape], old.dtype)
            new[tuple(map(slice, old.shape))] = old
            tuples = not any(c[k] is old for c, k in held)
            optimizer.replace(old, new)
            plain.replace(flat[i], new.copy())
            flat = plain.param_groups[0]["params"]
            if tuples:  # which cannot be changed, so the structure has the old one still
                return
        elif event == "replace" and held:
            container, key = data.draw(st.sampled_from(held))
            old = container[key]
            container[key] = old.copy()
            if not follow:
                before = snapshot(optimizer)
                with pytest.raises(ValueError, match="has been replaced"):
                    optimizer.step(grads)
                assert snapshot(optimizer) == before
                container[key] = old
        elif event == "bad gradient":
            before = snapshot(optimizer)
            wrong = arrays_of(grads)[data.draw(st.integers(0, len(flat) - 1))]
            with pytest.raises((TypeError, ValueError)):
                optimizer.step(spoilt(grads, wrong))
            assert snapshot(optimizer) == before
        else:
            optimizer.step(grads)
            plain.step(arrays_of(grads))
            assert all(map(same_bits, arrays_of(tree), flat))
            assert_same_state(optimizer, plain)


@every_class
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_an_array_without_dimensions_is_replaced_with_its_counters(cls, hyper, dtype):
    """Its states and counters have the same shape: only the former take after the new array."""
    params, other = {"b": np.ones((), dtype)}, {"b": np.ones((), dtype)}
    one, two = cls(params, **hyper), cls(other, **hyper)
    for step in range(4):
        if step == 2:
            one.replace("b", params["b"].copy())
        one.step({"b": 0.5})
        two.step({"b": 0.5})
    assert same_bits(params["b"], other["b"])
    for key, value in one.state[0][0].items():
        assert same_bits(value, two.state[0][0][key])


def test_arrays_replaced_in_a_mapping_that_is_no_dict_are_noticed():
    params = UserDict(a=np.array([1.0]), b=np.array([2.0]))
    grads = {"a": np.ones(1), "b": np.ones(1)}
    optimizer = SGD(params, lr=0.1)
    optimizer.step(grads)
    params["a"] = params["a"] * 1.0
    with pytest.raises(ValueError, match="has been replaced by another array"):
        optimizer.step(grads)
    following = SGD(params, lr=0.1, follow=True)
    params["a"] = params["a"] * 1.0
    before = params["a"].copy()
    following.step(grads)
    assert (params["a"] < before).all()
    new = np.array([5.0])
    following.replace("a", new)
    assert params["a"] is new
