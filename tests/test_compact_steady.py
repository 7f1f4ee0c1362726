"""Steps with fewer bytes that are like the last one take a shorter way: to the same bits as the long one, whatever was
changed in between.
"""

import copy

import pytest
import torch

import oxistep
import oxistep.optim as optim
from oxistep import rules, zoo
from oxistep.optim._kept import WEIGHTS
from test_compact import BF16, CLASSES, LARGE, SMALL, STATE_DTYPES, bits, params, train


@oxistep.rule
def momentum_of_norm(p, g, s, lr=0.01, beta=0.9):
    s.m = beta * s.m + g / (1.0 + rules.norm(g))
    return p - lr * s.m


MAKERS = {
    **{name: (getattr(optim, name), words) for name, words in CLASSES.items()},
    "Lion": (zoo.Lion, {}),
    "LAMB": (zoo.LAMB, {"lr": 1e-3}),
    "LaProp": (zoo.LaProp, {}),
    "AdamWScheduleFree": (zoo.AdamWScheduleFree, {"lr": 1e-3}),
    "a rule": (momentum_of_norm, {}),
}
SETTINGS = [
    *(({"weights": weights, "state_dtype": states}) for weights in WEIGHTS for states in STATE_DTYPES),
    {"state_dtype": BF16},
    {"state_dtype": "8bit"},
]


def made(name, settings):
    make, words = MAKERS[name]
    ps = params(BF16 if settings.get("weights") else torch.float32)
    half = len(ps) // 2
    optimizer = make([{"params": ps[:half]}, {"params": ps[half:]}], **words, **settings)
    getattr(optimizer, "train", lambda: None)()
    return optimizer


def outcome(name, settings, edit=None, between=None):
    """What three steps, an edit, and three more come to: the bits, or the error."""
    optimizer = made(name, settings)
    train(optimizer, 3)
    try:
        if edit is not None:
            optimizer = edit(optimizer) or optimizer
        for step in range(3, 6):
            train(optimizer, 1, step)
            if between is not None:
                between(optimizer)
    except Exception as error:
        return type(error), str(error)
    return bits(optimizer)


def alike(monkeypatch, *of):
    short = outcome(*of)
    with monkeypatch.context() as patch:
        patch.setenv("OXISTEP_CHECK", "1")  # every step takes the long way
        assert outcome(*of) == short
    return short


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB"])
def test_every_setting_comes_to_the_same_bits(monkeypatch, name, settings):
    assert isinstance(alike(monkeypatch, name, settings), list)


@pytest.mark.parametrize(
    "settings", [{"state_dtype": "8bit"}, {"weights": "residual16", "state_dtype": "8bit"}], ids=str
)
@pytest.mark.parametrize("name", MAKERS)
def test_every_class_comes_to_the_same_bits(monkeypatch, name, settings):
    assert isinstance(alike(monkeypatch, name, settings), list)


def first(optimizer):
    return optimizer.param_groups[0]["params"][0]


def moved(optimizer):
    first(optimizer).data = first(optimizer).data.clone()


def halved(optimizer):
    with torch.no_grad():
        first(optimizer).mul_(0.5)


def halved_unseen(optimizer):
    first(optimizer).data.mul_(0.5)


def replaced(optimizer):
    entry = optimizer.state[first(optimizer)]
    for key in list(entry):
        entry[key] = entry[key].clone()


def twice(optimizer):
    """A state stands there in codes, and in full."""
    optimizer.state[first(optimizer)]["exp_avg"] = torch.ones(LARGE)


def noted(optimizer):
    optimizer.state[first(optimizer)]["a note"] = torch.ones(1)


def short_headers(optimizer):
    entry = optimizer.state[first(optimizer)]
    entry["exp_avg_headers"].data = entry["exp_avg_headers"].data[:-1].clone()


def codes_of_another_shape(optimizer):
    entry = optimizer.state[first(optimizer)]
    entry["exp_avg_codes"].data = entry["exp_avg_codes"].data.reshape(-1).clone()


def codes_of_another_type(optimizer):
    entry = optimizer.state[first(optimizer)]
    entry["exp_avg_codes"].data = entry["exp_avg_codes"].data.to(torch.int16)


def in_float32(optimizer):
    first(optimizer).data = first(optimizer).data.float()


def turned(optimizer):
    """Laid out otherwise than its states."""
    first(optimizer).data = first(optimizer).data.t().contiguous().t()


def inserted(optimizer):
    """The second of its group from now on: other numbers are drawn for it."""
    optimizer.param_groups[0]["params"].insert(0, torch.zeros(3).requires_grad_())


def other_rate(optimizer):
    optimizer.param_groups[0]["lr"] = 2e-3


def maximizing(optimizer):
    optimizer.param_groups[1]["maximize"] = True


def loaded(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def reseeded(optimizer):
    other = made("AdamW", {"state_dtype": "8bit", "seed": 5} if first(optimizer).dtype == torch.float32 else
                 {"weights": "residual8", "state_dtype": "8bit", "seed": 5})  # fmt: skip
    other.load_state_dict(optimizer.state_dict())
    return other


def later_counter(optimizer):
    optimizer.state[first(optimizer)]["step"].fill_(100.0)


EDITS = [
    moved, halved, halved_unseen, replaced, twice, noted, short_headers, codes_of_another_shape, codes_of_another_type,
    in_float32, turned, other_rate, maximizing, loaded, reseeded, later_counter,
]  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{"state_dtype": "8bit"}, {"weights": "residual8", "state_dtype": "8bit"}], ids=str
)
@pytest.mark.parametrize("edit", EDITS)
def test_what_was_changed_in_between_counts_as_in_a_step_that_looks_everything_up(monkeypatch, settings, edit):
    alike(monkeypatch, "AdamW", settings, edit)


def test_a_parameter_is_drawn_for_by_its_place_in_the_group(monkeypatch):
    def outcome_of_steps(insert):
        optimizer = made("AdamW", {"weights": "stochastic"})
        for step in range(6):
            if step == 3 and insert:
                inserted(optimizer)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.shape in (LARGE, SMALL):
                        p.grad = torch.full(p.shape, 0.25, dtype=BF16)
            optimizer.step()
        return [p.tolist() for group in optimizer.param_groups for p in group["params"] if p.shape in (LARGE, SMALL)]

    short = {insert: outcome_of_steps(insert) for insert in (False, True)}
    assert short[False] != short[True]
    monkeypatch.setenv("OXISTEP_CHECK", "1")
    assert {insert: outcome_of_steps(insert) for insert in (False, True)} == short


@pytest.mark.parametrize("weights", ["kahan", "residual8", "residual16"])
def test_digits_survive_many_short_steps_and_are_dropped_where_somebody_writes(monkeypatch, weights):
    def add_in_place(optimizer):
        with torch.no_grad():
            first(optimizer).add_(1.0)

    kept, dropped = (alike(monkeypatch, "SGD", {"weights": weights}, None, between) for between in (None, add_in_place))
    assert kept != dropped


@pytest.mark.parametrize("settings", [{"weights": "residual16"}, {"state_dtype": "8bit"}], ids=str)
def test_gradients_that_come_and_go_or_lie_otherwise(monkeypatch, settings):
    def run():
        optimizer = made("AdamW", settings)
        for step in range(8):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    generator = torch.Generator().manual_seed(step)
                    p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            if step == 3:
                first(optimizer).grad = None
            if step in (4, 6):
                first(optimizer).grad = first(optimizer).grad.t().contiguous().t()
            optimizer.step()
        return bits(optimizer)

    short = run()
    monkeypatch.setenv("OXISTEP_CHECK", "1")
    assert run() == short


@pytest.mark.parametrize("settings", [{"weights": "residual16", "state_dtype": "8bit"}, {"state_dtype": BF16}], ids=str)
@pytest.mark.parametrize("words", [{"max_grad_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
def test_clipping_and_skipping(monkeypatch, settings, words):
    def spoil(optimizer):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, float("nan"))
        if words.get("skip_nonfinite"):
            optimizer.step()

    assert isinstance(alike(monkeypatch, "AdamW", {**settings, **words}, None, spoil), list)
