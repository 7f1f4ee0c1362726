"""What stands between the checks of a step over arrays and its first write: other threads, the norm of gradients."""

import threading

import numpy as np
import pytest

from numpy_table import CLASSES, same_bits, snapshot
from oxistep._core import ArrayPlan
from oxistep.numpy import SGD, Adam

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)


def step(optimizer, grads, *, short, **guard):
    """A step with a guard: a short one, or a general one."""
    if optimizer._oxistep_plan is None:
        optimizer._oxistep_plan = ArrayPlan(optimizer._oxistep_rule)
    plan, groups, state = optimizer._oxistep_plan, optimizer.param_groups, optimizer.state
    if short:
        return plan.again(optimizer, groups, state, grads, **guard)
    optimizer._oxistep_rates = lrs = [group["lr"] for group in groups]
    return plan.step(groups, lrs, [grads], state, optimizer._oxistep_new_state, given=grads, **guard)


@every_class
def test_clipping_is_that_of_scaled_gradients(cls, hyper):
    draw = np.random.default_rng(0)
    params = [draw.normal(size=shape) for shape in ((3,), (4, 5), ())]
    copies = [param.copy() for param in params]
    guarded, plain = cls(params, **hyper), cls(copies, **hyper)
    for k in range(6):
        grads = [draw.normal(size=(3,)), draw.normal(size=(5, 4)).T, float(draw.normal())]
        if k > 2:
            grads[0] = grads[0].astype(np.float32)
        norm = np.sqrt(sum(np.sum(np.square(np.asarray(grad, np.float64))) for grad in grads))
        found = step(guarded, grads, short=k in (2, 4, 5), max_grad_norm=0.5)
        assert found == pytest.approx(norm, rel=1e-6)
        factor = min(1.0, 0.5 / (norm + 1e-6))
        step(plain, [np.asarray(grad, np.float64) * factor for grad in grads], short=False)
        for param, copy in zip(params, copies, strict=True):
            np.testing.assert_allclose(param, copy, rtol=1e-12, atol=1e-14)


@every_class
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_gradient_that_is_not_finite_is_skipped(cls, hyper, bad, steps):
    optimizer = cls([np.ones(3), np.ones((2, 2))], **hyper)
    good = [np.ones(3), np.ones((2, 2))]
    for k in range(steps):
        assert step(optimizer, good, short=False, skip_nonfinite=True) == pytest.approx(np.sqrt(7))
        if k > 0:
            assert step(optimizer, good, short=True, skip_nonfinite=True) == pytest.approx(np.sqrt(7))
    before = snapshot(optimizer)
    for short in (True, False) if steps else (False,):
        found = step(optimizer, [np.ones(3), np.array([[1, bad], [1, 1]])], short=short, skip_nonfinite=True)
        assert not np.isfinite(found)
        assert snapshot(optimizer) == before


def test_norms_of_other_layouts_and_gaps():
    """What lies in the gaps does not count."""
    base = np.full((6, 8), np.nan)
    grad = base[::2, 1:4]
    grad[...] = 2.0
    optimizer = SGD([np.zeros((3, 3))])
    assert step(optimizer, [grad], short=False, max_grad_norm=1e9) == pytest.approx(6.0)
    assert step(optimizer, [grad], short=True, max_grad_norm=1e9) == pytest.approx(6.0)


def test_the_norm_of_rows():
    optimizer = SGD([np.zeros((5, 2))], lr=1.0)
    rows = (np.array([1, 3, 1]), np.array([[1.0, 0], [3, 0], [3, 0]]))
    assert step(optimizer, [rows], short=False, max_grad_norm=2.5) == pytest.approx(5.0)
    table = optimizer.param_groups[0]["params"][0]
    np.testing.assert_allclose(table[[1, 3]], [[-2, 0], [-1.5, 0]], rtol=1e-6)


class Slow(threading.Thread):
    """Steps on large arrays until it is told to stop."""

    def __init__(self, optimizer, grads):
        super().__init__()
        self.optimizer, self.grads, self.going, self.taken = optimizer, grads, True, 0

    def run(self):
        while self.going:
            self.optimizer.step(self.grads)
            self.taken += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.join()


def meet(work, tries=200_000):
    """Calls `work` until it raises a RuntimeError, which is returned; None if it never did."""
    for _ in range(tries):
        try:
            work()
        except RuntimeError as error:
            return str(error)
    return None


@pytest.mark.parametrize("large", [False, True])
def test_another_thread_is_in_a_step_on_this_memory(large):
    """Of its parameter, of a state, or of a gradient that it reads; small steps and large ones."""
    w, gradient = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
    steps = Adam([w])
    steps.step([gradient])
    n = 200_000 if large else 5
    targets = {
        "params[0]": w[100 : 100 + n],
        "state": steps.state[0][0]["exp_avg"][:n],
        "gradient": gradient[7 : 7 + n],
    }
    with Slow(steps, [gradient]):
        for target in targets.values():
            other = SGD([target], lr=0.0)
            said = meet(lambda other=other, n=n: other.step([np.zeros(n, np.float32)]))
            assert said is not None
            assert "another thread is in a step that uses the memory of params[0]; nothing was updated" in said
            assert "lock" in said
        reads = SGD([np.zeros(n, np.float32)])  # reads what the other writes
        assert meet(lambda: reads.step([w[:n]])) is not None
    SGD([w[:n]], lr=0.0).step([np.zeros(n, np.float32)])


def test_one_optimizer_in_two_threads():
    w, gradient = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
    optimizer = SGD([w], lr=1.0)
    with Slow(optimizer, [gradient]) as slow:
        said = meet(lambda: optimizer.step([gradient]), 3_000)
        # whichever of the two threads met the other first
    if said is not None:
        assert "this optimizer is taking a step already" in said
    taken = -w[0]
    assert (w == w[0]).all()
    assert taken >= slow.taken


def test_other_memory_is_free_meanwhile():
    w, gradient = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
    mine = np.zeros(1000)
    optimizer = SGD([mine], lr=1.0)
    with Slow(Adam([w]), [gradient]):
        for _ in range(300):
            optimizer.step([np.ones(1000)])
        reads = SGD([np.zeros(5, np.float32)])
        for _ in range(300):
            reads.step([gradient[:5]])  # which the other only reads
    assert (mine == -300).all()


def test_a_learning_rate_function_that_steps():
    def schedule(step):
        optimizer.step([np.ones(2)])
        return 1.0

    w = np.ones(2)
    optimizer = SGD([w], lr=1.0)
    for _ in range(2):
        optimizer.step([np.ones(2)])
    optimizer.param_groups[0]["lr"] = schedule
    with pytest.raises((RuntimeError, RecursionError)):
        optimizer.step([np.ones(2)])
    assert same_bits(w, np.array([-1.0, -1.0]))
