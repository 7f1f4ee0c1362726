"""Steps like the last one take a short way. What happens on it must be what would have happened on the long one."""

import gc
import warnings
import weakref

import numpy as np
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


@tells_storages
def test_a_learning_rate_computed_with_numpy_or_torch_keeps_the_short_way(monkeypatch):
    """On the long way every parameter is asked for `.grad`; of one that is no leaf, and has none, torch warns."""
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(message))

    def warned(lr):
        p, q, still = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True), torch.zeros(3)
        optimizer = Adam([p, still, q])
        still.add_(torch.ones(3, requires_grad=True))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for step in range(5):
                if step == 2:
                    shown.clear()
                optimizer.param_groups[0]["lr"] = lr(0.5**step)
                p.grad, q.grad = torch.ones(3), torch.ones(2)
                optimizer.step()
        return len(shown), p.tolist()

    assert warned(np.float32)[0] == 3
    expected = warned(float)
    assert expected[0] == 0
    assert warned(np.float64) == expected
    assert warned(torch.tensor) == expected  # powers of two are the same in float32
    assert warned(lambda lr: torch.tensor([lr], dtype=torch.float64)) == expected


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


def with_fresh_keys(state):
    """The same states under equal names that are other objects, as a checkpoint read from a file may have them."""
    return {"".join(list(key)): value for key, value in state.items()}


def test_states_are_found_wherever_and_under_whatever_object_they_stand():
    ours, theirs = (
        (params, optim.Adam(params, lr=0.1))
        for optim in (oxistep.optim, torch.optim)
        for params in [[torch.zeros(n, requires_grad=True) for n in (5, 6, 7)]]
    )
    for step in range(12):
        for params, optimizer in (ours, theirs):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, 0.1 * (step % 7) - 0.2 * i)
            if step in (3, 9):
                optimizer.state[params[0]] = with_fresh_keys(optimizer.state.pop(params[0]))  # now the last entry
            if step == 6:
                entry = optimizer.state[params[1]]
                entry["exp_avg"] = entry.pop("exp_avg").clone()
            optimizer.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(ours[1].state[p], theirs[1].state[q])


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1e9}], ids=["plain", "clipping"])
def test_every_version_counter_moves_by_one(settings):
    params, optimizer = stepped(lambda params: Adam(params, **settings), shapes=[(3,)] * 70)
    for _ in range(3):
        versions = [p._version for p in params]
        optimizer.step()
        assert [p._version for p in params] == [version + 1 for version in versions]


def test_a_gradient_of_a_subclass_goes_to_torch():
    """It may be seen where torch's operations work on it, and only there."""
    seen = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    params, optimizer = stepped(Adam)
    p = params[0]
    p.grad = torch.ones(50, 20).as_subclass(Watching)
    del seen[:]
    optimizer.step()
    assert seen
    assert optimizer.state[p]["step"] == 4


def test_a_property_put_in_the_place_of_grad(monkeypatch):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = SGD([p], lr=1.0)
    p.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step()
    monkeypatch.setattr(torch.nn.Parameter, "grad", property(lambda self: torch.full((3,), 2.0)), raising=False)
    optimizer.step()
    assert p.tolist() == [-5.0] * 3


def test_gradients_that_only_torch_holds():
    """Backward makes gradients without Python objects; a step makes none for them."""
    ours, theirs = (
        (params, optim.Adam(params, lr=0.1))
        for optim in (oxistep.optim, torch.optim)
        for params in [[torch.nn.Parameter(torch.full((n,), 0.5)) for n in (5, 6, 40)]]
    )
    for step in range(6):
        for params, optimizer in (ours, theirs):
            optimizer.zero_grad()
            sum((p * p.detach().sin() * (step + 1)).sum() for p in params if step != 4 or p is not params[1]).backward()
            optimizer.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q)


@tells_storages
@pytest.mark.parametrize("make", [SGD, Adam])
def test_no_python_objects_are_made_for_gradients(make):
    """They are read as torch keeps them; asking for `.grad` would make an object of each, which torch then keeps."""

    def tensors():
        gc.collect()
        return sum(type(x) is torch.Tensor for x in gc.get_objects())

    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(20)]
    optimizer = make(params)
    for step in range(6):
        optimizer.zero_grad()
        sum((p * 3).sum() for p in params).backward()
        before = tensors()
        optimizer.step()
        if step > 2:
            assert tensors() == before
    assert params[0].grad is not None and tensors() == before + 1  # what is counted does count


@pytest.mark.parametrize("limit", [1e-3, 1e9])
@pytest.mark.parametrize("n", [3, 1 << 17])
def test_clipping_on_the_short_way(n, limit):
    (ours, theirs), norms = ((torch.zeros(n, requires_grad=True), torch.zeros(5, requires_grad=True)) for _ in "ab"), []
    optimizer, expected = Adam(ours, max_grad_norm=limit), torch.optim.Adam(theirs)
    for step in range(4):
        for params in (ours, theirs):
            for i, p in enumerate(params):
                p.grad = torch.linspace(-1, step + i, p.numel())
        given = [p.grad.clone() for p in ours]
        optimizer.step()
        assert all(map(torch.equal, given, (p.grad for p in ours)))
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in theirs]))
        torch.testing.assert_close(optimizer.last_grad_norm, norms[-1])
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        expected.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_a_step_that_is_skipped_and_the_next_one():
    params, optimizer = stepped(lambda params: Adam(params, skip_nonfinite=True))
    before = [p.clone() for p in params]
    params[1].grad[3] = float("nan")
    optimizer.step()
    assert all(map(torch.equal, before, params))
    assert optimizer.last_grad_norm.isnan()
    assert [optimizer.state[p]["step"].item() for p in params] == [3, 3, 3]
    params[1].grad[3] = 1.0
    optimizer.step()
    assert not any(map(torch.equal, before, params))
    assert [optimizer.state[p]["step"].item() for p in params] == [4, 4, 4]
