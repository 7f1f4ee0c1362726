"""docs/torch-parity.md: every line of its tables is true, and every case here has a line."""

import copy
import re
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import oxistep
import oxistep.optim
from oxistep import rules
from oxistep.optim import SGD, Adagrad, Adam, AdamW, SparseAdam
from oxistep.optim._definition import definition_of
from seeing import Seeing

PAGE = Path(__file__).parent.parent / "docs" / "torch-parity.md"


# torch warns of sparse tensors until it has been told whether to check them.
torch.sparse.check_sparse_tensor_invariants.enable()


nothing = torch.ones(3)


class Marked(torch.Tensor):
    """A subclass that adds nothing."""


class Centred(Adam):
    """A subclass with a method that torch's step calls."""

    def _init_group(self, group, *lists, **kwargs):
        return super()._init_group(group, *lists, **kwargs)


class Reading(dict):
    """A group with lookups of its own."""

    def __getitem__(self, key):
        return super().__getitem__(key)


def with_a_group_of_its_own():
    optimizer = Adam([ones(3)])
    optimizer.param_groups[0] = Reading(optimizer.param_groups[0])
    return optimizer


class Labelled(Seeing, torch.Tensor):
    """A subclass that sees every function, and changes nothing."""


def table(title):
    """The rows of the table under a heading, by their first column."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


def given(p, grad=None):
    p.grad = torch.ones_like(p) if grad is None else grad
    return p


def ones(*shape, **kwargs):
    return given(torch.ones(shape, **kwargs))


def with_data(p, data):
    p.data = data
    return p


def sparse(shape=(4, 2), indices=((1, 3),), values=None, **kwargs):
    values = torch.ones(len(indices[0]), *shape[1:]) if values is None else values
    return torch.sparse_coo_tensor(torch.tensor(indices), values, shape, **kwargs)


def with_state(**changed):
    """Adam after a step, with states that the user changed."""
    optimizer = Adam([ones(3)])
    optimizer.step()
    (state,) = optimizer.state.values()
    for key, value in changed.items():
        state.pop(key) if value is None else state.update({key: value})
    return optimizer


def with_group(make, **changed):
    optimizer = make()
    optimizer.param_groups[0].update(changed)
    return optimizer


def lacking_a_dict():
    optimizer = with_state()
    (p,) = optimizer.state
    optimizer.state[p] = UserDict(optimizer.state[p])
    return optimizer


def complex_with_real_states():
    p = ones(3, dtype=torch.complex64)
    optimizer = Adam([p])
    optimizer.step()
    optimizer.state[p].update(exp_avg=torch.zeros(3), exp_avg_sq=torch.zeros(3))
    return optimizer


def in_float32_states():
    return Adam([ones(3, dtype=torch.bfloat16)], state_dtype=torch.float32)


@oxistep.rule
def asking(p, g, s, lr=0.1):
    return p - lr * g if rules.total(rules.sum(g)) > 0 else p


@oxistep.rule
def counting(p, g, s, lr=0.1):
    s.group.k = s.group.get("k", 1) + 1
    return p - lr * g


@oxistep.rule
def remembering(p, g, s, lr=0.1):
    kept = [g * (k + 0.5) + rules.cos(g * k) for k in range(130)]
    return p - lr * sum(reversed(kept), g) * sum(kept, g)


channels_last = torch.empty(2, 3, 4, 4, memory_format=torch.channels_last).fill_(1)

NATIVE = {
    "float64, float32, bfloat16, float16": lambda: Adam(
        [ones(3, dtype=d) for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)]
    ),
    "complex64, complex128": lambda: Adam([ones(3, dtype=d) for d in (torch.complex64, torch.complex128)]),
    "half gradient of a float32 parameter": lambda: Adam([with_data(ones(3, dtype=torch.half), torch.ones(3))]),
    "states in bfloat16 or 8 bits, weights with what bfloat16 cannot hold": lambda: Adam(
        [ones(80, 64, dtype=torch.bfloat16), ones(3, dtype=torch.bfloat16)], weights="residual16", state_dtype="8bit"
    ),
    "float32 states of a half parameter": in_float32_states,
    "contiguous, channels_last, permuted": lambda: Adam([ones(3), given(channels_last), given(torch.ones(2, 3).t())]),
    "sliced with steps": lambda: Adam([given(torch.ones(6, 6)[::2, 1::2])]),
    "gradient laid out differently, or expanded": lambda: SGD(
        [given(torch.ones(2, 3), torch.ones(3, 2).t()), given(torch.ones(2, 3), torch.ones(3).expand(2, 3))],
        momentum=0.9,
    ),
    "view into a larger buffer": lambda: Adam([given(torch.ones(9)[2:5], torch.ones(9)[3:6])]),
    "no dimensions, no elements": lambda: Adam([ones(), ones(0, 3)]),
    "sparse COO, coalesced or not": lambda: Adagrad(
        [given(torch.ones(4, 2), sparse()), given(torch.ones(4, 2), sparse(indices=((1, 1),)).coalesce())]
    ),
    "parameters that share memory": lambda: Adam([given(nothing[:2]), given(nothing[1:])]),
    "subclasses that add nothing": lambda: Adam([given(torch.ones(3).as_subclass(Marked))]),
    "counters of int64": lambda: with_state(step=torch.tensor(3)),
    "lr as a tensor": lambda: Adam(
        [
            {"params": [ones(3)]},
            {"params": [ones(3, dtype=torch.float64)], "lr": torch.tensor(0.1, dtype=torch.float64)},
        ],
        lr=torch.tensor(0.1),
    ),
    "lr as a tensor of bfloat16 or float16": lambda: AdamW(
        [{"params": [ones(3)], "lr": torch.tensor(0.1, dtype=dtype)} for dtype in (torch.bfloat16, torch.half)]
    ),
    "foreach=True, fused=True, maximize=True": lambda: Adam(
        [{"params": [ones(3)], "foreach": True}, {"params": [ones(3)], "fused": True}], maximize=True
    ),
}

TORCHS = {
    "differentiable=True": lambda: SGD([ones(3)], differentiable=True),
    "capturable=True": lambda: Adam([ones(3)], capturable=True),
    "lr that requires grad": lambda: SGD([ones(3)], lr=torch.tensor(0.1, requires_grad=True)),
    "hyperparameter that is no number": lambda: with_group(lambda: SGD([ones(3)]), lr="fast"),
    "float32 lr of a float64 parameter": lambda: Adam([ones(3, dtype=torch.float64)], lr=torch.tensor(0.1)),
    "complex parameter with fused=True": lambda: SGD([ones(3, dtype=torch.complex64)], fused=True),
    "unusual numbers": lambda: with_group(lambda: Adam([ones(3)]), betas=(1.0, 0.9)),
    "other devices": lambda: Adam([ones(3, device="meta")]),
    "methods of a subclass": lambda: Centred([ones(3)]),
    "dicts with lookups of their own": with_a_group_of_its_own,
    "subclass of Tensor": lambda: Adam([given(torch.ones(3).as_subclass(Labelled))]),
    "gradient of a subclass": lambda: Adam([given(torch.ones(3), torch.ones(3).as_subclass(Labelled))]),
    "integers, 8-bit floats": lambda: SGD([ones(3, dtype=torch.int64), ones(3, dtype=torch.float8_e4m3fn)]),
    "float32 gradient of a float64 parameter": lambda: Adam([with_data(ones(3), torch.ones(3, dtype=torch.float64))]),
    "real states of a complex parameter": complex_with_real_states,
    "elements that share memory": lambda: Adam([given(torch.ones(1).expand(3), torch.ones(3))]),
    "tensors that overlap": lambda: Adam([given(nothing[:2]), given(nothing[1:])], foreach=True),
    "gradient of another shape": lambda: Adam([with_data(ones(3), torch.ones(2, 3))]),
    "lazily negated or conjugated": lambda: SGD(
        [given(torch.ones(3), torch.ones(3, dtype=torch.complex64).conj().imag)]
        + [given(torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex64).conj())]
    ),
    "no plain memory": lambda: Adam([given(torch.ones(3), torch._efficientzerotensor((3,)))]),
    "sparse gradient elsewhere": lambda: Adagrad([given(torch.ones(4, 2), sparse())], weight_decay=0.1),
    "sparse gradient with fused=True": lambda: Adagrad([given(torch.ones(4, 2), sparse())], fused=True),
    "sparse gradient of another shape": lambda: Adagrad(
        [with_data(given(torch.ones(4, 2), sparse()), torch.ones(5, 2))]
    ),
    "sparse gradient, parameter not contiguous": lambda: Adagrad([given(torch.ones(2, 4).t(), sparse())]),
    "sparse gradient with bad indices": lambda: Adagrad(
        [given(torch.ones(4, 2), sparse(indices=((1, 9),), check_invariants=False))]
    ),
    "falsely coalesced gradient": lambda: Adagrad(
        [given(torch.ones(4, 2), sparse(indices=((3, 1),), is_coalesced=True, check_invariants=False))]
    ),
    "dense gradient in SparseAdam": lambda: SparseAdam([ones(3)]),
    "state missing": lambda: with_state(exp_avg=None),
    "state of another shape": lambda: with_state(exp_avg=torch.zeros(1)),
    "state whose elements share memory": lambda: with_state(exp_avg=torch.zeros(1).expand(3)),
    "state that is no tensor of memory": lambda: with_state(exp_avg=torch.zeros(3, device="meta")),
    "step that is no tensor of one number": lambda: with_state(step=1),
    "state entry that is no dict": lacking_a_dict,
    "torch's own classes": lambda: torch.optim.LBFGS([ones(3)]),
    "a rule's `if` on a total": lambda: asking([ones(3)]),
    "a rule's number of a group that is none": lambda: counting([{"params": [ones(3)], "k": torch.tensor(1.0)}]),
    "a rule that is too large for kernels": lambda: remembering([ones(3)]),
}


def step(optimizer):
    optimizer.step()
    return optimizer


def step_with(lbfgs):
    (p,) = lbfgs.param_groups[0]["params"]
    lbfgs.step(lambda: given(p).sum())
    return lbfgs


def after_parameters_became_half(optim):
    p = ones(3)
    optimizer = step(optim.Adam([p]))
    p.grad = None
    p.data = p.data.bfloat16()
    p.grad = torch.ones_like(p)
    return step(optimizer)


def without(key):
    def make(optim):
        optimizer = optim.Adam([ones(3)])
        del optimizer.param_groups[0][key]
        return step(optimizer)

    return make


def with_decay(name, decay):
    return lambda optim: step(getattr(optim, name)([ones(3)], weight_decay=decay))


def with_a_dict_for_states(optim):
    optimizer = step(optim.Adam([ones(3)]))
    optimizer.state = {}
    return step(optimizer)


def a_copy_of_lbfgs(optim):
    return step_with(copy.deepcopy(optim.LBFGS([torch.ones(3)])))


# Each for both modules, with what torch raises.
KINDER = {
    "half gradient of a float32 parameter": [
        (lambda optim: step(optim.Adam([with_data(ones(3, dtype=torch.half), torch.ones(3))])), RuntimeError)
    ],
    "float32 states of parameters that became half": [(after_parameters_became_half, RuntimeError)],
    "parameters without elements in Adafactor, LBFGS": [
        (lambda optim: step(optim.Adafactor([ones(0, 3)])), ZeroDivisionError),
        (lambda optim: step_with(optim.LBFGS([torch.ones(0, 3)])), RuntimeError),
    ],
    "weight_decay as an array, a bool or a tensor of one element": [
        (with_decay("SGD", np.array(0.1)), TypeError),
        (with_decay("SGD", True), RuntimeError),
        (with_decay("SGD", torch.tensor([0.1])), TypeError),
        (with_decay("AdamW", np.array([0.1])), TypeError),
    ],
    "`optimizer.state = {}`": [(with_a_dict_for_states, KeyError)],
    "a group that lacks a flag": [
        (without(key), KeyError) for key in ("maximize", "foreach", "fused", "capturable", "differentiable")
    ],
    "a copy of LBFGS": [(a_copy_of_lbfgs, AttributeError)],
}


# Cases that need more than an optimizer; each has a test of its own below.
OTHERS = {"a mode that sees operations", "misaligned memory", "parameter named twice"}
OTHERS |= {"a rule of several parameters, one of them torch's"}  # test_rules_together.py
OF_DTENSORS = {what for what in (*table("Native"), *table("torch's")) if what.startswith("DTensor")}  # test_dtensors.py


def test_the_page_and_these_cases_are_the_same():
    assert set(table("Native")) - OF_DTENSORS == set(NATIVE)
    assert set(table("torch's")) - OF_DTENSORS == set(TORCHS) | OTHERS
    assert set(table("Kinder than torch")) == set(KINDER)


@pytest.mark.parametrize("what", KINDER)
def test_kinder_than_torch(what):
    for make, error in KINDER[what]:
        with pytest.raises(error):
            make(torch.optim)
        assert {row.path for row in oxistep.explain(make(oxistep.optim))} == {"native"}


@pytest.mark.parametrize("what", NATIVE)
def test_native(what):
    optimizer = NATIVE[what]()
    for _ in range(2):  # before and after states are made
        rows = oxistep.explain(optimizer)
        assert rows
        # (what follows a semicolon is how many bytes it takes)
        told = {(row.path, row.reason.partition(";")[0]) for row in rows}
        assert told == {("native", "plain CPU tensors")}, f"{what}: {rows}"
        optimizer.step()


def assert_torchs(what, optimizer):
    reason = table("torch's")[what][0]
    rows = oxistep.explain(optimizer)
    assert rows
    assert all(row.path == "torch" and reason in row.reason for row in rows), f"{reason!r}: {rows}"


@pytest.mark.parametrize("what", TORCHS)
def test_torchs(what):
    assert_torchs(what, TORCHS[what]())


@pytest.mark.parametrize("decay", [np.array(0.25), np.array([0.25]), torch.tensor([0.25]), True])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "Adafactor", "NAdam"])
def test_a_weight_decay_counts_as_the_number_that_it_holds(name, decay):
    def after(decay):
        # where decay is added to the gradient it turns its sign
        p = given(torch.tensor([3.0, -2.0, 1.0]), torch.tensor([-0.1, 0.2, -0.1]))
        step(getattr(oxistep.optim, name)([p], weight_decay=decay))
        return p

    number = decay if decay is True else decay.item()
    assert torch.equal(after(decay), after(number))
    assert not torch.equal(after(decay), after(0.0))


def test_states_begin_anew_in_a_plain_dict():
    p, fresh = ones(3), ones(3)
    optimizer = step(Adam([p]))
    fresh.data.copy_(p)
    optimizer.state = {}
    step(optimizer)
    step(Adam([fresh]))
    assert torch.equal(p, fresh)
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_an_lr_of_half_precision_counts_as_the_number_that_it_holds(dtype):
    """torch computes `1 - lr * weight_decay` in the lr's precision, which the page says."""
    lr = torch.tensor(0.0123, dtype=dtype)

    def after(optim, lr):
        p = torch.linspace(1, 2, 100)
        optimizer = optim.AdamW([p], lr=lr, weight_decay=0.1)
        for _ in range(3):
            p.grad = torch.sin(p)
            optimizer.step()
        return p

    assert torch.equal(after(oxistep.optim, lr), after(oxistep.optim, lr.item()))
    torch.testing.assert_close(after(oxistep.optim, lr), after(torch.optim, lr.item()))
    distance = (after(oxistep.optim, lr) - after(torch.optim, lr)).abs().max()
    moved = (after(oxistep.optim, lr) - torch.linspace(1, 2, 100)).abs().max()
    assert 0.01 * moved < distance < moved


@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
@pytest.mark.parametrize("case", ["lr", "gradient"])
def test_what_explain_says_before_states_are_made_is_what_the_step_does(optimizer_class, case, monkeypatch):
    p = ones(3, dtype=torch.float64)
    if case == "gradient":
        p.data = torch.ones(3, dtype=torch.complex128)
    optimizer = optimizer_class([p], lr=torch.tensor(0.1, dtype=torch.float32 if case == "lr" else torch.float64))
    (row,) = oxistep.explain(optimizer)
    left = []
    monkeypatch.setattr(definition_of(optimizer_class), "torch_step", lambda optimizer, rows: left.extend(rows))
    optimizer.step()
    assert (row.path == "torch") == bool(left)
    assert row.path == "torch"


def test_a_mode_that_sees_operations():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    optimizer = Adam([ones(3)])
    with Mode():
        assert_torchs("a mode that sees operations", optimizer)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_misaligned_memory():
    block = bytearray(64)
    for offset in range(1, 4):
        p = torch.frombuffer(block, dtype=torch.float32, count=3, offset=offset)
        if p.data_ptr() % 4:
            assert_torchs("misaligned memory", Adam([given(p, torch.ones(3))]))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning")
def test_a_parameter_named_twice():
    p = ones(3)
    assert_torchs("parameter named twice", SGD([p, p]))
