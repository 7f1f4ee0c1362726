"""A panic in a running kernel, on any thread: an exception that names parameters, and no further step before a load.

Runs with the wheel of `make test-faults`, which fails on demand.
"""

import copy
import pickle

import numpy as np
import pytest
import torch

import oxistep
import oxistep.numpy
import oxistep.optim
from oxistep import _core, zoo
from oxistep.optim._kept import WEIGHTS
from scenarios import draw, set_gradients
from snapshots import difference, outcome_of, snapshot

pytestmark = pytest.mark.skipif(not hasattr(_core, "fault_arm"), reason="needs the wheel of `make test-faults`")

LARGE = 400_000


@pytest.fixture(autouse=True)
def disarmed(capfd):
    torch.set_num_threads(2)
    yield
    _core.fault_arm_panic(0, False)
    oxistep.set_num_threads(None)


POOLS = {"torch's threads": None, "rayon": 3}


def trained(steps=2, shapes=((LARGE,), (5,), (3, 2)), **kwargs):
    params = draw(*shapes)
    optimizer = oxistep.optim.Adam([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, **kwargs)
    for k in range(steps):
        set_gradients(params, k)
        optimizer.step()
    set_gradients(params, 50)
    return params, optimizer


def checkpoint(params, optimizer):
    return copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])


def restore(saved, params, optimizer):
    with torch.no_grad():
        for p, value in zip(params, saved[0], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(copy.deepcopy(saved[1]))


@pytest.mark.parametrize("elsewhere", [False, True], ids=["any thread", "a worker"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("steps", [0, 2, 3], ids=["first step", "third step", "fourth step"])
def test_a_panic_names_parameters_and_stops_the_optimizer(steps, pool, elsewhere):
    oxistep.set_num_threads(POOLS[pool])
    params, optimizer = trained(steps)
    saved = checkpoint(params, optimizer)
    expected_params, expected = trained(steps)
    expected.step()

    _core.fault_arm_panic(2, elsewhere)
    with pytest.raises(RuntimeError, match="injected into a kernel") as panic:
        optimizer.step()
    assert _core.fault_panicked()
    assert "param_groups[0]['params'][0], param_groups[1]['params'][0:2]" in str(panic.value)
    assert "load_state_dict" in str(panic.value)
    # whatever it is asked for, it does not step; and it does not change
    _core.fault_arm_panic(0, False)
    before = snapshot(optimizer, params)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"takes no step: a kernel of oxistep panicked .injected into a kernel"):
            optimizer.step()
    with pytest.raises(RuntimeError, match="takes no step"), torch.utils._python_dispatch.TorchDispatchMode():
        optimizer.step()
    assert not difference(before, snapshot(optimizer, params))

    restore(saved, params, optimizer)
    optimizer.step()
    assert outcome_of(params, optimizer) == outcome_of(expected_params, expected)


def test_every_beginning_and_end_of_the_work_may_panic():
    n = 1
    while True:
        optimizer = trained(2)[1]
        _core.fault_arm_panic(n, False)
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "injected into a kernel" in str(error)
        else:
            break
        n += 1
    # 400 000 elements in chunks, and two small tensors; each begins and ends
    assert not _core.fault_panicked()
    assert n > 2 * (LARGE // 65536 + 2)


FEWER_BYTES = [
    {"state_dtype": "8bit"},
    {"state_dtype": torch.bfloat16},
    *({"weights": mode, "state_dtype": "8bit", "ema": 0.9} for mode in WEIGHTS),
]
# AdamW has loops of its own for some of them, others are brought into tiles
CLASSES = {"AdamW": FEWER_BYTES, "RMSprop": FEWER_BYTES[:3], "Lion": [FEWER_BYTES[0], FEWER_BYTES[-1]]}


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "third step"])
@pytest.mark.parametrize("name, settings", [(name, one) for name, of in CLASSES.items() for one in of], ids=str)
def test_with_fewer_bytes_a_load_makes_up_for_a_panic(name, settings, steps):
    """Codes, headers, digits beside weights and averages are half written then; a load puts all of them back."""
    cls = zoo.Lion if name == "Lion" else getattr(oxistep.optim, name)

    def trained(steps):
        params = draw((LARGE,), (5,), dtype=torch.bfloat16 if "weights" in settings else torch.float32)
        optimizer = cls(params, lr=0.01, **settings)
        for k in range(steps):
            set_gradients(params, k)
            optimizer.step()
        set_gradients(params, 50)
        return params, optimizer

    def everything(params, optimizer):
        return [*params, *(t for p in params for _, t in sorted(optimizer.state[p].items()))]

    expected_params, expected = trained(steps)
    expected.step()
    params, optimizer = trained(steps)
    saved = checkpoint(params, optimizer)
    _core.fault_arm_panic(1, False)  # one piece of the work is not begun, all others are done
    with pytest.raises(RuntimeError, match="injected into a kernel"):
        optimizer.step()
    assert _core.fault_panicked()
    _core.fault_arm_panic(0, False)
    torn = copy.deepcopy(everything(params, optimizer))
    assert not same(torn, everything(expected_params, expected)), "the panic came too late"
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step()
    assert same(torn, everything(params, optimizer))
    restore(saved, params, optimizer)
    optimizer.step()
    assert same(everything(params, optimizer), everything(expected_params, expected))


def same(some, others):
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_names_are_told_where_there_are_names():
    weight, bias = draw((3, 2), (3,))
    optimizer = oxistep.optim.SGD([("layer.weight", weight), ("layer.bias", bias)], lr=0.1)
    set_gradients([weight, bias], 0)
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match=r"not updated: 'layer.weight', 'layer.bias', with their states"):
        optimizer.step()


def test_only_parameters_of_the_step_are_named():
    params = draw((3,), (2,), (2,), (2,), (2,))
    optimizer = oxistep.optim.SGD(params, lr=0.1)
    set_gradients([params[i] for i in (0, 2, 3)], 0)
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match=r"updated: param_groups\[0\]\['params'\]\[0\], .*\[2:4\], with"):
        optimizer.step()


def test_long_lists_are_cut_short():
    params = draw(*[(2,)] * 40)
    optimizer = oxistep.optim.SGD([{"params": [p]} for p in params], lr=0.1)
    set_gradients(params, 0)
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="and 32 more, with their states"):
        optimizer.step()


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_as_torn(way):
    optimizer = trained(1)[1]
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="panicked"):
        optimizer.step()
    twin = COPIES[way](optimizer)
    with pytest.raises(RuntimeError, match="takes no step"):
        twin.step()
    twin.load_state_dict(trained(1)[1].state_dict())
    twin.step()
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step()


def test_a_load_that_is_refused_mends_nothing():
    optimizer = trained(1)[1]
    good = copy.deepcopy(optimizer.state_dict())
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="panicked"):
        optimizer.step()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step()
    optimizer.load_state_dict(good)
    optimizer.step()


@pytest.mark.parametrize("settings", [{"max_grad_norm": 0.1}, {"skip_nonfinite": True}], ids=str)
def test_a_panic_while_gradients_are_measured_has_changed_nothing(settings):
    params, optimizer = trained(2, **settings)
    before = snapshot(optimizer, params)
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match=r"panicked .* before anything was written"):
        optimizer.step()
    assert not difference(before, snapshot(optimizer, params))
    optimizer.step()
    expected_params, expected = trained(2, **settings)
    expected.step()
    assert outcome_of(params, optimizer) == outcome_of(expected_params, expected)


@pytest.mark.parametrize("n", range(1, 8))
def test_adafactor_whose_step_has_several_sweeps(n):
    params = draw((700, 600), (5,))
    optimizer = oxistep.optim.Adafactor(params, lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    saved = checkpoint(params, optimizer)
    _core.fault_arm_panic(n, False)
    with pytest.raises(RuntimeError, match=r"panicked .*\['params'\]\[0:2\]"):
        optimizer.step()
    restore(saved, params, optimizer)
    optimizer.step()


def test_sparse_gradients():
    (table,) = draw((1000, 8))
    optimizer = oxistep.optim.SparseAdam([table], lr=0.1)
    table.grad = torch.sparse_coo_tensor(torch.arange(500)[None], torch.ones(500, 8), (1000, 8))
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="panicked"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step()


def test_muon():
    """Any of its rounds of momentum and update."""
    params = draw((300, 500), (400, 500), (8, 9))
    fresh = [p.detach().clone() for p in params]
    n = 1
    while True:
        optimizer = oxistep.optim.Muon(params, lr=0.1)
        for p, value in zip(params, fresh, strict=True):
            p.data.copy_(value)
        set_gradients(params, 0)
        _core.fault_arm_panic(n, False)
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "a step of Muon broke off" in str(error) and "['params'][0:3]" in str(error)
            with pytest.raises(RuntimeError, match="takes no step"):
                optimizer.step()
            optimizer.load_state_dict(oxistep.optim.Muon(params, lr=0.1).state_dict())
            _core.fault_arm_panic(0, False)
            optimizer.step()
        else:
            break
        n += 1
    assert n > 8


@pytest.mark.parametrize("n", [1, 3, 5, 7, 9, 11])
def test_lbfgs(n):
    (w,) = draw((4,))
    optimizer = oxistep.optim.LBFGS([w], lr=0.1, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    good = copy.deepcopy(optimizer.state_dict())
    _core.fault_arm_panic(n, False)
    with pytest.raises(RuntimeError, match=r"panicked .*\['params'\]\[0\]|panicked .*write to"):
        optimizer.step(closure)
    _core.fault_arm_panic(0, False)
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step(closure)
    assert type(copy.deepcopy(optimizer)) is oxistep.optim.LBFGS
    optimizer.load_state_dict(good)
    optimizer.step(closure)


def test_clipping_outside_a_step():
    gradient = torch.ones(LARGE)
    p = torch.zeros(LARGE, requires_grad=True)
    p.grad = gradient
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="before anything was written"):
        oxistep.clip_grad_norm_([p], 1.0)
    assert (p.grad == 1).all()
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match="may be half written"):
        oxistep.clip_grad_value_([p], 0.5)
    oxistep.clip_grad_value_([p], 0.5)
    assert (p.grad == 0.5).all()


@pytest.mark.parametrize("size", [7, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("named", [False, True])
def test_numpy(named, steps, size):
    w, b = np.ones(size, np.float32), np.ones(3, np.float32)
    params = {"w": w, "b": b} if named else [w, b]
    grads = {"w": np.ones(size, np.float32), "b": None} if named else [np.ones(size, np.float32), None]
    optimizer = oxistep.numpy.Adam(params, lr=0.1)
    for _ in range(steps):
        optimizer.step(grads)
    saved, values = copy.deepcopy(optimizer.state_dict()), w.copy()
    _core.fault_arm_panic(1, False)
    with pytest.raises(RuntimeError, match=r"updated: 'w', with" if named else r"updated: .*\['params'\]\[0\], with"):
        optimizer.step(grads)
    for other in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        with pytest.raises(RuntimeError, match="takes no step"):
            other.step(grads)
    with pytest.raises(ValueError, match="state_dict must have"):
        optimizer.load_state_dict({})
    with pytest.raises(RuntimeError, match="takes no step"):
        optimizer.step(grads)
    w[:] = values
    optimizer.load_state_dict(saved)
    optimizer.step(grads)
    reference = oxistep.numpy.Adam([np.ones(size, np.float32)], lr=0.1)
    for _ in range(steps + 1):
        reference.step([np.ones(size, np.float32)])
    assert np.array_equal(w, reference.param_groups[0]["params"][0])
    assert optimizer.step_count == steps + 1


def test_numpy_on_rayons_workers():
    oxistep.set_num_threads(3)
    w = np.ones(LARGE, np.float32)
    optimizer = oxistep.numpy.SGD([w], lr=0.1)
    _core.fault_arm_panic(1, True)
    with pytest.raises(RuntimeError, match="panicked"):
        optimizer.step([np.ones(LARGE, np.float32)])
    assert _core.fault_panicked()
    assert np.isin(w, [np.float32(1), np.float32(1) - np.float32(0.1)]).all()
