"""A fault at every point where a step can fail: all native parameters, states and counters are as they were before.

Runs with the wheel of `make test-faults`, which fails on demand.
"""

import copy

import numpy as np
import pytest
import torch

import oxistep
from failing_steps import COMPACT, SCENARIOS
from numpy_table import CLASSES
from numpy_table import snapshot as arrays_of
from oxistep import _core
from snapshots import difference, outcome_of, snapshot

pytestmark = pytest.mark.skipif(not hasattr(_core, "fault_arm"), reason="needs the wheel of `make test-faults`")

INJECTED = "injected fault"


@pytest.fixture(autouse=True)
def disarmed():
    yield
    _core.fault_arm(0)


def walk(build):
    """Fails the first point of a step, then the second, until a step meets no more. Returns the points it met."""
    for _ in range(2):  # the first step of a process traces a rule, and meets points that no other does
        reference = build()
        reference.ready()
        _core.fault_arm(0)
        reference.optimizer.step()
    met = _core.fault_met()
    expected = outcome_of(reference.ours, reference.optimizer)

    for n in range(1, len(met) + 1):
        scenario = build()
        scenario.ready()
        ours = scenario.ours
        before = scenario.snapshot()
        _core.fault_arm(n)
        with pytest.raises(RuntimeError, match=f"{INJECTED}: {met[n - 1]}"):
            scenario.optimizer.step()
        _core.fault_arm(0)
        changed = difference(before, scenario.snapshot())
        assert not changed, f"a fault at point {n}, {met[n - 1]!r}, changed {changed}"
        scenario.ready()
        scenario.optimizer.step()
        assert outcome_of(ours, scenario.optimizer) == expected, f"after a fault at point {n}, {met[n - 1]!r}"
    scenario = build()
    scenario.ready()
    _core.fault_arm(len(met) + 1)
    scenario.optimizer.step()
    return met


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_at_any_point_changes_nothing(name):
    assert len(walk(SCENARIOS[name])) > 3


def test_counters_of_int64_take_steady_steps():
    met = walk(SCENARIOS["int64 counters"])
    assert {"steady counter", "steady versions"} <= set(met)
    assert "survey" not in met


@pytest.mark.parametrize("name", [name for name in COMPACT if name.endswith("third step")])
def test_fewer_bytes_take_steady_steps(name):
    scenario = COMPACT[name]()
    scenario.ready()
    _core.fault_arm(0)
    scenario.optimizer.step()
    met = _core.fault_met()
    assert {"steady state", "steady versions"} <= set(met)
    assert ("steady weights" in met) is not name.startswith("ASGD")  # whose state stays in float32
    assert "survey" not in met


def test_the_scenarios_meet_every_point():
    """Every point in the sources is met by some scenario: none is dead, none is forgotten."""
    met = set()
    for build in SCENARIOS.values():
        scenario = build()
        scenario.ready()
        _core.fault_arm(0)
        scenario.optimizer.step()
        met |= set(_core.fault_met())
    assert met >= {
        *("steady group", "steady parameter", "steady state", "steady counter", "steady weights"),
        *("steady versions",),
        *(
            "survey",
            "group",
            "parameter",
            "make states",
            "make average",
            "rehearse",
            "unscale",
            "survey again",
            "measure",
            "measure natively",
            "judge",
        ),
        *(
            "scale the others",
            "torch's part",
            "describe again",
            "params",
            "store states",
            "push",
            "versions",
            "counter",
        ),
    }


@pytest.mark.parametrize(("steps", "is_short"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("cls, hyper", CLASSES.values(), ids=CLASSES)
def test_a_fault_in_a_step_of_numpys_changes_nothing(cls, hyper, steps, is_short):
    def build():
        rng = np.random.default_rng(3)
        params = [rng.normal(size=shape).astype(np.float32) for shape in [(3, 4), (5,), ()]]
        optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **hyper)
        grads = [[rng.normal(size=p.shape).astype(np.float32) for p in group] for group in (params[:2], params[2:])]
        for _ in range(steps):
            optimizer.step(grads)
        if not is_short:
            optimizer = copy.deepcopy(optimizer)  # which knows nothing of the last step
        return optimizer, grads

    optimizer, grads = build()
    _core.fault_arm(0)
    optimizer.step(grads)
    met = _core.fault_met()
    expected = arrays_of(optimizer)
    assert set(met) >= ({"short step"} if is_short else {"array", "push array"})
    for n in range(1, len(met) + 1):
        optimizer, grads = build()
        before = arrays_of(optimizer)
        _core.fault_arm(n)
        with pytest.raises(RuntimeError, match=f"{INJECTED}: {met[n - 1]}"):
            optimizer.step(grads)
        _core.fault_arm(0)
        assert arrays_of(optimizer) == before, f"a fault at point {n}, {met[n - 1]!r}"
        optimizer.step(grads)
        assert arrays_of(optimizer) == expected, f"after a fault at point {n}, {met[n - 1]!r}"


def test_a_fault_while_explaining_changes_nothing():
    scenario = SCENARIOS["unfrozen late"]()
    scenario.ready()
    before = snapshot(scenario.optimizer, scenario.ours)
    _core.fault_arm(2)
    with pytest.raises(RuntimeError, match=INJECTED):
        oxistep.explain(scenario.optimizer)
    assert not difference(before, snapshot(scenario.optimizer, scenario.ours))


def test_what_torch_does_when_a_step_fails_half_way():
    """For the page: torch's for-loop updates what comes before the fault."""
    good, bad = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([good, bad], lr=0.1, momentum=0.9)
    good.grad, bad.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    optimizer.state[bad]["momentum_buffer"] = torch.ones(5)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert good.tolist() != [0.9] * 3
