"""Python code that runs in the middle of a step, and storages smaller than their tensors: no memory is touched that is
no tensor's any more.

The code here swaps a parameter's memory for other memory. What was swapped away is kept and must stay as it was: a step
that goes on with an address it read before would write there. (Where nothing keeps it, it would be freed memory.)
`make asan` runs this file too, and then a read beyond memory ends the test as well.
"""

import gc
import warnings
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import oxistep
import oxistep.numpy
from oxistep import _core
from oxistep.diagnostics import GradientMonitor
from oxistep.optim import LBFGS, SGD, Adafactor, Adam, Muon, SparseAdam


# Steps like the last one take a short way; under OXISTEP_CHECK=1 none does.
@pytest.fixture(params=["plain", "clipping", "checked"])
def way(request, monkeypatch):
    if request.param == "checked":
        monkeypatch.setenv("OXISTEP_CHECK", "1")
    return request.param


@pytest.fixture
def settings(way):
    return {"max_grad_norm": 1e9} if way == "clipping" else {}


tells_storages = pytest.mark.skipif(torch.__version__ < (2, 14), reason="this torch does not tell of storages cheaply")


class Trap:
    """Runs its hook once, when it is armed."""

    def __init__(self):
        self.hook = None

    def __call__(self):
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()


class Swap:
    """Gives a tensor other memory, and keeps what it had."""

    def __init__(self, p):
        self.p, self.old, self.then = p, p.data, None

    def __call__(self):
        self.then = self.old.clone()
        self.p.data = torch.full_like(self.old, 10.0)

    def check(self, way="checked"):
        # the short way may not come upon the trap at all
        assert self.then is not None or way != "checked", "the trap was not sprung"
        assert self.then is None or torch.equal(self.old, self.then), "memory that was swapped away was written"


class Key:
    """A key that a lookup of `name` compares with, which runs code."""

    def __init__(self, name, trap):
        self.name, self.trap = name, trap

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        self.trap()
        return False


def trained(make, count=2, steps=3, shape=(1000,)):
    params = [torch.ones(shape, requires_grad=True) for _ in range(count)]
    optimizer = make(params)
    for _ in range(steps):
        set_gradients(params)
        optimizer.step()
    set_gradients(params)
    return params, optimizer


def set_gradients(params):
    for p in params:
        p.grad = torch.ones_like(p)


def in_groups(cls, **settings):
    return lambda params: cls([{"params": [p]} for p in params], lr=0.1, **settings)


def step_with(trap, swap, optimizer, way="checked"):
    trap.hook = swap
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "was changed while this step was under way" in str(error)
    swap.check(way)


@pytest.mark.parametrize("name", ["exp_avg", "step"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_key_among_the_states(way, settings, name, which):
    params, optimizer = trained(in_groups(Adam, **settings))
    trap = Trap()
    # first in the dict, so that a lookup of the name comes upon it first
    optimizer.state[params[1]] = {Key(name, trap): 0, **optimizer.state[params[1]]}
    step_with(trap, Swap(params[which]), optimizer, way)


@pytest.mark.parametrize("name", ["params", "lr", "maximize"])
def test_a_key_in_a_group(way, settings, name):
    params, optimizer = trained(in_groups(SGD, **settings))
    trap = Trap()
    optimizer.param_groups[1] = {Key(name, trap): 0, **optimizer.param_groups[1]}
    step_with(trap, Swap(params[0]), optimizer, way)


def test_groups_that_are_handed_out_by_code(way, settings):
    params, optimizer = trained(in_groups(SGD, **settings))
    trap = Trap()

    class Groups(list):
        def __iter__(self):
            yield self[0]
            trap()
            yield self[1]

    optimizer.param_groups = Groups(optimizer.param_groups)
    step_with(trap, Swap(params[0]), optimizer, way)


def test_parameters_that_are_handed_out_by_code(way, settings):
    params, optimizer = trained(in_groups(SGD, **settings))
    trap = Trap()

    class Params(tuple):
        def __iter__(self):
            trap()
            yield from tuple.__iter__(self)

    optimizer.param_groups[1]["params"] = Params([params[1]])
    step_with(trap, Swap(params[0]), optimizer, way)


class Number:
    """A number that runs code when it is asked for its value."""

    def __init__(self, value, trap):
        self.value, self.trap = value, trap

    def __float__(self):
        self.trap()
        return self.value


def test_an_epsilon_that_runs_code(way, settings):
    params, optimizer = trained(in_groups(Adafactor, **settings))
    trap = Trap()
    optimizer.param_groups[1]["eps"] = (None, Number(1e-3, trap))
    step_with(trap, Swap(params[0]), optimizer, way)


class Flag:
    def __init__(self, trap):
        self.trap = trap

    def __bool__(self):
        self.trap()
        return False


def test_a_sparse_parameter_that_comes_to_lie_in_the_gaps_of_others():
    """Rows were looked up in memory without gaps. What came in its place is as long, but mostly other tensors'."""
    p, q = torch.zeros(100, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = SGD([{"params": [p]}, {"params": [q]}], lr=0.1)
    p.grad, q.grad = torch.ones_like(p).to_sparse(1), torch.ones(3).to_sparse()
    trap, base = Trap(), torch.zeros(400)
    trap.hook = lambda: setattr(p, "data", base.as_strided((2, 4), (396, 1)))
    optimizer.param_groups[1]["fused"] = Flag(trap)
    with pytest.raises(RuntimeError, match="was changed while this step was under way"):
        optimizer.step()
    assert not base.any()


def test_a_flag_that_only_sparse_gradients_ask_for(way, settings):
    if way == "clipping":
        try:
            torch.nn.utils.get_total_norm([torch.eye(2).to_sparse()])
        except NotImplementedError:
            pytest.skip("this torch knows no norm of sparse tensors")
    params, optimizer = trained(in_groups(SGD, **settings))
    trap = Trap()
    params[1].grad = params[1].grad.to_sparse()
    optimizer.param_groups[1]["fused"] = Flag(trap)
    step_with(trap, Swap(params[0]), optimizer, way)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_a_parameter_that_dies_while_the_next_step_is_under_way(settings, cls):
    """The step may hold the last reference to a parameter: a weakref's callback runs when the step is done."""
    (p, q), optimizer = trained(in_groups(cls, **settings))
    trap, swap = Trap(), Swap(p)
    watch = weakref.ref(q, lambda _: trap())

    def let_go():  # when the parameters of the other groups have been looked up
        if held:
            optimizer.param_groups[1]["params"].clear()
            optimizer.state.pop(held.pop(), None)
            trap.hook = swap

    held = [q]
    del q
    lr = optimizer.param_groups[1]["lr"]
    optimizer.add_param_group({"params": [torch.ones(3, requires_grad=True)], "lr": lr})
    optimizer.param_groups[2]["params"][0].grad = torch.ones(3)
    optimizer.param_groups[2]["lr"] = Number(lr, let_go)
    optimizer.step()
    assert not held
    assert watch() is None
    swap.check()


def test_a_counter_kept_as_a_python_number():
    params = [torch.ones(100, 4, requires_grad=True) for _ in range(2)]
    optimizer = SparseAdam([{"params": [p]} for p in params], lr=0.1)

    def set_sparse_gradients():
        for p in params:
            p.grad = torch.ones_like(p).to_sparse(1)

    for _ in range(3):
        set_sparse_gradients()
        optimizer.step()
    set_sparse_gradients()
    trap = Trap()
    entry = optimizer.state[params[1]]
    assert type(entry["step"]) is int
    optimizer.state[params[1]] = {Key("step", trap): 0, **entry}
    step_with(trap, Swap(params[0]), optimizer)


# ---- storages smaller than their tensors ----


def shrink(tensor):
    tensor.untyped_storage().resize_(1)


BEYOND = "beyond its storage of 1 bytes"


@tells_storages
def test_a_counter_beyond_its_storage(settings):
    params, optimizer = trained(in_groups(Adam, **settings))
    before = [p.detach().clone() for p in params]
    shrink(optimizer.state[params[1]]["step"])
    with pytest.raises(RuntimeError, match=BEYOND):
        optimizer.step()
    assert all(map(torch.equal, before, params))


@tells_storages
@pytest.mark.parametrize("part", ["_indices", "_values"])
@pytest.mark.parametrize("cls", [SGD, SparseAdam])
@pytest.mark.parametrize("coalesced", [True, False])
def test_a_sparse_gradient_beyond_its_storage(settings, part, cls, coalesced):
    p = torch.ones(100, 4, requires_grad=True)
    optimizer = cls([p], lr=0.1, **settings)
    p.grad = torch.ones_like(p).to_sparse(1)
    if not coalesced:
        p.grad = torch.sparse_coo_tensor(p.grad._indices(), p.grad._values(), p.shape, check_invariants=False)
    shrink(getattr(p.grad, part)())
    with pytest.raises(RuntimeError, match=BEYOND):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(100, 4))
    assert not optimizer.state


@tells_storages
@pytest.mark.parametrize(
    "what, line_search_fn",
    [
        *((what, search) for what in ("parameter", "gradient", "d") for search in (None, "strong_wolfe")),
        *((what, None) for what in ("prev_flat_grad", "old_dirs", "ro")),
    ],
)
def test_lbfgs_beyond_storages(what, line_search_fn):
    p = torch.ones(500, requires_grad=True)
    optimizer = LBFGS([p], lr=0.1, max_iter=3, line_search_fn=line_search_fn)
    wants = []

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = (p - torch.arange(500.0)).pow(2).sum()
        loss.backward()
        if wants:
            shrink(wants.pop())
        return loss

    optimizer.step(closure)
    if what in ("parameter", "gradient"):
        wants.append(p.data if what == "parameter" else p.grad)
    else:
        state = optimizer.state[p][what]
        shrink(next(x for x in state if x is not None) if isinstance(state, list) else state)
    with pytest.raises(RuntimeError, match=BEYOND):
        optimizer.step(closure)


@tells_storages
@pytest.mark.parametrize("what", ["parameter", "gradient", "momentum_buffer"])
def test_muon_beyond_storages(what):
    params, optimizer = trained(in_groups(Muon), shape=(30, 20))
    before = [p.detach().clone() for p in params]
    p = params[1]
    shrink({"parameter": p, "gradient": p.grad}.get(what, optimizer.state[p].get(what)))
    with pytest.raises(RuntimeError, match=BEYOND):
        optimizer.step()
    assert torch.equal(before[0], params[0])


@tells_storages
@pytest.mark.parametrize(
    "call",
    [
        lambda p: oxistep.clip_grad_norm_(p, 1.0),
        lambda p: oxistep.clip_grad_norm_(p, 1.0, norm_type=float("inf")),
        lambda p: oxistep.clip_grad_value_(p, 0.5),
        lambda p: oxistep.get_total_norm([q.grad for q in p]),
    ],
    ids=["clip_grad_norm_", "clip_grad_norm_ inf", "clip_grad_value_", "get_total_norm"],
)
def test_clipping_beyond_storages(call):
    params = [torch.ones(1000, requires_grad=True) for _ in range(2)]
    set_gradients(params)
    shrink(params[1].grad)
    with pytest.raises(RuntimeError, match=BEYOND):
        call(params)
    assert params[0].grad.unique().tolist() == [1.0]


@tells_storages
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_gradient_that_is_measured_lies_inside_its_storage(max_grad_norm):
    params, optimizer = trained(in_groups(SGD, max_grad_norm=max_grad_norm, skip_nonfinite=True))
    before = [p.detach().clone() for p in params]
    shrink(params[1].grad)
    with pytest.raises(RuntimeError, match=BEYOND):
        optimizer.step()
    assert all(map(torch.equal, before, params))


@tells_storages
def test_gradients_that_could_not_be_looked_at_are_let_go():
    params = [torch.ones(10, requires_grad=True) for _ in range(2)]
    set_gradients(params)
    monitor, first = GradientMonitor(params), weakref.ref(params[0].grad)
    shrink(params[1].grad)
    with pytest.raises(RuntimeError, match=BEYOND):
        monitor.update()
    params[0].grad = None
    assert first() is None


def test_sizes_beyond_counting_of_a_tensor_without_elements():
    shape = (2**40, 0, 2**40)
    p = torch.empty(shape, requires_grad=True)
    p.grad = torch.empty(shape)
    optimizer = SGD([p], lr=0.1)
    optimizer.step()
    optimizer.step()
    oxistep.clip_grad_norm_([p], 1.0)
    assert oxistep.explain(optimizer)


# ---- NumPy ----


def numpy_optimizer(cls=oxistep.numpy.Adam, **settings):
    arrays = [np.ones(1000, np.float32) for _ in range(2)]
    optimizer = cls([{"params": [array]} for array in arrays], lr=0.1, **settings)
    grads = [[np.ones(1000, np.float32)] for _ in range(2)]
    optimizer.step(grads)
    return arrays, optimizer, grads


@pytest.mark.parametrize("cls, name", [("Adam", "exp_avg"), ("Adam", "step"), ("SGD", "momentum_buffer")])
def test_a_key_among_the_states_of_an_array(cls, name):
    """It could resize an array that was looked at, when a lookup or storing new states comes upon it."""
    arrays, optimizer, grads = numpy_optimizer(getattr(oxistep.numpy, cls), **{"momentum": 0.9} if cls == "SGD" else {})
    trap = Trap()
    for entry in (optimizer.state[1][0], {"momentum_buffer": None}):
        trap.hook = None
        optimizer.state[1][0] = {Key(name, trap): 0, **entry}
        trap.hook = lambda: arrays[0].resize(10**6, refcheck=False)
        with pytest.raises(TypeError, match="keys are strings"):
            optimizer.step(grads)
    assert trap.hook is not None


def test_a_misaligned_counter():
    _, optimizer, grads = numpy_optimizer()
    memory = np.zeros(12, np.uint8)
    optimizer.state[0][0]["step"] = memory[1:5].view(np.float32).reshape(())
    with pytest.raises(TypeError, match="aligned"):
        optimizer.step(grads)


# ---- warnings and finalizers: Python code that runs unasked ----


def test_a_warning_that_runs_code(way, settings, monkeypatch):
    """torch warns when a tensor that is no leaf is asked for a gradient; users may show warnings their way."""
    still = torch.zeros(3)
    params, optimizer = trained(lambda params: SGD([params[0], still, params[1]], lr=0.1, **settings))
    still.add_(torch.ones(3, requires_grad=True))
    trap, swap = Trap(), Swap(params[0])
    monkeypatch.setattr(warnings, "showwarning", lambda *_: trap())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        step_with(trap, swap, optimizer, "plain")
    assert swap.then is not None or way != "checked"


def test_a_property_in_the_place_of_grad(way, settings, monkeypatch):
    params, optimizer = trained(in_groups(SGD, **settings))
    trap, swap = Trap(), Swap(params[0])

    def grad(tensor):
        if tensor is params[1]:
            trap()
        return torch._C.TensorBase.grad.__get__(tensor)

    monkeypatch.setattr(torch.Tensor, "grad", property(grad))
    step_with(trap, swap, optimizer)


class Cycle:
    """Garbage that only the collector finds; then it runs code."""

    def __init__(self, code):
        self.code, self.itself = code, self

    def __del__(self):
        self.code()


@contextmanager
def collecting_after(objects):
    """The collector starts when so many more objects are made."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(objects)
    try:
        yield
    finally:
        gc.set_threshold(*before)


CHANGES = {"clamp": lambda grads: _core.clamp(grads, -0.5, 0.5), "scale": lambda grads: _core.scale(grads, 0.5)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_finalizer_while_gradients_are_changed(change):
    """Asked directly: the functions of Python around these make more objects before, and so collect earlier."""
    for objects in range(1, 12):
        params = [torch.ones(1000, requires_grad=True) for _ in range(2)]
        set_gradients(params)
        grads = [p.grad for p in params]
        swap = Swap(grads[0])
        with collecting_after(objects):
            Cycle(swap)
            change(grads)
        swap.check("plain")


class Name(str):
    """A name that runs code when an error might want to tell it."""

    def code(self):
        pass

    def __repr__(self):
        self.code()
        return super().__repr__()


def test_a_name_that_runs_code_while_gradients_are_looked_at():
    grads = [np.ones(1000, np.float32) for _ in range(2)]
    name = Name("b")
    monitor = GradientMonitor({"a": grads[0], name: grads[1]})
    monitor.update(grads)
    name.code = lambda: grads[0].resize(10**6, refcheck=False)
    with pytest.raises(RuntimeError, match="was reshaped or resized"):
        monitor.update(grads)
    assert len(monitor.rows(None)) == 2


def test_a_finalizer_while_states_of_arrays_are_stored(monkeypatch):
    arrays = [np.ones(1000, np.float32) for _ in range(2)]
    optimizer = oxistep.numpy.Adam(arrays, lr=0.1)
    new_state, trap, within = optimizer._oxistep_new_state, Trap(), []

    def make(array, group):
        state = new_state(array, group)
        if array is arrays[1]:
            trap.hook = lambda: (within.append(True), arrays[0].resize(10**6, refcheck=False))
            Cycle(trap)
        return state

    monkeypatch.setattr(optimizer, "_oxistep_new_state", make)
    with collecting_after(1):
        optimizer.step([np.ones(1000, np.float32)] * 2)
        trap.hook = None
    assert not within, "an array was resized between the checks and the writes"
    assert arrays[0].shape == (1000,)
    assert np.all(arrays[0] < 1)


# ---- lazily negated counters ----


@tells_storages
def test_a_counter_that_stands_for_its_negative():
    def stepped(optim):
        p = torch.ones(5, requires_grad=True)
        optimizer = optim.ASGD([p], lr=0.1)
        p.grad = torch.ones(5)
        optimizer.step()
        optimizer.state[p]["eta"] = torch.tensor([1 - 0.5j], dtype=torch.complex64).conj().imag[0]
        assert optimizer.state[p]["eta"].is_neg()
        optimizer.step()
        return p.detach()

    assert torch.equal(stepped(oxistep.optim), stepped(torch.optim))
