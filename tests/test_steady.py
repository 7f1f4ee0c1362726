"""Steps like the last one take a short way. What happens on it must be what would have happened on the long one."""

import gc
import weakref

import pytest
import torch

import oxistep.optim
from oxistep.optim import SGD, Adam

tells_storages = pytest.mark.skipif(torch.__version__ < (2, 14), reason="this torch does not tell of storages cheaply")


def stepped(make, shapes=((50, 20), (7,), ()), steps=3):
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return params, optimizer


class Hooked:
    """A number that runs code when it is read."""

    def __init__(self, hook):
        self.hook = hook

    def item(self):
        self.hook()
        return 1.0

    def __bool__(self):
        self.hook()
        return False


@pytest.mark.parametrize("key", ["lr", "maximize", "nesterov"])
@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1e9}], ids=["plain", "clipping"])
def test_a_hyperparameter_that_swaps_data_while_it_is_read(key, settings):
    p, q = (torch.zeros(1000, requires_grad=True) for _ in range(2))
    optimizer = SGD([{"params": [p]}, {"params": [q]}], lr=1.0, **settings)
    swap = []
    optimizer.param_groups[1][key] = Hooked(lambda: swap and swap.pop()())
    for _ in range(3):
        p.grad, q.grad = torch.ones(1000), torch.ones(1000)
        optimizer.step()
    old, new = p.data, torch.full((1000,), 10.0)
    swap.append(lambda: setattr(p, "data", new))
    optimizer.step()
    assert not swap
    assert old.unique().tolist() == [-3.0]
    assert p.data_ptr() == new.data_ptr()
    assert new.unique().tolist() == [9.0]
    assert q.unique().tolist() == [-4.0]


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1e9}], ids=["plain", "clipping"])
def test_a_gradient_property_that_swaps_data(settings):
    p, swap = torch.zeros(1000, requires_grad=True), []

    class WithProperty(torch.Tensor):
        @property
        def grad(self):
            if swap:
                swap.pop()()

        @grad.setter
        def grad(self, value):
            pass

    q = torch.zeros(3).as_subclass(WithProperty).requires_grad_()
    optimizer = SGD([p, q], lr=1.0, **settings)
    for _ in range(3):
        p.grad = torch.ones(1000)
        optimizer.step()
    old, new = p.data, torch.full((1000,), 10.0)
    swap.append(lambda: setattr(p, "data", new))
    optimizer.step()
    assert not swap
    assert old.unique().tolist() == [-3.0]
    assert new.unique().tolist() == [9.0]


@tells_storages
@pytest.mark.parametrize("what", ["parameter", "gradient", "state"])
@pytest.mark.parametrize("make", [Adam, lambda params: Adam(params, max_grad_norm=1.0)], ids=["plain", "clipping"])
def test_a_storage_that_was_shrunk_is_seen_at_every_step(what, make):
    params, optimizer = stepped(make)
    p = params[1]
    p.grad = torch.ones(7)
    shrunk = {"parameter": p, "gradient": p.grad, "state": optimizer.state[p]["exp_avg"]}[what]
    others = [x.clone() for x in params[:1] + params[2:]]
    steps = [optimizer.state[q]["step"].item() for q in params]
    shrunk.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\]\[1\].*beyond its storage of 8 bytes"):
        optimizer.step()
    assert all(map(torch.equal, others, params[:1] + params[2:]))
    assert [optimizer.state[q]["step"].item() for q in params] == steps


def test_the_collector_is_as_it_was():
    assert gc.isenabled()
    params, optimizer = stepped(Adam, [(400, 400), (3,)])
    assert gc.isenabled()
    optimizer.param_groups[0]["params"].append(params[0])  # steps that are not like the last one, some that raise
    optimizer.step()
    params[1].grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert gc.isenabled()
    try:
        gc.disable()
        stepped(Adam)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_gradients_and_states_are_let_go():
    """What a step held it lets go: memory of gradients set to None is free, and so is the optimizer."""
    params, optimizer = stepped(Adam, [(1000,), (3,)])
    gradient, state = weakref.ref(params[0].grad), weakref.ref(optimizer.state[params[0]]["exp_avg"])
    for p in params:
        p.grad = None
    assert gradient() is None
    optimizer.step()
    del optimizer
    gc.collect()
    assert state() is None


def test_lists_that_change_at_every_step():
    ours, theirs = (
        (params, optim.Adam(params, lr=0.1))
        for optim in (oxistep.optim, torch.optim)
        for params in [[torch.zeros(n, requires_grad=True) for n in (5, 6, 7)]]
    )
    for step in range(300):
        for params, optimizer in (ours, theirs):
            for i, p in enumerate(params):
                # every step others, then a long time the same, then in turns
                wanted = (step + i) % 3 != 0 if step < 100 or step > 200 else i != 1
                p.grad = torch.full_like(p, 0.1 * (step % 7) - 0.2) if wanted else None
            optimizer.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q)
        assert torch.equal(ours[1].state[p]["step"], theirs[1].state[q]["step"])
