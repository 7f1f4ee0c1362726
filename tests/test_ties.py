"""Parameters that share memory, subclasses of torch's tensors, counters of other types: served natively."""

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import (
    FORCED,
    NATIVE,
    PATH,
    assert_agrees,
    assert_same,
    draw,
    each_class,
    each_elementwise_class,
    make,
    outcome,
    result,
    set_gradients,
    torch_updates_raise,
)


def tied(optim, name, tie, dtype=torch.float32, **kwargs):
    """Steps with some parameters that share memory; what comes of it, and the paths taken."""
    base, other, lone = draw((6, 4), (6, 4), (5,), dtype=dtype)
    if tie == "whole":
        other.data = base.data
    elif tie == "three":
        other.data = base.data
        third = draw((6, 4), dtype=dtype)[0]
        third.data = base.data
        lone = [third, lone]
    elif tie == "part":
        other = torch.nn.Parameter(base.data[2:5])
    elif tie == "transposed":
        other = torch.nn.Parameter(base.data.t())
    elif tie == "columns":
        other = torch.nn.Parameter(base.data[:, 1:3])
    params = [base, other, *(lone if isinstance(lone, list) else [lone])]
    optimizer = make(optim, name, [{"params": params[:1]}, {"params": params[1:]}], **kwargs)
    for step in range(4):
        set_gradients(params, step)
        optimizer.step()
    paths = {row.path for row in oxistep.explain(optimizer)}
    return result(optimizer), paths, [p._version for p in params]


TIES = ["whole", "three", "part", "transposed", "columns"]


@pytest.mark.parametrize("tie", TIES)
@each_elementwise_class
def test_parameters_that_share_memory_take_turns(name, tie, ieee_sqrt):
    theirs, _, _ = tied(torch.optim, name, tie)
    ours, paths, _ = tied(oxistep.optim, name, tie)
    assert_same(ours, theirs)
    assert paths == {PATH}
    with torch_updates_raise():
        tied(oxistep.optim, name, tie)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_ties_of_other_dtypes(name, dtype):
    theirs, _, _ = tied(torch.optim, name, "whole", dtype)
    ours, paths, _ = tied(oxistep.optim, name, "whole", dtype)
    assert_same(ours, theirs)
    assert paths == {PATH}


def test_versions_of_all_that_are_tied_are_counted():
    assert tied(oxistep.optim, "Adam", "whole")[2] == [4, 4, 4]


@pytest.mark.parametrize("kwargs", [{"max_grad_norm": 0.1}, {"skip_nonfinite": True}])
def test_ties_and_settings(kwargs):
    ours, paths, _ = tied(oxistep.optim, "Adam", "whole", **kwargs)
    assert paths == {PATH}
    if "skip_nonfinite" in kwargs:
        assert_same(ours, tied(torch.optim, "Adam", "whole")[0])


@each_elementwise_class
def test_large_ties_on_several_threads(name):
    def scenario(optim):
        a, b = draw((700, 300), (700, 300))
        b.data = a.data
        optimizer = make(optim, name, [a, b])
        for step in range(2):
            set_gradients([a, b], step)
            optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


def test_foreach_is_asked_for_and_torchs():
    _, paths, _ = tied(oxistep.optim, "SGD", "whole", foreach=True)
    assert paths == {"torch", PATH}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
@each_elementwise_class
def test_what_shares_more_than_parameters_is_torchs(name):
    def twice(optim):
        (p,) = draw((3,))
        optimizer = make(optim, name, [p, p])
        for step in range(3):
            set_gradients([p], step)
            optimizer.step()
        return result(optimizer)

    def gradient(optim):
        a, b, c = draw((3,), (3,), (3,))
        b.data = a.data
        optimizer = make(optim, name, [a, b, c])
        for step in range(3):
            set_gradients([a, b, c], step)
            c.grad = a.data
            optimizer.step()
        if optim is oxistep.optim:
            assert {row.path for row in oxistep.explain(optimizer)} == {"torch"}
        return result(optimizer)

    def state(optim):
        a, b = draw((3,), (3,))
        b.data = a.data
        optimizer = make(optim, name, [a, b])
        set_gradients([a, b], 0)
        optimizer.step()
        for key, value in optimizer.state[a].items():
            if value.dim():
                optimizer.state[b][key] = value
        set_gradients([a, b], 1)
        optimizer.step()
        return result(optimizer)

    for scenario in (twice, gradient, state):
        assert_agrees(scenario)


# ---- subclasses ----


class Marked(torch.nn.Parameter):
    """A parameter that knows where it belongs."""

    kind = "weight"

    def __new__(cls, data, tag=""):
        p = super().__new__(cls, data)
        p.tag = tag
        return p

    def __repr__(self):
        return f"Marked({self.tag})"

    def describe(self):
        """A name that torch does not have."""
        return self.kind + self.tag


class Bare(torch.Tensor):
    """A subclass that adds nothing."""


class Seeing(torch.nn.Parameter):
    """A subclass that sees every function."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Adding(torch.nn.Parameter):
    """A subclass that has an operation of its own."""

    def add_(self, *args, **kwargs):
        return super().add_(*args, **kwargs)


def as_class(cls, p):
    return p.detach().as_subclass(cls).requires_grad_() if cls is Bare else cls(p.detach().clone())


@each_class
@pytest.mark.parametrize("cls", [Marked, Bare])
def test_subclasses_that_add_nothing_are_native(name, cls):
    def scenario(optim):
        params = [as_class(cls, p) for p in draw((4, 3), (5,))]
        optimizer = make(optim, name, params)
        for step in range(4):
            set_gradients(params, step)
            optimizer.step()
        assert {row.path for row in oxistep.explain(optimizer)} == {PATH if optim is oxistep.optim else "torch"}
        return [type(p) for p in params], result(optimizer)

    assert_agrees(scenario)
    with torch_updates_raise():
        scenario(oxistep.optim)


@pytest.mark.parametrize("cls", [Seeing, Adding])
def test_subclasses_that_have_operations_of_their_own_are_torchs(cls):
    params = [cls(p.detach().clone()) for p in draw((3,))]
    optimizer = make(oxistep.optim, "Adam", params)
    set_gradients(params, 0)
    (row,) = oxistep.explain(optimizer)
    assert (row.path, FORCED or row.reason) == ("torch", FORCED or "the parameter is of a subclass of Tensor")


def test_a_property_in_the_place_of_the_gradient_is_read():
    class Given(torch.nn.Parameter):
        @property
        def grad(self):
            return torch.full((3,), 2.0)

    p = Given(torch.ones(3))
    oxistep.optim.SGD([p], lr=0.25).step()
    assert p.tolist() == [0.5] * 3


# ---- counters ----

COUNTING = [name for name in NATIVE if name != "SGD"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("name", COUNTING)
def test_counters_of_other_dtypes(name, dtype, ieee_sqrt):
    def scenario(optim):
        params = draw((4, 3), (5,))
        optimizer = make(optim, name, params)
        set_gradients(params, 0)
        optimizer.step()
        for p in params:
            optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
        for step in range(1, 4):
            set_gradients(params, step)
            optimizer.step()
        if optim is oxistep.optim and not FORCED and dtype == torch.int64:
            native = {row.path for row in oxistep.explain(optimizer)} == {"native"}
            assert native == (name not in ("NAdam", "ASGD"))
        return result(optimizer)

    theirs, ours = outcome(scenario, torch.optim), outcome(scenario, oxistep.optim)
    assert_same(ours, theirs)
