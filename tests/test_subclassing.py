"""Subclasses, replaced methods and swapped classes: what programs do with torch's classes works with ours."""

import copy
import functools
import pickle
import warnings
from unittest import mock

import pytest
import torch

import oxistep
import oxistep.optim
from every_torch_class import (
    assert_agrees,
    bowl,
    close,
    draw,
    each_of_fifteen,
    each_stepping_class,
    make,
    set_gradients,
    train,
)
from oxistep.optim._definition import definition_of
from scenarios import FORCED, NATIVE, assert_same, each_class, result, torch_updates_raise

WITH_INIT_GROUP = [name for name in (*NATIVE, "Muon") if hasattr(getattr(torch.optim, name), "_init_group")]
each_with_init_group = pytest.mark.parametrize("name", WITH_INIT_GROUP)


# ---- what torch's step calls ----


@each_of_fifteen
def test_methods_of_a_step_are_found(name):
    methods = {method for method, _ in definition_of(getattr(oxistep.optim, name)).methods}
    if name in WITH_INIT_GROUP:
        assert "_init_group" in methods
    if name == "LBFGS":
        assert methods == {
            "_gather_flat_grad", "_add_grad", "_clone_param", "_directional_evaluate", "_numel", "_set_param",
        }  # fmt: skip


@each_with_init_group
@pytest.mark.parametrize("where", ["subclass", "instance", "class"])
def test_init_group_that_changes_the_gradients(name, where, monkeypatch):
    """Centred gradients: what torch's step would use, and not the raw ones."""

    def scenario(optim):
        cls = getattr(optim, name)
        original = cls._init_group

        def centred(self, group, params, grads, *rest, **kwargs):
            came = original(self, group, params, grads, *rest, **kwargs)
            grads[:] = [grad - grad.mean() for grad in grads]
            return came

        optimizer = make(optim, name, draw(name))
        if where == "subclass":
            optimizer = make(mock.Mock(**{name: type("Centred", (cls,), {"_init_group": centred})}), name, draw(name))
        elif where == "instance":
            optimizer._init_group = functools.partial(centred, optimizer)
        else:
            monkeypatch.setattr(cls, "_init_group", centred)
        if optim is oxistep.optim:
            (reason,) = {row.reason for row in oxistep.explain(with_gradients(name, optimizer))}
            assert reason.startswith("OXISTEP" if FORCED else "_init_group is not torch's own")
        train(name, optimizer, 3)
        monkeypatch.undo()
        return result(optimizer)

    assert_agrees(name, scenario)


def with_gradients(name, optimizer):
    set_gradients(name, optimizer.param_groups[0]["params"], 0)
    return optimizer


@each_with_init_group
def test_init_group_that_adds_a_state_and_a_key_of_the_group(name):
    def scenario(optim):
        class Counting(getattr(optim, name)):
            def _init_group(self, group, *lists, **kwargs):
                group["calls"] = group.get("calls", 0) + 1
                came = super()._init_group(group, *lists, **kwargs)
                for p in group["params"]:
                    self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                return came

        optimizer = make(mock.Mock(**{name: Counting}), name, draw(name))
        train(name, optimizer, 3)
        return result(optimizer), optimizer.param_groups[0]["calls"]

    assert assert_agrees(name, scenario)[1] == 3


@pytest.mark.parametrize("method", ["_gather_flat_grad", "_add_grad", "_directional_evaluate", "_clone_param"])
@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_methods_of_lbfgs_that_a_subclass_has(method, line_search_fn):
    def scenario(optim):
        calls = []

        class Watching(optim.LBFGS):
            pass

        def watched(self, *args, **kwargs):
            calls.append(method)
            return getattr(optim.LBFGS, method)(self, *args, **kwargs)

        setattr(Watching, method, watched)
        optimizer = Watching(draw("LBFGS"), lr=0.1, max_iter=3, line_search_fn=line_search_fn)
        optimizer.step(bowl(optimizer))
        return len(calls), result(optimizer)

    assert_agrees("LBFGS", scenario)


@each_stepping_class
@pytest.mark.parametrize("where", ["subclass", "instance"])
def test_what_is_to_be_called_after_a_step(name, where):
    def scenario(optim):
        calls = []
        Mine = type("Mine", (getattr(optim, name),), {"_optimizer_step_code": lambda self: calls.append(1)})
        optimizer = make(mock.Mock(**{name: Mine if where == "subclass" else getattr(optim, name)}), name, draw(name))
        if where == "instance":
            optimizer._optimizer_step_code = lambda: calls.append(1)
        train(name, optimizer, 2)
        return len(calls)

    assert assert_agrees(name, scenario) == 2


def test_torch_compile_wraps_methods_and_the_steps_stay_native():
    optimizer = make(oxistep.optim, "Adam", draw("Adam"))
    before = torch.optim.Adam._init_group
    try:
        torch.optim.Adam._init_group = torch._dynamo.disable(before)
        with torch_updates_raise():
            train("Adam", optimizer, 2)
    finally:
        torch.optim.Adam._init_group = before
    with torch_updates_raise():
        train("Adam", optimizer, 2)


# ---- constructors ----


@each_of_fifteen
def test_a_subclass_that_hands_its_own_defaults_to_the_next_class_in_line(name):
    """`super(SGD, self).__init__(params, defaults)`: the next class is torch's Optimizer."""

    def scenario(optim):
        cls = getattr(optim, name)

        class Own(cls):
            def __init__(self, params, lr=0.25, own=3):
                super(cls, self).__init__(params, {"lr": lr, "own": own})

            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        p.data.add_(p.grad.to_dense(), alpha=-group["lr"] * group["own"])

        optimizer = Own(draw(name))
        set_gradients(name, optimizer.param_groups[0]["params"], 0)
        optimizer.step()
        return optimizer.defaults, result(optimizer)

    if name == "AdamW":  # whose next in line is Adam, which takes the dict for lr and refuses it
        name_of = {optim: _raised(scenario, optim) for optim in (torch.optim, oxistep.optim)}
        assert name_of[torch.optim] == name_of[oxistep.optim]
    else:
        assert_agrees(name, scenario)


def _raised(scenario, optim):
    with pytest.raises(Exception) as raised:
        scenario(optim)
    return raised.type, str(raised.value)


def test_a_subclass_of_adamw_that_calls_adams_constructor():
    def scenario(optim):
        class Own(optim.AdamW):
            def __init__(self, params):
                super(optim.AdamW, self).__init__(params, lr=0.1, weight_decay=0.2, decoupled_weight_decay=True)

        optimizer = Own(draw("AdamW"))
        train("AdamW", optimizer, 3)
        return result(optimizer)

    assert_agrees("AdamW", scenario)


def test_the_classes_of_torch_may_be_replaced_by_ours(monkeypatch):
    for name in NATIVE:
        monkeypatch.setattr(torch.optim, name, getattr(oxistep.optim, name))
        train(name, make(torch.optim, name, draw(name)), 2)


# ---- names ----

# What a subclass has that torch's class does not use; names that ours once had are among them.
HELPERS = [
    "_update", "_plain_step", "_new_state", "_make_state", "_in_state_dtype", "_rule", "_torch", "_scalars", "_plan",
    "_guarded", "_max_grad_norm", "_skip_nonfinite", "_state_dtype", "_torch_step", "_check_left", "_rehearse",
    "_everything", "_explain", "_observed_step", "_scaled_update", "_tear", "_torn", "_refuse_if_torn", "_note_norm",
    "_guarded_by_torch", "_narrows_states", "_refuse_narrow_states", "_loading", "_kept", "_definition", "_steps",
    "max_grad_norm", "skip_nonfinite", "state_dtype", "weights", "seed", "ema", "last_grad_norm", "kept", "definition",
    "plan", "update", "rule", "native", "explain", "rehearse", "new_state", "averaged", "master", "take_step",
]  # fmt: skip


def refuse(*_, **__):
    raise AssertionError("a method of the user's was called in the place of ours")


@each_of_fifteen
@pytest.mark.parametrize("where", ["methods", "attributes of the class", "attributes of the instance"])
def test_a_subclass_may_use_every_name(name, where):
    cls = getattr(oxistep.optim, name)
    names = [helper for helper in HELPERS if helper not in dir(getattr(torch.optim, name))]
    if where == "methods":
        cls = type("Mine", (cls,), dict.fromkeys(names, refuse))
    elif where == "attributes of the class":
        cls = type("Mine", (cls,), dict.fromkeys(names, 5))
    else:
        cls = type("Mine", (cls,), {})
    optimizer, plain = make(mock.Mock(**{name: cls}), name, draw(name)), make(oxistep.optim, name, draw(name))
    if where == "attributes of the instance":
        for helper in names:
            setattr(optimizer, helper, refuse)
    for one in (optimizer, plain):
        train(name, one, 2)
        one.load_state_dict(one.state_dict())
        train(name, one, 2, start=2)
    assert_same(result(optimizer), result(plain), exact=True)
    oxistep.explain(optimizer)
    if where == "attributes of the instance":
        assert all(getattr(optimizer, helper) is refuse for helper in names)


@each_stepping_class
def test_settings_are_the_users_names_unless_the_constructor_was_given_them(name):
    class Clipping(getattr(oxistep.optim, name)):
        def __init__(self, params, max_grad_norm, **kwargs):
            self.max_grad_norm = max_grad_norm
            super().__init__(params, **kwargs)
            self.skip_nonfinite = "when I say so"

    mine = Clipping(draw(name), 0, lr=0.1)
    plain = getattr(oxistep.optim, name)(draw(name), lr=0.1)
    assert (mine.max_grad_norm, mine.skip_nonfinite) == (0, "when I say so")
    mine.max_grad_norm = 1e-3
    for optimizer in (mine, plain):
        train(name, optimizer, 2)
    assert_same(result(mine), result(plain), exact=True)
    assert mine.last_grad_norm is None
    del mine.skip_nonfinite
    assert mine.skip_nonfinite is False
    with pytest.raises(AttributeError):
        del mine.skip_nonfinite


def test_settings_that_were_given_are_checked_when_they_change():
    optimizer = oxistep.optim.SGD(draw("SGD"), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="max_grad_norm: expected a positive number or None, got 0"):
        optimizer.max_grad_norm = 0
    assert optimizer.max_grad_norm == 1.0
    with pytest.raises(AttributeError):
        del optimizer.max_grad_norm


def test_a_setting_that_was_not_given_says_that_no_step_reads_it():
    optimizer = oxistep.optim.SGD(draw("SGD"))
    with pytest.warns(UserWarning, match="max_grad_norm was not given to the constructor of this SGD.*give max_grad"):
        optimizer.max_grad_norm = 1.0
    assert optimizer.max_grad_norm == 1.0


def test_a_mixin_further_down_the_line_has_the_name():
    class Mixin:
        max_grad_norm = 7

        @property
        def skip_nonfinite(self):
            return self.__dict__["skipping"]

        @skip_nonfinite.setter
        def skip_nonfinite(self, value):
            self.__dict__["skipping"] = value

    class Mine(oxistep.optim.SGD, Mixin):
        pass

    optimizer = Mine(draw("SGD"))
    optimizer.skip_nonfinite = 3
    assert (optimizer.max_grad_norm, optimizer.skip_nonfinite, optimizer.__dict__["skipping"]) == (7, 3, 3)


# ---- hooks and the profiler, whatever has become of `step` ----


def replaced(optim, name):
    cls = getattr(optim, name)
    optimizer, original = make(optim, name, draw(name)), cls.step

    def counting(self, *args, **kwargs):
        return original(self, *args, **kwargs)

    return optimizer, lambda: mock.patch.object(cls, "step", counting)


def patched(optim, name):
    cls = getattr(optim, name)
    optimizer, original = make(optim, name, draw(name)), cls.step
    return optimizer, lambda: mock.patch.object(cls, "step", autospec=True, side_effect=original)


def copied_mark(optim, name):
    cls = getattr(optim, name)

    class Mine(cls):
        @functools.wraps(cls.step)
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    make(optim, name, draw(name))
    return make(mock.Mock(**{name: Mine}), name, draw(name)), None


def decorated(optim, name):
    cls = getattr(optim, name)
    make(optim, name, draw(name))
    return make(mock.Mock(**{name: type("Mine", (cls,), {"step": torch.no_grad()(cls.step)})}), name, draw(name)), None


def swapped_class(optim, name):
    cls = getattr(optim, name)
    optimizer = make(optim, name, draw(name))

    def step(self, *args, **kwargs):
        return cls.step(self, *args, **kwargs)

    optimizer.__class__ = type("WithClip", (cls,), {"step": step})
    return optimizer, None


def overridden(optim, name):
    class Mine(getattr(optim, name)):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    return make(mock.Mock(**{name: Mine}), name, draw(name)), None


WAYS = [replaced, patched, copied_mark, decorated, swapped_class, overridden]


def events_of(optim, name, way):
    optimizer, patch = way(optim, name)
    events = []
    optimizer.register_step_pre_hook(lambda *_: events.append("pre"))
    optimizer.register_step_post_hook(lambda *_: events.append("post"))
    with patch() if patch else mock.MagicMock():
        train(name, optimizer, 2)
    return events


@each_stepping_class
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_hooks_run_once_around_a_step(name, way):
    assert events_of(oxistep.optim, name, way) == ["pre", "post"] * 2


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_hooks_run_around_a_step_of_lbfgs_as_often_as_around_torchs(way):
    events = events_of(oxistep.optim, "LBFGS", way)
    assert events
    assert events == events_of(torch.optim, "LBFGS", way)


@each_stepping_class
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_the_profilers_record_is_there_once(name, way):
    optimizer, patch = way(oxistep.optim, name)
    with patch() if patch else mock.MagicMock():
        train(name, optimizer, 1)
        with torch.profiler.profile() as profile:
            train(name, optimizer, 1)
    records = [event.key for event in profile.events() if event.key.startswith("Optimizer.step#")]
    assert records == [f"Optimizer.step#{type(optimizer).__name__}.step"]


# ---- copies and swapped classes ----


@each_of_fifteen
@pytest.mark.parametrize("way", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"])
def test_the_attributes_of_an_optimizer_can_be_copied(name, way):
    optimizer = make(oxistep.optim, name, draw(name))
    train(name, optimizer, 2)
    attributes = way({key: value for key, value in vars(optimizer).items() if "hooks" not in key})
    assert attributes.keys() >= {"state", "param_groups", "defaults"}
    second = object.__new__(type(optimizer))
    second.__dict__.update({key: value for key, value in vars(optimizer).items() if "hooks" in key} | attributes)
    if name == "LBFGS":
        second._params = second.param_groups[0]["params"]
    for one in (optimizer, second):
        train(name, one, 2, start=2)
    assert_same(result(second), result(optimizer), exact=True)


class Everything(oxistep.optim.Adam):
    """A subclass whose copies have all attributes."""

    def __getstate__(self):
        return self.__dict__


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_subclass_whose_state_is_all_attributes(way):
    optimizer = Everything(draw("Adam"), max_grad_norm=0.5)
    train("Adam", optimizer, 2)
    second = way(optimizer)
    assert second.max_grad_norm == 0.5
    for one in (optimizer, second):
        train("Adam", one, 2, start=2)
    assert_same(result(second), result(optimizer), exact=True)


@each_class
def test_a_step_goes_by_the_class_that_the_optimizer_has_now(name):
    def scenario(optim):
        optimizer = optim.Adam(draw(name), lr=0.1)
        train(name, optimizer, 3)
        optimizer.__class__ = getattr(optim, name)
        optimizer.state.clear()
        for key, value in make(optim, name, draw(name)).param_groups[0].items():
            if key != "params":
                optimizer.param_groups[0][key] = value
        optimizer.defaults = make(optim, name, draw(name)).defaults
        if name == "Adagrad":
            for p in optimizer.param_groups[0]["params"]:
                optimizer.state[p] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(p)}
        train(name, optimizer, 3)
        optimizer.__class__ = optim.SGD
        optimizer.state.clear()
        optimizer.param_groups[0].update(
            momentum=0.9, dampening=0, nesterov=False, weight_decay=0, differentiable=False
        )
        optimizer.defaults = {**optimizer.defaults, "differentiable": False}
        train(name, optimizer, 2)
        return result(optimizer)

    assert_agrees(name, scenario)
    assert close(name)


# ---- dicts with lookups of their own ----


class Reading(dict):
    """A group whose learning rate is looked up elsewhere."""

    def __getitem__(self, key):
        return 0.25 if key == "lr" else super().__getitem__(key)


class Making(dict):
    """A state that makes entries of its own."""

    def __missing__(self, key):
        self[key] = entry = {}
        return entry


@each_class
@pytest.mark.parametrize("what", ["group", "state"])
def test_dicts_with_lookups_of_their_own_are_honoured(name, what):
    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        if what == "group":
            optimizer.param_groups[0] = Reading(optimizer.param_groups[0])
        else:
            optimizer.state = Making(optimizer.state)
        train(name, optimizer, 3)
        if optim is oxistep.optim and not FORCED:
            (reason,) = {row.reason for row in oxistep.explain(optimizer)}
            assert reason == "a param group or the state is a dict with lookups of its own"
        return result(optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_agrees(name, scenario)
