"""Threads, forks, and steps inside a step."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    assert_same,
    draw,
    each_class,
    make,
    params_of,
    result,
    set_gradients,
    train,
)

pytestmark = pytest.mark.alone


def test_two_threads_stepping_one_optimizer_take_turns_or_are_told():
    (w,) = draw((3_000_000,))
    optimizer = make(oxistep.optim, "Adam", [w])
    set_gradients([w], 0)
    optimizer.step()
    errors, done = [], []
    barrier = threading.Barrier(3)

    def work():
        barrier.wait()
        for _ in range(5):
            try:
                optimizer.step()
                done.append(1)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("taking a step already" in error and "hold a lock around step()" in error for error in errors)
    assert len(done) + len(errors) == 15
    # every step was taken whole or not at all
    reference = make(oxistep.optim, "Adam", draw((3_000_000,)))
    set_gradients(params_of(reference), 0)
    for _ in range(1 + len(done)):
        reference.step()
    assert_same(result(optimizer), result(reference), exact=True)


def test_threads_with_their_own_optimizers():
    shapes = [(300_000,), (17,)]
    optimizers = [make(oxistep.optim, "Adam", draw(*shapes)) for _ in range(3)]
    threads = [threading.Thread(target=train, args=(optimizer, 5)) for optimizer in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reference = make(oxistep.optim, "Adam", draw(*shapes))
    train(reference, 5)
    for optimizer in optimizers:
        assert_same(result(optimizer), result(reference), exact=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_can_step():
    """torch's pool of threads does not survive a fork; a child that waited for it would hang."""
    optimizer, reference = (make(oxistep.optim, "Adam", draw((400_000,), (3,))) for _ in range(2))
    train(optimizer, 2)
    train(reference, 2)
    reference.step()  # with the gradients of the last step
    expected = [p.detach().numpy() for p in params_of(reference)]
    child = os.fork()
    if child == 0:
        optimizer.step()
        same = all(np.array_equal(p.detach().numpy(), e) for p, e in zip(params_of(optimizer), expected, strict=True))
        os._exit(0 if same else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_step_inside_the_step_itself_is_refused():
    """Python code runs inside a step only where torch does a part of it; there the optimizer is not in one piece."""

    class Meddler(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.add_:
                optimizer.step()
            return super().__torch_function__(func, types, args, kwargs)

    (w,) = draw((4,))
    meddler = torch.ones(3).as_subclass(Meddler)
    optimizer = make(oxistep.optim, "SGD", [w, meddler], momentum=0)
    set_gradients([w], 0)
    meddler.grad = torch.ones(3).as_subclass(Meddler)
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match="this optimizer is taking a step already"):
        optimizer.step()
    assert torch.equal(w, before)


@each_class
def test_steps_in_backward_of_several_threads(name):
    """One optimizer per parameter, stepping in a hook of the gradient's, in whichever thread runs backward."""

    def trained(optim, concurrently):
        torch.manual_seed(0)
        models = [torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)) for _ in range(4)]
        optimizers = {p: make(optim, name, [p]) for model in models for p in model.parameters()}

        def step(p):
            optimizers[p].step()
            p.grad = None

        for p in optimizers:
            p.register_post_accumulate_grad_hook(step)
        x = torch.linspace(-1, 1, 30).reshape(5, 6)

        def work(model):
            for _ in range(5):
                # reentrant: this part's backward runs inside the other's
                hidden = torch.utils.checkpoint.checkpoint(model[:2], x.clone().requires_grad_(), use_reentrant=True)
                model[2](hidden).square().mean().backward()

        threads = [threading.Thread(target=work, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
            if not concurrently:
                thread.join()
        for thread in threads:
            thread.join()
        return [p.detach() for p in optimizers]

    ours = trained(oxistep.optim, True)
    assert_same(ours, trained(oxistep.optim, False), exact=True)
    assert_same(ours, trained(torch.optim, False))
