"""bfloat16 and float16: at least as accurate as torch's for-loop, and states kept in float32 on request."""

import contextlib
import copy
import functools
import io
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import oxistep
import oxistep.optim
from oxistep.optim import _modes
from scenarios import WHOLE, each_class, each_elementwise_class, torch_updates_raise
from seeing import Seeing

HALF = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALF, ids=str)

# One typical setting of each class. eps: the default 1e-8 is zero in float16.
SETTINGS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adagrad": {"lr": 0.05, "eps": 1e-3},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 1e-2},
    "Adam": {"lr": 0.01, "amsgrad": True, "eps": 1e-3},
    "AdamW": {"lr": 0.01, "eps": 1e-3},
    "Adadelta": {"lr": 0.5, "eps": 1e-3},
    "Adamax": {"lr": 0.01, "eps": 1e-3},
    "NAdam": {"lr": 0.01, "eps": 1e-3},
    "RAdam": {"lr": 0.01, "eps": 1e-3},
    "ASGD": {"lr": 0.01, "lambd": 0.01, "t0": 10},
    "Rprop": {"lr": 0.01},
    "Adafactor": {"lr": 0.01, "eps": (1e-2, 1e-3)},
}
SEEDS = range(8)
STEPS = 40
# The promise: not above torch's mean error, with two per cent for luck.
LUCK = 1.02


def make(optim, name, params, **extra):
    return getattr(optim, name)(params, **SETTINGS[name], **extra)


def run(optim, name, dtype, seed, arithmetic=None, steps=STEPS, **extra):
    """The parameter and its states after some steps on values that `dtype` holds; in `arithmetic`, if given."""
    generator = torch.Generator().manual_seed(seed)
    # a matrix's means of rows and columns are few: what their roundings come to would be luck
    shape = (400, 300) if name in WHOLE else (61, 7)
    p = torch.randn(shape, generator=generator).to(dtype).to(arithmetic or dtype).requires_grad_()
    optimizer = make(optim, name, [p], **extra)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator).to(dtype).to(p.dtype)
        optimizer.step()
    return {"parameter": p.detach(), **optimizer.state[p]}


@functools.lru_cache(2 * len(SEEDS))
def run_by_torch(name, dtype, seed, arithmetic=None):
    return run(torch.optim, name, dtype, seed, arithmetic, foreach=False)


OURS = {"ours": {}, "state_dtype": {"state_dtype": torch.float32}}


@functools.cache
def mean_errors(name, dtype, who):
    """Mean absolute errors against torch in float64 where torch's for-loop is finite, over all seeds."""
    errors = {}
    for seed in SEEDS:
        exact = run_by_torch(name, dtype, seed, torch.float64)
        theirs = run_by_torch(name, dtype, seed)
        judged = theirs if who == "torch" else run(oxistep.optim, name, dtype, seed, **OURS[who])
        assert judged.keys() == exact.keys()
        for key, value in exact.items():
            finite = theirs[key].isfinite()
            assert finite.any(), key
            error = (judged[key].double() - value.double()).abs()[finite].mean().item()
            errors.setdefault(key, []).append(error)
    return {key: sum(values) / len(values) for key, values in errors.items()}


@each_class
@each_half
def test_mean_error_is_not_above_torchs(name, dtype):
    ours, theirs = mean_errors(name, dtype, "ours"), mean_errors(name, dtype, "torch")
    assert ours["parameter"] > 0
    for what, error in ours.items():
        # means of rows and columns are few: three deviations (0.85 / root of n) of a mean of so many errors
        luck = LUCK + (2.5 * (len(SEEDS) * 300) ** -0.5 if what in ("row_var", "col_var") else 0)
        assert error <= luck * theirs[what], f"{what}: {error:.3e}, torch {theirs[what]:.3e}"


@each_class
@each_half
def test_states_in_float32_are_no_less_accurate(name, dtype):
    wide, narrow = mean_errors(name, dtype, "state_dtype"), mean_errors(name, dtype, "ours")
    for what, error in wide.items():
        assert error <= LUCK * narrow[what], f"{what}: {error:.3e}, without {narrow[what]:.3e}"


# ---- state_dtype ----


def trained(name, dtype, optim=oxistep.optim, steps=3, **extra):
    generator = torch.Generator().manual_seed(3)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((5, 3), (), (4,))]
    optimizer = make(optim, name, params, **extra)
    train(optimizer, steps)
    return optimizer


def wide(name, dtype):
    return trained(name, dtype, state_dtype=torch.float32)


def train(optimizer, steps=1, seed=9):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params_of(optimizer):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def params_of(optimizer):
    return optimizer.param_groups[0]["params"]


def everything(optimizer):
    """Parameters and states, as a list that `assert_bits` compares."""
    params = params_of(optimizer)
    return [{"parameter": p.detach().clone(), **copy.deepcopy(optimizer.state[p])} for p in params]


def assert_bits(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert a[key].dtype is value.dtype, key
            assert torch.equal(a[key], value), key


@each_class
@each_half
def test_only_states_of_a_half_type_are_widened(name, dtype):
    ours, theirs = wide(name, dtype), trained(name, dtype, torch.optim)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert p.dtype is dtype
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            # a 0-dimensional parameter has 0-dimensional moments, which are its own and not counters
            expected = torch.float32 if value.dtype in HALF else value.dtype
            assert ours.state[p][key].dtype is expected, key
    assert any(value.dtype in HALF for state in theirs.state.values() for value in state.values())
    # and training is native, or the option would be for nothing
    with torch_updates_raise():
        train(ours)


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_parameters_do_not_notice(name, dtype):
    assert_bits(everything(wide(name, dtype)), everything(trained(name, dtype)))


def by_state_dict(optimizer):
    return optimizer.state_dict()


def by_file(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_class
@each_half
@pytest.mark.parametrize("saved", [by_state_dict, by_file])
def test_a_checkpoint_keeps_float32_states_exactly(name, dtype, saved):
    first = wide(name, dtype)
    params = [p.detach().clone().requires_grad_() for p in params_of(first)]
    second = make(oxistep.optim, name, params, state_dtype=torch.float32)
    second.load_state_dict(saved(copy.deepcopy(first)))
    assert_bits(everything(second), everything(first))
    if name not in ("SGD", "Rprop"):  # (too few steps for these to have states that a half type cannot hold)
        values = [v for state in first.state.values() for k, v in state.items() if k != "step"]
        assert any(not torch.equal(v, v.to(dtype).to(v.dtype)) for v in values), "a cast would have gone unnoticed"
    for optimizer in (first, second):
        train(optimizer, 2, seed=5)
    assert_bits(everything(second), everything(first))


@each_class
@each_half
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_option(name, dtype, way):
    first = wide(name, dtype)
    second = way(first)
    assert_bits(everything(second), everything(first))
    for optimizer in (first, second):
        train(optimizer, 2, seed=5)
        optimizer.add_param_group({"params": [torch.ones(3, dtype=dtype, requires_grad=True)]})
        late = optimizer.param_groups[1]["params"][0]
        late.grad = torch.ones(3, dtype=dtype)
        optimizer.step()
    assert_bits(everything(second), everything(first))
    late = second.param_groups[1]["params"][0]
    narrow = [key for key, value in second.state[late].items() if value.dtype in HALF]
    assert not narrow or name == "Adagrad", narrow  # torch's Adagrad makes its states when it is constructed


@each_class
@each_half
def test_checkpoints_of_torch_and_back(name, dtype):
    theirs = trained(name, dtype, torch.optim, foreach=False)
    ours = make(oxistep.optim, name, [p.detach().clone() for p in params_of(theirs)], state_dtype=torch.float32)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        for key, value in theirs.state[q].items():
            expected = value.float() if value.dtype in HALF else value
            assert ours.state[p][key].dtype is expected.dtype, key
            assert torch.equal(ours.state[p][key], expected), key
    train(ours)

    back = make(torch.optim, name, [p.detach().clone() for p in params_of(ours)], foreach=False)
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(params_of(ours), params_of(back), strict=True):
        assert ours.state[p].keys() == back.state[q].keys()
        for key, value in ours.state[p].items():
            # torch casts whatever it loads, but for the step, to the parameter's dtype
            expected = value if key == "step" else value.to(dtype)
            assert back.state[q][key].dtype is expected.dtype, key
            assert torch.equal(back.state[q][key], expected), key
    train(back)


@each_class
def test_without_the_option_states_load_as_in_torch(name):
    """The option of the optimizer that loads decides, not the one that saved."""
    saved = copy.deepcopy(wide(name, torch.bfloat16).state_dict())
    params = params_of(trained(name, torch.bfloat16, steps=0))
    ours, theirs = make(oxistep.optim, name, params), make(torch.optim, name, params)
    ours.load_state_dict(copy.deepcopy(saved))
    theirs.load_state_dict(copy.deepcopy(saved))
    assert_bits(everything(ours), everything(theirs))


@each_class
@pytest.mark.parametrize("wrong", [torch.float64, torch.float16, torch.int32, "float32", "8-bit", float], ids=str)
def test_other_state_dtypes_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"state_dtype: expected torch\.float32.* or None, .*got "):
        make(oxistep.optim, name, [torch.ones(2)], state_dtype=wrong)


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "SparseAdam"])
@pytest.mark.parametrize("wrong", [torch.bfloat16, "8bit"], ids=str)
def test_fewer_bits_are_refused_where_elements_are_not_updated_one_by_one(name, wrong):
    with pytest.raises(ValueError, match=r"state_dtype: expected torch\.float32 .* element by element, got "):
        getattr(oxistep.optim, name)([torch.ones(2, 2)], state_dtype=wrong)


class Labelled(Seeing, torch.Tensor):
    """A subclass, which is torch's to update."""


@each_class
@each_half
@pytest.mark.parametrize("why", ["a subclass", "a flag", "a mode", "OXISTEP_BACKEND"])
@pytest.mark.parametrize("when", ["from the start", "later"])
def test_the_option_is_not_ignored_where_torch_takes_the_step(name, dtype, why, when, monkeypatch):
    """torch would make states of the half type: refused before any write."""
    optimizer = trained(name, dtype, steps=3 if when == "later" else 0, state_dtype=torch.float32)
    w = torch.ones(3, requires_grad=True)
    optimizer.add_param_group({"params": [w]})
    params = params_of(optimizer)
    for p in [*params, w]:
        p.grad = torch.ones_like(p)
    mode = contextlib.nullcontext()
    if why == "a subclass":
        params[1] = torch.ones((), dtype=dtype).as_subclass(Labelled)
        params[1].grad = torch.ones((), dtype=dtype)
    elif why == "a flag":
        optimizer.param_groups[0]["differentiable"] = True
    elif why == "a mode":
        mode = Passing()
    else:
        monkeypatch.setattr(_modes, "FORCED", True)
    before = everything(optimizer) if when == "later" and why != "a subclass" else [p.clone() for p in params]
    with (
        mode,
        pytest.raises(RuntimeError, match=r"state_dtype=torch\.float32: the torch\.\w+ parameter param_groups\[0\]"),
    ):
        optimizer.step()
    if when == "later" and why != "a subclass":
        assert_bits(everything(optimizer), before)
    else:
        assert all(map(torch.equal, before, params))
    assert torch.equal(w, torch.ones(3))
    if why == "a flag":
        optimizer.param_groups[0]["differentiable"] = False
        optimizer.step()
        assert not torch.equal(w, torch.ones(3))


class Passing(TorchDispatchMode):
    """Sees every operation and changes nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_without_states_there_is_nothing_to_refuse():
    p = torch.ones(3, dtype=torch.bfloat16).as_subclass(Labelled)
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    oxistep.optim.SGD([p], lr=0.5, state_dtype=torch.float32).step()
    assert p.tolist() == [0.5] * 3


@each_class
def test_groups_have_torchs_keys(name):
    params = [torch.ones(2, dtype=torch.bfloat16)]
    ours, theirs = make(oxistep.optim, name, params, state_dtype=torch.float32), make(torch.optim, name, params)
    for a, b in ((ours, theirs), (copy.deepcopy(ours), copy.deepcopy(theirs))):
        assert list(a.param_groups[0]) == list(b.param_groups[0])
        assert a.state_dict().keys() == b.state_dict().keys()
        assert a.defaults == b.defaults
        a_keys, b_keys = (list(o.state_dict()["param_groups"][0]) for o in (a, b))
        assert a_keys == b_keys


# ---- half gradients on float32 parameters ----


@each_elementwise_class
@each_half
@pytest.mark.parametrize("kind", ["leaf", "transposed"])
def test_a_half_gradient_counts_as_its_widened_values(name, dtype, kind):
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    generator = torch.Generator().manual_seed(2)
    p = torch.randn(33, 5, generator=generator)
    q = p.clone().requires_grad_()
    p.requires_grad_()
    p.grad_dtype = None
    a, b = make(oxistep.optim, name, [p]), make(oxistep.optim, name, [q])
    for _ in range(4):
        grad = torch.randn(33, 5, generator=generator).to(dtype)
        p.grad = grad.t().contiguous().t() if kind == "transposed" else grad
        q.grad = grad.float()
        (row,) = oxistep.explain(a)
        assert row.path == "native", row.reason
        with torch_updates_raise():
            a.step()
            b.step()
    assert p.grad.dtype is dtype
    assert torch.equal(p, q)
    assert a.state[p].keys() == b.state[q].keys()
    for key, value in b.state[q].items():
        assert a.state[p][key].dtype is value.dtype, key
        assert torch.equal(a.state[p][key], value), key
