"""Several Python threads: each with an optimizer of its own, or all at one, which is refused and never a race."""

import sys
import sysconfig
import threading

import numpy as np
import pytest
import torch

import oxistep
import oxistep.numpy
import oxistep.optim
from oxistep.optim._definition import definition_of
from scenarios import draw, each_class, make, params_of, set_gradients, train
from snapshots import outcome_of

pytestmark = pytest.mark.alone


def all_at_once(works):
    """Runs functions in threads that begin together; raises what one of them raised."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(autouse=True)
def switching_often():
    """The interpreter passes from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    oxistep.set_num_threads(None)


@pytest.mark.parametrize("threads", [None, 3], ids=["torch's threads", "rayon"])
@each_class
def test_an_optimizer_for_each_thread(name, threads):
    oxistep.set_num_threads(threads)
    shapes = [(200_000,), (17,), (3, 4)]
    optimizers = [make(oxistep.optim, name, draw(*shapes)) for _ in range(4)]
    all_at_once([lambda o=o: train(o, 4) for o in optimizers])
    reference = make(oxistep.optim, name, draw(*shapes))
    train(reference, 4)
    expected = outcome_of(params_of(reference), reference)
    for optimizer in optimizers:
        assert outcome_of(params_of(optimizer), optimizer) == expected


@each_class
def test_an_optimizer_for_each_thread_over_parameters_of_one_model(name):
    """Different parameters, one optimizer each, states and groups of their own."""
    params = draw(*[(50, 3)] * 12)
    set_gradients(params, 0)
    optimizers = [make(oxistep.optim, name, params[i::4]) for i in range(4)]
    all_at_once([lambda o=o: [o.step() for _ in range(20)] for o in optimizers])
    reference_params = draw(*[(50, 3)] * 12)
    set_gradients(reference_params, 0)
    references = [make(oxistep.optim, name, reference_params[i::4]) for i in range(4)]
    for reference in references:
        for _ in range(20):
            reference.step()
    for optimizer, reference in zip(optimizers, references, strict=True):
        assert outcome_of(params_of(optimizer), optimizer) == outcome_of(params_of(reference), reference)


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1.0}], ids=["plain", "clipping"])
@pytest.mark.parametrize("size", [40, 300_000], ids=["small", "large"])
@each_class
def test_all_at_one_optimizer(name, size, settings):
    """Each step is taken whole or refused whole: the state is that of as many steps as were not refused."""

    def build():
        params = draw((size,), (5,))
        set_gradients(params, 0)
        return params, make(oxistep.optim, name, params, **settings)

    params, optimizer = build()
    taken, refused = [], []

    def work():
        for _ in range(25):
            try:
                optimizer.step()
                taken.append(1)
            except RuntimeError as error:
                assert "taking a step already" in str(error), error
                refused.append(1)

    all_at_once([work] * 4)
    assert len(taken) + len(refused) == 100
    assert taken
    reference_params, reference = build()
    for _ in taken:
        reference.step()
    assert outcome_of(params, optimizer) == outcome_of(reference_params, reference)


def test_a_second_step_is_refused_while_the_first_is_under_way(monkeypatch):
    """No race to be won by luck: the first step waits, in the making of its states, until the second was refused."""
    params = draw((5,), (6,))
    optimizer = oxistep.optim.Adam(params, lr=0.1)
    set_gradients(params, 0)
    inside, refused = threading.Event(), threading.Event()
    definition = definition_of(oxistep.optim.Adam)
    new_state = definition.new_state

    def wait(*of_item):
        inside.set()
        assert refused.wait(60)
        return new_state(*of_item)

    monkeypatch.setattr(definition, "new_state", wait)

    def second():
        assert inside.wait(60)
        try:
            with pytest.raises(RuntimeError, match="taking a step already: in another thread"):
                optimizer.step()
        finally:
            refused.set()

    all_at_once([optimizer.step, second])
    reference = make(oxistep.optim, "Adam", draw((5,), (6,)), amsgrad=False, weight_decay=0)
    set_gradients(params_of(reference), 0)
    reference.step()
    assert outcome_of(params, optimizer) == outcome_of(params_of(reference), reference)


def test_what_torch_does_with_a_second_step_while_the_first_is_under_way():
    """For the page: it takes it, in the middle of the first."""

    class Waiting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.add_ and threading.current_thread() is first:
                inside.set()
                assert stepped.wait(60)
            return super().__torch_function__(func, types, args, kwargs)

    inside, stepped = threading.Event(), threading.Event()
    p, q = torch.zeros(3, requires_grad=True), torch.zeros(3).as_subclass(Waiting).requires_grad_()
    optimizer = torch.optim.SGD([p, q], lr=1.0, foreach=False)
    p.grad, q.grad = torch.ones(3), torch.ones(3).as_subclass(Waiting)
    first = threading.Thread(target=optimizer.step)
    first.start()
    assert inside.wait(60)
    optimizer.step()
    stepped.set()
    first.join()
    assert p.tolist() == [-2.0] * 3


def test_the_number_of_threads_is_changed_during_steps():
    """Set by another thread at any moment: the bits are the same."""
    (w,) = draw((500_000,))
    optimizer = make(oxistep.optim, "Adam", [w])
    set_gradients([w], 0)
    stop = threading.Event()

    def change():
        k = 0
        while not stop.is_set():
            k += 1
            oxistep.set_num_threads([None, 1, 2, 5, 3][k % 5])

    def work():
        try:
            for _ in range(30):
                optimizer.step()
        finally:
            stop.set()

    all_at_once([work, change])
    oxistep.set_num_threads(1)
    reference = make(oxistep.optim, "Adam", draw((500_000,)))
    set_gradients(params_of(reference), 0)
    for _ in range(30):
        reference.step()
    assert torch.equal(w, params_of(reference)[0])


def test_numpy_optimizers_in_threads():
    oxistep.set_num_threads(2)

    def run(w, optimizer):
        for k in range(6):
            optimizer.step([np.full_like(w, k + 1.0)])

    def build():
        w = np.ones(300_000, np.float32)
        return w, oxistep.numpy.Adam([w], lr=0.1)

    pairs = [build() for _ in range(4)]
    all_at_once([lambda pair=pair: run(*pair) for pair in pairs])
    expected = build()
    run(*expected)
    for w, _ in pairs:
        assert np.array_equal(w, expected[0])


def test_numpy_arrays_that_two_optimizers_step_on_at_once():
    """Refused while the other is at it; else taken whole."""
    w = np.zeros(2_000_000, np.float32)
    gradient = np.ones_like(w)
    optimizers = [oxistep.numpy.SGD([w], lr=1.0) for _ in range(3)]
    taken = []

    def work(optimizer):
        for _ in range(10):
            try:
                optimizer.step([gradient])
                taken.append(1)
            except RuntimeError as error:
                assert "another thread is in a step that uses the memory of params[0]" in str(error)

    all_at_once([lambda o=o: work(o) for o in optimizers])
    assert taken
    assert np.array_equal(w, np.full_like(w, -float(len(taken))))


def test_what_is_said_of_free_threaded_interpreters():
    """The wheel is built for the stable ABI, which interpreters without a GIL do not have (PEP 803 is for 3.15): they
    do not load it. So wherever this module runs, Python code is run by one thread at a time."""
    assert not sysconfig.get_config_var("Py_GIL_DISABLED")
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
    assert "abi3" in oxistep._core.__file__ or sys.platform == "win32"
