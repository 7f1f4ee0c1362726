"""Learning rates foretold: the same as when the scheduler runs, and nothing of the user's is changed."""

import copy

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import torch
from torch.optim import lr_scheduler as schedulers

import oxistep.optim
from oxistep.viz import schedule
from oxistep.viz._rates import rates_of

STEPS = 60


def optimizer(**more):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.02}]
    return oxistep.optim.SGD(groups, lr=0.1, momentum=0.9, **more)


def sequence(o):
    return schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=5), schedulers.CosineAnnealingLR(o, 40)], milestones=[5]
    )


MAKERS = {
    "StepLR": lambda o: schedulers.StepLR(o, 20),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [10, 30]),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.95),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda k: 0.9**k, lambda k: 1 / (1 + k)]),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda k: 0.97),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 15),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=10, mode="exp_range", gamma=0.99),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=STEPS + 20),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=30),
    "SequentialLR": sequence,
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ExponentialLR(o, 0.9), schedulers.StepLR(o, 20)], o
    ),
    "chain": lambda o: [schedulers.ExponentialLR(o, 0.9), schedulers.StepLR(o, 20)],
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=3),
}


def run(made, o, steps, metric):
    """What really happens."""
    rates = []
    for step in range(steps):
        rates.append([float(group["lr"]) for group in o.param_groups])
        o.step()
        for one in made if isinstance(made, list) else [made]:
            one.step(metric(step)) if isinstance(one, schedulers.ReduceLROnPlateau) else one.step()
    return rates


def metric(step):
    return 1.0 if step > 5 else 2.0 - step / 5


def snapshot(made, o):
    listed = made if isinstance(made, list) else [made]
    parameters = [p.detach().clone() for group in o.param_groups for p in group["params"]]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in o.param_groups]
    return copy.deepcopy((o.state_dict(), groups, [s.state_dict() for s in listed], parameters))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("begun", [0, 7])
def test_it_is_what_happens(name, begun):
    o = optimizer()
    made = MAKERS[name](o)
    run(made, o, begun, metric)
    before = snapshot(made, o)
    foretold = rates_of(made, STEPS, lambda step: metric(step + begun))
    after = snapshot(made, o)
    torch.testing.assert_close(after[3], before[3], rtol=0, atol=0)
    assert str(after[:3]) == str(before[:3])
    happens = []
    for step in range(STEPS):
        happens += run(made, o, 1, lambda _, step=step: metric(step + begun))
    assert foretold.stopped is None
    np.testing.assert_array_equal(foretold.values, happens)


def test_parameters_are_not_copied(monkeypatch):
    o = optimizer()
    made = sequence(o)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda *_: pytest.fail("a parameter was copied"))
    rates_of(made, 3)


def test_a_learning_rate_that_is_a_tensor_stays():
    o = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
    made = schedulers.ExponentialLR(o, 0.5)
    np.testing.assert_allclose(rates_of(made, 3).values[:, 0], [0.1, 0.05, 0.025], rtol=1e-6)
    assert o.param_groups[0]["lr"].item() == pytest.approx(0.1)


def test_what_a_scheduler_refuses_ends_the_line():
    made = schedulers.OneCycleLR(optimizer(), 0.2, total_steps=10)
    found = rates_of(made, 50)
    assert len(found.values) < 50 and "total" in found.stopped
    figure = schedule(made, 50)
    assert "ends after" in figure.legends[0].get_texts()[0].get_text()


def test_functions():
    assert rates_of(lambda step: 0.1 / (1 + step), 3).values.tolist() == [[0.1], [0.05], [0.1 / 3]]
    with pytest.raises(TypeError, match="step 0 is a str"):
        rates_of(lambda step: "x", 3)


def test_one_line_for_groups_that_agree():
    o = oxistep.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(3)], lr=0.1)
    assert len(schedule(schedulers.StepLR(o, 5)).axes[0].lines) == 1
    assert len(schedule(schedulers.StepLR(optimizer(), 5)).axes[0].lines) == 2


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="metrics="):
        schedule(schedulers.ReduceLROnPlateau(optimizer()))
    with pytest.raises(IndexError, match="metrics= has 2"):
        schedule(schedulers.ReduceLROnPlateau(optimizer()), metrics=[1.0, 2.0])
    with pytest.raises(ValueError, match="one optimizer"):
        schedule([schedulers.StepLR(optimizer(), 3), schedulers.StepLR(optimizer(), 3)])
    with pytest.raises(TypeError, match="expected a scheduler"):
        schedule(0.1)
    with pytest.raises(TypeError, match="expected a scheduler"):
        schedule([])
    with pytest.raises(ValueError, match="no scheduler"):
        schedule({})
    with pytest.raises(ValueError, match="steps must be positive"):
        schedule(lambda step: 0.1, steps=-1)
