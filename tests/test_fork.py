"""Forks: a child steps large tensors on its calling thread, without hanging, with the same bits; the parent goes on in
parallel. torch's own pool (OpenMP) does not survive a fork: a child of torch's that asks it for threads hangs.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import traceback

import numpy as np
import pytest
import torch

import brief
import oxistep
import oxistep.numpy
import oxistep.optim
from oxistep.optim._definition import definition_of
from scenarios import draw, each_class, make, params_of, set_gradients
from shared_steps import step_shared

pytestmark = [pytest.mark.alone, pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")]

LARGE = 400_000
PATIENCE = 120  # seconds until a child counts as hanging: far beyond any load of the machine


def in_child(work, patience=PATIENCE):
    """Runs `work` in a forked child and returns what it returned; fails the test if it raises or hangs."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            os.write(write, repr(work()).encode())
            code = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(write)
    told = b""
    try:
        while select.select([read], [], [], patience)[0]:
            piece = os.read(read, 1 << 16)
            if not piece:
                break
            told += piece
        else:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
    finally:
        os.close(read)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, told.decode()
    return told.decode()


def bits(optimizer):
    """Parameters and states as bytes, without any operation of torch's that asks for threads."""
    values = []
    for p in params_of(optimizer):
        values.append(p.detach().numpy().tobytes())
        values += [np.asarray(v).tobytes() for v in optimizer.state[p].values()]
    return hash(tuple(values))


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    oxistep.set_num_threads(None)


@each_class
@pytest.mark.parametrize("threads", [None, 3], ids=["torch's threads", "rayon"])
def test_a_child_steps_and_the_parent_goes_on(name, threads):
    oxistep.set_num_threads(threads)
    params = draw((LARGE,), (3,))
    optimizer = make(oxistep.optim, name, params)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.step()

    expected = make(oxistep.optim, name, draw((LARGE,), (3,)))
    set_gradients(params_of(expected), 0)
    for _ in range(4):
        expected.step()

    def work():
        optimizer.step()  # general or short, whichever it would have been
        optimizer.step()
        return bits(optimizer)

    assert in_child(work) == repr(bits(expected))
    # the parent's memory is its own, and it still has its threads
    optimizer.step()
    optimizer.step()
    assert bits(optimizer) == bits(expected)


def test_a_child_of_a_child():
    params = draw((LARGE,))
    optimizer = make(oxistep.optim, "Adam", params)
    set_gradients(params, 0)
    optimizer.step()
    assert in_child(lambda: (optimizer.step(), in_child(lambda: optimizer.step()))[1]) == repr("None")


def test_clipping_in_a_child():
    params = draw((LARGE,), (3,))
    set_gradients(params, 0)
    optimizer = make(oxistep.optim, "Adam", params, max_grad_norm=1.0)
    optimizer.step()
    oxistep.clip_grad_norm_(params, 1.0)

    def work():
        set_gradients(params[1:], 1)
        oxistep.clip_grad_norm_(params, 0.5)
        optimizer.step()

    in_child(work)


def test_a_first_step_in_a_child():
    """States are made there, the large ones with zeros of our own."""
    warm = make(oxistep.optim, "Adam", draw((LARGE,)))
    set_gradients(params_of(warm), 0)
    warm.step()
    params = draw((2 << 20,))
    params[0].grad = params[0].detach().clone()
    optimizer = make(oxistep.optim, "Adam", params)
    in_child(lambda: optimizer.step())


def test_threads_may_be_asked_for_in_a_child():
    def work():
        oxistep.set_num_threads(4)
        return oxistep.get_num_threads()

    assert in_child(work) == "4"


@pytest.mark.parametrize("threads", [None, 3])
def test_numpy_in_a_child(threads):
    oxistep.set_num_threads(threads)
    w, g = np.ones(LARGE, np.float32), np.ones(LARGE, np.float32)
    optimizer = oxistep.numpy.Adam([w], lr=0.1)
    optimizer.step([g])

    def work():
        optimizer.step([g])
        return hash(w.tobytes())

    told = in_child(work)
    optimizer.step([g])
    assert told == repr(hash(w.tobytes()))


NUMPY_ALONE = """
import os, sys
import numpy as np
import oxistep, oxistep.numpy
assert "torch" not in sys.modules
oxistep.set_num_threads(3)
w, g = np.ones(400_000, np.float32), np.ones(400_000, np.float32)
optimizer = oxistep.numpy.Adam([w], lr=0.1)
optimizer.step([g])
child = os.fork()
optimizer.step([g])
if child == 0:
    os._exit(0 if (w < 1).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_numpy_without_torch_in_a_child():
    """rayon's threads do not survive a fork either."""
    done = subprocess.run([sys.executable, "-c", NUMPY_ALONE], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_a_fork_while_other_threads_are_in_the_middle_of_steps(module):
    """Whatever another thread holds at that moment, the child needs none of it."""
    stop = threading.Event()

    def busy():
        if module == "torch":
            params = draw((LARGE,), *[(3,)] * 20)
            set_gradients(params, 0)
            while not stop.is_set():
                optimizer = make(oxistep.optim, "Adam", params)  # general steps, in which Python code runs
                optimizer.step()
                optimizer.step()
        else:
            w = np.ones(LARGE, np.float32)
            while not stop.is_set():
                oxistep.numpy.Adam([w], lr=0.1).step([w.copy()])

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(12):
            params = draw((20_000,), (3,))

            def work(params=params):
                import gc

                if module == "numpy":
                    oxistep.numpy.Adam([np.ones(LARGE, np.float32)], lr=0.1).step([np.ones(LARGE, np.float32)])
                    return gc.isenabled()
                optimizer = make(oxistep.optim, "SGD", params)
                for p in params:
                    p.grad = torch.from_numpy(np.ones(p.shape, np.float32))
                optimizer.step()
                return gc.isenabled()  # a step of another thread's that had stopped it will never end here

            assert in_child(work) == "True"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_fork_in_the_middle_of_a_step_of_this_very_thread(monkeypatch):
    """In the Python code that makes states: parent and child both go on and finish the step."""
    import gc

    params = draw((5,), (6,))
    optimizer = make(oxistep.optim, "Adam", params)
    set_gradients(params, 0)
    definition = definition_of(type(optimizer))
    new_state = definition.new_state
    children = []

    def fork(self, p, grad, group):
        if p is params[1]:
            children.append(os.fork())
        return new_state(self, p, grad, group)

    monkeypatch.setattr(definition, "new_state", fork)
    code = 1
    try:
        optimizer.step()
        optimizer.step()
        code = 0 if gc.isenabled() and all((p != q).all() for p, q in zip(params, draw((5,), (6,)), strict=True)) else 2
    finally:
        if children == [0]:
            os._exit(code)
    assert code == 0
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


# ---- multiprocessing ----


@pytest.mark.parametrize("locked", [True, False], ids=["in turns", "without locks"])
# Each child that is spawned imports torch anew: left to the whole run.
@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.whole)])
def test_shared_parameters_stepped_by_several_processes(how, locked):
    """Hogwild. Without locks steps may get lost, element by element; nothing else may happen."""
    warm = make(oxistep.optim, "Adam", draw((LARGE,)))
    set_gradients(params_of(warm), 0)
    warm.step()
    context = torch.multiprocessing.get_context(how)
    n = LARGE if how == "fork" else 200_000
    base = torch.zeros(n + 200).share_memory_()
    base[:100] = base[-100:] = 7
    p = base[100:-100]
    turns, steps, processes = context.Lock() if locked else None, 6, brief.number(whole=3, brief=2)
    workers = [context.Process(target=step_shared, args=(p, turns, steps)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    values = p.unique()
    assert (base[:100] == 7).all() and (base[-100:] == 7).all()
    assert (values == values.round()).all()
    assert -processes * steps <= values.min() and values.max() <= -1
    if locked:
        assert values.tolist() == [-processes * steps]


class Items(torch.utils.data.Dataset):
    """A data set whose items come of an optimizer's step in the worker."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        p = torch.from_numpy(np.zeros(LARGE, np.float32)).requires_grad_()
        p.grad = torch.from_numpy(np.full(LARGE, i + 1.0, np.float32))
        oxistep.optim.SGD([p], lr=1.0).step()
        return float(p.detach()[0])


@pytest.mark.skipif(sys.platform == "darwin", reason="workers are spawned there")
def test_workers_of_a_data_loader():
    warm = make(oxistep.optim, "Adam", draw((LARGE,)))
    set_gradients(params_of(warm), 0)
    warm.step()
    loader = torch.utils.data.DataLoader(
        Items(), batch_size=None, num_workers=2, timeout=PATIENCE, multiprocessing_context="fork"
    )
    for batch in loader:
        warm.step()
        assert batch in (-1.0, -2.0, -3.0, -4.0)


def child_of_multiprocessing(queue, optimizer):
    optimizer.step()
    queue.put(bits(optimizer) if optimizer.state else None)


def test_multiprocessing_fork():
    params = draw((LARGE,), (3,))
    optimizer = make(oxistep.optim, "AdamW", params)
    set_gradients(params, 0)
    optimizer.step()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=child_of_multiprocessing, args=(queue, optimizer))
    child.start()
    told = queue.get(timeout=PATIENCE)
    child.join()
    optimizer.step()
    assert told == bits(optimizer)


def test_what_torchs_own_step_does_in_a_child(record_property):
    """For the page; depends on the OpenMP that torch was built with, so nothing is asserted of it."""
    params = draw((LARGE,))
    set_gradients(params, 0)
    optimizer = torch.optim.Adam(params, lr=0.1)
    optimizer.step()
    try:
        in_child(lambda: optimizer.step(), patience=5)
        came = "steps"
    except pytest.fail.Exception:
        came = "hangs"
    record_property("torch's step in a forked child", came)
    print(f"torch {torch.__version__}: a large step in a child, after one in the parent: {came}")
