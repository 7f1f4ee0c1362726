"""Fewer bytes in every class: torch's, the zoo's, and rules. Runs that go on to the bit, checkpoints between settings,
and what else a step does: closures, scaled gradients, clipping, monitors.
"""

import copy
import io

import numpy as np
import pytest
import torch

import oxistep
import oxistep.optim as optim
from oxistep import zoo
from oxistep.optim._kept import WEIGHTS
from test_compact import BF16, STATE_DTYPES, bits, ready, train, values
from test_compact import CLASSES as OF_TORCH

SHAPES = [(33, 130), (40,)]  # the first is kept in codes, its last block is not full; the second is not
WRAPPERS = ("Grokfast", "Lookahead", "SAM")  # whose optimizer has the settings


@oxistep.rule
def signed_and_not(p, g, s, lr=1e-3, decay=0.9):
    """A mean with a sign, and sums that are never negative."""
    s.m = decay * s.m + (1 - decay) * g
    s.v = s.v + g * g
    return p - lr * s.m / (np.sqrt(s.v) + 1e-8)


@oxistep.rule
def multiplied(p, g, s, lr=1.0, rho=0.9, eps=1e-6):
    """A mean of its own updates, as Adadelta has."""
    s.square_avg = rho * s.square_avg + (1 - rho) * g * g
    delta = np.sqrt(s.acc_delta + eps) / np.sqrt(s.square_avg + eps) * g
    s.acc_delta = rho * s.acc_delta + (1 - rho) * delta * delta
    return p - lr * delta


RULES = {"a rule": signed_and_not.torch, "a rule like Adadelta": multiplied.torch}
# One begins to move in the sixth step otherwise, the other has a compensation of its own beside bfloat16.
OF_ZOO = {"RAdamScheduleFree": {"silent_sgd_phase": False}, "StableAdamW": {"kahan_sum": False}}
ZOO = sorted(set(zoo.__all__) - {*WRAPPERS})
NAMES = [*OF_TORCH, *ZOO, *RULES]
each_class = pytest.mark.parametrize("name", NAMES)
each_class_but_torchs = pytest.mark.parametrize("name", [*ZOO, *RULES])
each_mode = pytest.mark.parametrize("weights", WEIGHTS)


def params(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def make(name, ps, **settings):
    if name in OF_TORCH:
        return getattr(optim, name)(ps, **{**OF_TORCH[name], **settings})
    if name in RULES:
        return RULES[name](ps, **settings)
    own = OF_ZOO.get(name, {})
    return ready(getattr(zoo, name)(ps, **{"lr": 1e-3, **own, **settings}))


def type_for(settings):
    return BF16 if settings.get("weights") else torch.float32


def numbers(optimizer):
    """What groups hold besides parameters; some of the zoo keep counters and estimates there."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def through_a_file(optimizer):
    file = io.BytesIO()
    torch.save([values(optimizer), optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_values(ps, saved):
    with torch.no_grad():
        for p, value in zip(ps, saved, strict=True):
            p.copy_(value)
    return ps


# ---- checkpoints ----

RESUMED = [
    {"state_dtype": "8bit"},
    {"state_dtype": BF16},
    {"state_dtype": BF16, "weights": "stochastic"},
    {"state_dtype": "8bit", "weights": "residual8", "ema": 0.9},
    {"state_dtype": torch.float32, "weights": "kahan"},
    {"state_dtype": BF16, "weights": "residual16"},
    {"state_dtype": "8bit", "weights": "master"},
]


@pytest.mark.covers(("name", "settings"))
@each_class_but_torchs
@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_a_resumed_run_goes_on_to_the_bit(name, settings):
    """As test_compact has it for torch's classes."""
    whole = train(make(name, params(type_for(settings)), **settings), 6)
    first = train(make(name, params(type_for(settings)), **settings), 3)
    saved, state = through_a_file(first)
    second = make(name, with_values(params(type_for(settings)), saved), **settings)
    second.load_state_dict(state)
    for resumed in (second, copy.deepcopy(first)):
        train(resumed, 3, first=3)
        assert {row.path for row in oxistep.explain(resumed)} == {"native"}
        assert bits(resumed) == bits(whole)
        assert numbers(resumed) == numbers(whole)


def keeps_all(saved_as, loaded_as):
    """Whether the numbers of states stay the same."""
    return saved_as == loaded_as or loaded_as in (None, torch.float32)


@each_class
@pytest.mark.parametrize("saved_as", STATE_DTYPES, ids=str)
@pytest.mark.parametrize("loaded_as", STATE_DTYPES, ids=str)
def test_checkpoints_load_into_every_setting(name, saved_as, loaded_as):
    first = train(make(name, params(), state_dtype=saved_as), 3)
    plain = oxistep.plain_state_dict(first)
    for state in (first.state_dict(), plain):
        second = make(name, with_values(params(), values(first)), state_dtype=loaded_as)
        second.load_state_dict(copy.deepcopy(state))
        like = train(make(name, params(), state_dtype=loaded_as), 1)
        for entry, wanted in zip(second.state.values(), like.state.values(), strict=True):
            kept = {key: (value.dtype, value.shape) for key, value in entry.items() if isinstance(value, torch.Tensor)}
            assert kept == {k: (v.dtype, v.shape) for k, v in wanted.items() if isinstance(v, torch.Tensor)}
            assert entry.keys() == wanted.keys()
        again = oxistep.plain_state_dict(second)["state"]
        for number, entry in plain["state"].items():
            assert entry.keys() == again[number].keys()
            for key, value in entry.items():
                if not isinstance(value, torch.Tensor) or not value.dim() or keeps_all(saved_as, loaded_as):
                    torch.testing.assert_close(again[number][key], value, rtol=0, atol=0, msg=key)
                else:
                    assert torch.dist(again[number][key], value) <= 0.06 * torch.linalg.vector_norm(value), key
        before = values(second)
        train(second, 1, first=3)
        assert all(p.isfinite().all() for p in values(second))
        assert not torch.equal(values(second)[0], before[0])


@each_class_but_torchs
def test_plain_checkpoints_are_those_of_float32_states(name):
    plain_run = train(make(name, params()), 2)
    wanted = plain_run.state_dict()
    for settings in ({"state_dtype": "8bit"}, {"state_dtype": BF16}, {"weights": "residual8", "state_dtype": "8bit"}):
        plain = oxistep.plain_state_dict(train(make(name, params(type_for(settings)), **settings), 2))
        assert [group.keys() for group in plain["param_groups"]] == [g.keys() for g in wanted["param_groups"]]
        for number, entry in wanted["state"].items():
            found = plain["state"][number]
            assert entry.keys() == found.keys()
            for key, value in entry.items():
                if isinstance(value, torch.Tensor):
                    assert found[key].shape == value.shape, key
                    # a parameter of bfloat16 has states of bfloat16, but for numbers of one element
                    assert found[key].dtype == (type_for(settings) if value.dim() else value.dtype), key
        other = make(name, params())
        other.load_state_dict(plain)
        train(other, 1)


@each_class
@each_mode
def test_weights_go_from_mode_to_mode(name, weights):
    first = train(make(name, params(BF16), weights="residual16", state_dtype="8bit"), 4)
    second = make(name, with_values(params(BF16), values(first)), weights=weights, state_dtype=BF16)
    second.load_state_dict(first.state_dict())
    if weights != "stochastic":
        units = {"residual16": 0, "master": 0, "residual8": 2**-15, "kahan": 2**-16}[weights]
        for p, q in zip(second.param_groups[0]["params"], first.param_groups[0]["params"], strict=True):
            wanted = first.master(q)
            assert not torch.equal(wanted, q.detach().float()), "there is something to keep"
            assert torch.all((second.master(p) - wanted).abs() <= units * wanted.abs())
    train(second, 1, first=4)
    assert {row.path for row in oxistep.explain(second)} == {"native"}
