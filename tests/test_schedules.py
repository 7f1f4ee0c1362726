"""Learning rates as functions of the step: their values, beside torch's schedulers, and what is refused."""

import copy
import math
import pickle

import numpy as np
import pytest

from oxistep import schedules
from oxistep.numpy import SGD, Adam

ALL = {
    "constant": schedules.constant(0.1),
    "step": schedules.step(0.1, every=7, factor=0.5),
    "exponential": schedules.exponential(0.1, factor=0.9),
    "cosine": schedules.cosine(0.1, steps=40, end=0.01),
    "one_cycle": schedules.one_cycle(0.1, steps=40),
    "warm_up": schedules.warm_up(5, then=schedules.cosine(0.1, steps=30)),
    "piecewise": schedules.piecewise({0: 0.1, 10: schedules.exponential(0.05, factor=0.9), 20: 0.001}),
}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


def test_every_public_schedule_is_tested():
    assert list(ALL) == sorted(schedules.__all__, key=list(ALL).index)
    assert set(ALL) == set(schedules.__all__)


def of_torch(make, steps=40):
    """The learning rates that one of torch's schedulers sets."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "make"),
    [
        (ALL["step"], lambda of, opt: of.StepLR(opt, 7, 0.5)),
        (ALL["exponential"], lambda of, opt: of.ExponentialLR(opt, 0.9)),
        (ALL["cosine"], lambda of, opt: of.CosineAnnealingLR(opt, 40, 0.01)),
        (schedules.one_cycle(0.1, steps=41), lambda of, opt: of.OneCycleLR(opt, 0.1, 41, cycle_momentum=False)),
        (
            schedules.one_cycle(0.1, steps=41, rise=0.5, start=10.0, end=100.0),
            lambda of, opt: of.OneCycleLR(
                opt, 0.1, 41, pct_start=0.5, cycle_momentum=False, div_factor=10, final_div_factor=100
            ),
        ),
        (
            schedules.piecewise({0: 0.1, 10: 0.05, 20: 0.025}),
            lambda of, opt: of.MultiStepLR(opt, [10, 20], 0.5),
        ),
    ],
)
def test_values_are_torchs(ours, make):
    np.testing.assert_allclose([ours(t) for t in range(40)], of_torch(make), rtol=1e-9)


def test_what_comes_after_the_end():
    assert ALL["cosine"](40) == ALL["cosine"](10_000) == 0.01
    last = schedules.one_cycle(0.1, steps=40)(39)
    assert last == pytest.approx(0.1 / 25 / 1e4)
    assert schedules.one_cycle(0.1, steps=40)(4000) == last
    assert schedules.one_cycle(0.1, steps=1)(0) == pytest.approx(0.1 / 25 / 1e4)
    assert ALL["piecewise"](10_000) == 0.001


def test_warm_up_meets_what_follows():
    then = schedules.exponential(0.5, factor=0.5)
    schedule = schedules.warm_up(4, then, start=0.1)
    assert [schedule(t) for t in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.25])
    assert schedules.warm_up(2, 0.5)(100) == 0.5


@every_schedule
def test_schedules_are_values(schedule):
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert [other(t) for t in range(50)] == [schedule(t) for t in range(50)]
    assert all(type(schedule(t)) is float and schedule(t) >= 0 for t in range(50))
    assert "0." in repr(schedule)


@every_schedule
def test_numpy_optimizers_take_them(schedule):
    w = np.zeros(1)
    optimizer = SGD([w], lr=schedule)
    copied = copy.deepcopy(optimizer)
    for t in range(45):
        before = w.copy()
        optimizer.step([np.ones(1)])
        copied.step([np.ones(1)])
        assert optimizer.last_lr == schedule(t)
        assert w == before - schedule(t)
    assert copied.param_groups[0]["params"][0] == w


def test_lambda_lr_takes_them():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = schedules.warm_up(3, then=schedules.cosine(1.0, steps=10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, [0.5 * schedule(t) for t in range(12)])
    scheduler.load_state_dict(pickle.loads(pickle.dumps(scheduler.state_dict())))
    assert scheduler.get_last_lr() == [0.5 * schedule(12)]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: schedules.constant("0.1"), TypeError, "value: expected a number, got str"),
        (lambda: schedules.constant(True), TypeError, "value: expected a number, got bool"),
        (lambda: schedules.constant(-0.1), ValueError, "value: expected a number that is not negative, got -0.1"),
        (lambda: schedules.constant(math.nan), ValueError, "value"),
        (lambda: schedules.constant(math.inf), ValueError, "value"),
        (lambda: schedules.step(0.1, every=0), ValueError, "every: expected a number of steps above zero, got 0"),
        (lambda: schedules.step(0.1, every=2.5), TypeError, "every: expected a number of steps, got float"),
        (lambda: schedules.step(0.1, every=2, factor=-1), ValueError, "factor"),
        (lambda: schedules.exponential(0.1, factor=None), TypeError, "factor"),
        (lambda: schedules.cosine(0.1, steps=-3), ValueError, "steps"),
        (lambda: schedules.cosine(0.1, steps=3, end=-1), ValueError, "end"),
        (lambda: schedules.one_cycle(0.1, steps=3, rise=1.5), ValueError, "rise"),
        (lambda: schedules.one_cycle(0.1, steps=3, start=0), ValueError, "start and end"),
        (lambda: schedules.warm_up(0, 0.1), ValueError, "steps"),
        (lambda: schedules.warm_up(2, "fast"), TypeError, "then"),
        (lambda: schedules.piecewise([0.1]), TypeError, "pieces: expected a dict"),
        (lambda: schedules.piecewise({1: 0.1}), ValueError, "begins at step 0"),
        (lambda: schedules.piecewise({0: 0.1, -1: 0.2}), ValueError, "a step of pieces"),
        (lambda: schedules.piecewise({0: 0.1, 5: "x"}), TypeError, r"pieces\[5\]"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


# The learning rate of an optimizer


def two_groups(lr=0.5, other=1.0):
    return SGD([{"params": [np.zeros(1)]}, {"params": [np.zeros(1)], "lr": other}], lr=lr)


def test_lr_is_that_of_all_groups():
    optimizer = two_groups(other=0.5)
    assert optimizer.lr == 0.5
    optimizer.lr *= 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    optimizer.param_groups[1]["lr"] = 1.0
    assert optimizer.lr.tolist() == [0.25, 1.0]
    optimizer.lr *= 2
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)
    optimizer.lr = [0.5, lambda step: 0.25]
    assert optimizer.lr[0] == 0.5
    optimizer.step([[np.ones(1)], [np.ones(1)]])
    assert optimizer.last_lr.tolist() == [0.5, 0.25]
    optimizer.lr = schedules.constant(0.125)
    optimizer.step([[np.ones(1)], [np.ones(1)]])
    assert optimizer.last_lr == 0.125
    assert optimizer.lr == schedules.constant(0.125)


@pytest.mark.parametrize(
    ("bad", "error"),
    [("fast", TypeError), (-1, ValueError), (math.nan, ValueError), ([0.1], ValueError), ([0.1, -1], ValueError)],
)
def test_a_bad_lr_changes_nothing(bad, error):
    optimizer = two_groups()
    with pytest.raises(error, match=r"l(r|earning rate)"):
        optimizer.lr = bad
    assert optimizer.lr.tolist() == [0.5, 1.0]
    assert optimizer.last_lr is None


def test_an_array_of_one_number_is_read_in_every_step():
    rate, w = np.array(0.5), np.zeros(1)
    optimizer = Adam([w], lr=rate)
    optimizer.step([np.ones(1)])
    rate[...] = 0.25
    optimizer.step([np.ones(1)])
    np.testing.assert_allclose(w, -0.75, rtol=1e-6)
    assert optimizer.last_lr == 0.25
    rate[...] = -1
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optimizer.step([np.ones(1)])
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        SGD([w], lr=rate)


def test_a_rule_without_a_learning_rate_has_none():
    import oxistep

    @oxistep.rule
    def shrink(p, g, s, by=0.5):
        return p - by * g

    optimizer = shrink([np.ones(1)])
    with pytest.raises(AttributeError, match="shrink has no learning rate"):
        optimizer.lr  # noqa: B018
    with pytest.raises(AttributeError, match="no learning rate"):
        optimizer.lr = 0.1


def test_a_subclass_that_sets_lr_too_early_is_told_so():
    class Mine(SGD):
        def __init__(self, params, lr):
            self.lr = lr
            super().__init__(params, lr)

    with pytest.raises(AttributeError, match=r"super\(\).__init__ first"):
        Mine([np.ones(1)], 0.1)


@pytest.mark.parametrize("name", schedules.__all__)
def test_a_function_that_makes_schedules_is_none(name):
    maker = getattr(schedules, name)
    w = np.ones(1)
    optimizer = SGD([w], lr=0.5)
    with pytest.raises(TypeError, match=rf"call it: lr=schedules.{name}\("):
        SGD([w], lr=maker)
    with pytest.raises(TypeError, match=rf"call it: lr=schedules.{name}\("):
        optimizer.lr = maker
    with pytest.raises(TypeError, match=rf"call it: then=schedules.{name}\("):
        schedules.warm_up(3, then=maker)
    assert optimizer.lr == 0.5
