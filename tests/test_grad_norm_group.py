"""`grad_norm_group=`: norms of which each rank holds a part.

A function stands for the other ranks here: it adds what they would send. Real ones are in test_two_processes.py.
"""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.optim import ZeroRedundancyOptimizer

import oxistep.optim
from oxistep.optim import SGD, Adam, AdamW, _modes
from scenarios import SHAPES, draw, each_class, each_class_that_makes_states, make, params_of, set_gradients, train
from seeing import Seeing

FAILED = 3  # place of the flag in what ranks send


def given(*values, dtype=torch.float32):
    p = torch.nn.Parameter(torch.zeros(len(values), dtype=dtype))
    p.grad = torch.tensor(values, dtype=dtype)
    return p


class Other:
    """The other ranks: `times` of them, each with the same norm as this one."""

    def __init__(self, times=3, *, failed=False, in_place=True):
        self.times, self.failed, self.in_place = times, failed, in_place
        self.sent = []

    def __call__(self, payload):
        assert payload.dtype == torch.float64
        self.sent.append(payload.clone())
        summed = payload * (1 + self.times)
        summed[FAILED] += self.failed
        if not self.in_place:
            return summed
        payload.copy_(summed)
        return None


@each_class
@pytest.mark.parametrize("in_place", [True, False])
def test_every_class_clips_by_the_norm_of_all(name, in_place):
    def stepped(**settings):
        optimizer = make(oxistep.optim, name, draw(*SHAPES), **settings)
        train(optimizer, 3)
        return optimizer

    other = Other(in_place=in_place)
    # with three others like this rank the norm is twice its own
    shared, alone = stepped(max_grad_norm=2.0, grad_norm_group=other), stepped(max_grad_norm=1.0)
    assert len(other.sent) == 3
    assert shared.last_grad_norm.item() == pytest.approx(2 * alone.last_grad_norm.item(), rel=1e-6)
    for p, q in zip(params_of(shared), params_of(alone), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_is_rounded_once(dtype):
    optimizer = SGD([given(3.0, 1e-3, dtype=dtype)], lr=1.0, max_grad_norm=math.inf, grad_norm_group=Other())
    optimizer.step()
    (p,) = params_of(optimizer)
    assert torch.equal(optimizer.last_grad_norm, (2 * p.grad.double().norm()).to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_all_skip_alike(bad):
    def infinite(payload):  # of another rank
        payload[0] = bad

    p = given(1.0)
    optimizer = Adam([p], skip_nonfinite=True, grad_norm_group=infinite)
    optimizer.step()
    assert p.item() == 0
    assert not optimizer.state
    assert not optimizer.last_grad_norm.isfinite()


def test_a_rank_without_gradients_takes_part():
    other = Other()
    for params in ([torch.zeros(2, requires_grad=True)], [given(1.0)]):
        optimizer = SGD(params, lr=1.0, max_grad_norm=1.0, grad_norm_group=other)
        optimizer.step()
        assert optimizer.last_grad_norm is not None
    assert len(other.sent) == 2


@each_class_that_makes_states
def test_where_another_rank_cannot_step_this_one_does_not(name):
    other = Other(failed=True)
    optimizer = make(oxistep.optim, name, draw(*SHAPES), max_grad_norm=1.0, grad_norm_group=other)
    set_gradients(params_of(optimizer), 0)
    before = [p.detach().clone() for p in params_of(optimizer)]
    with pytest.raises(RuntimeError, match="another rank cannot take this step"):
        optimizer.step()
    for p, was in zip(params_of(optimizer), before, strict=True):
        assert torch.equal(p, was)
    other.failed = False
    optimizer.step()


def refused(other):
    """Steps that fail before the norm is taken, by different ways."""
    lacking = Adam([given(1.0)], max_grad_norm=1.0, grad_norm_group=other)
    lacking.step()
    other.sent.clear()
    del lacking.state[params_of(lacking)[0]]["exp_avg"]
    yield lacking
    without_lr = SGD([given(1.0)], max_grad_norm=1.0, grad_norm_group=other)
    del without_lr.param_groups[0]["lr"]
    yield without_lr
    p = given(1.0, 2.0)
    p.untyped_storage().resize_(0)
    yield AdamW([p], max_grad_norm=1.0, grad_norm_group=other)
    narrow = AdamW(
        [given(1.0, dtype=torch.bfloat16)], state_dtype=torch.float32, max_grad_norm=1.0, grad_norm_group=other
    )
    narrow.param_groups[0]["capturable"] = True
    yield narrow


@pytest.mark.parametrize("case", range(4))
def test_a_rank_that_cannot_step_says_so_once(case):
    other = Other()
    optimizer = list(refused(other))[case]
    other.sent.clear()
    with pytest.raises(Exception, match=r".") as raised:
        optimizer.step()
    assert "another rank" not in str(raised.value)
    (sent,) = other.sent
    assert sent[FAILED] == 1


def test_a_step_that_is_torchs_is_measured_the_same_way(monkeypatch):
    class Watched(Seeing, torch.Tensor):
        """Sees every function, and changes nothing."""

    def stepped(p, **settings):
        optimizer = SGD([p, given(4.0)], lr=1.0, **settings)
        optimizer.step()
        return optimizer

    p = given(3.0)
    p.grad = p.grad.as_subclass(Watched)
    other = Other()
    optimizer = stepped(p, max_grad_norm=math.inf, grad_norm_group=other)
    assert oxistep.explain(optimizer)[0].path == "torch"
    assert optimizer.last_grad_norm.item() == 10
    monkeypatch.setattr(_modes, "FORCED", True)  # leaves everything to torch
    assert stepped(given(3.0), max_grad_norm=math.inf, grad_norm_group=other).last_grad_norm.item() == 10
    assert len(other.sent) == 2


def test_an_error_of_the_group_is_the_steps():
    def broken(payload):
        raise OSError("the connection was closed")

    p = given(1.0)
    with pytest.raises(OSError, match="the connection was closed"):
        SGD([p], lr=1.0, max_grad_norm=1.0, grad_norm_group=broken).step()
    assert p.item() == 0


def test_a_group_may_be_set_between_steps():
    optimizer = SGD([given(3.0)], lr=1.0, max_grad_norm=math.inf, grad_norm_group="world")
    optimizer.step()  # alone
    assert optimizer.last_grad_norm.item() == 3
    optimizer.grad_norm_group = Other()
    optimizer.step()
    assert optimizer.last_grad_norm.item() == 6
    optimizer.grad_norm_group = None
    optimizer.step()
    assert optimizer.last_grad_norm.item() == 3


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [("all", ValueError, "got 'all'"), (3, TypeError, "got int"), ([], TypeError, "got list")],
)
def test_what_is_no_group_is_refused(value, error, text):
    with pytest.raises(error, match=f"grad_norm_group: expected 'world', a process group, a function or None, {text}"):
        SGD([given(1.0)], grad_norm_group=value)
    optimizer = SGD([given(1.0)], max_grad_norm=1.0, grad_norm_group="world")
    with pytest.raises(error, match=text):
        optimizer.grad_norm_group = value
    assert optimizer.grad_norm_group == "world"


def test_copies_and_pickles_keep_it():
    optimizer = SGD([given(1.0)], max_grad_norm=1.0, grad_norm_group="world")
    for other in (copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.grad_norm_group == "world"
    optimizer.grad_norm_group = other = Other()
    assert copy.deepcopy(optimizer).grad_norm_group is other


@pytest.fixture
def world_of_one():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def test_a_process_group_is_taken_but_not_pickled(world_of_one):
    optimizer = SGD([given(3.0)], max_grad_norm=1.0, grad_norm_group=world_of_one)
    optimizer.step()
    assert optimizer.last_grad_norm.item() == 3
    assert copy.deepcopy(optimizer).grad_norm_group is world_of_one
    with pytest.raises(TypeError, match="cannot be pickled; if it is all ranks, give 'world'"):
        pickle.dumps(optimizer)


def test_zero_hands_it_on(world_of_one):
    zero = ZeroRedundancyOptimizer(
        [given(3.0), given(4.0)], optimizer_class=AdamW, lr=1.0, max_grad_norm=1.0, grad_norm_group="world"
    )
    zero.step()
    assert zero.optim.last_grad_norm.item() == 5


def test_parts_of_which_nothing_is_said_are_refused(world_of_one, monkeypatch):
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    zero = ZeroRedundancyOptimizer([given(3.0)], optimizer_class=AdamW, lr=1.0, max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match=r"ZeroRedundancyOptimizer gives each rank's optimizer a part.*'world'"):
        zero.step()
    # DDP shows all gradients to all ranks: nothing to say
    AdamW([given(3.0)], max_grad_norm=1.0).step()
    flat = given(3.0)
    flat._unpadded_unsharded_size = torch.Size([2])  # of FSDP1
    with pytest.raises(RuntimeError, match="FSDP1 gives each rank's optimizer a part"):
        AdamW([flat], max_grad_norm=1.0).step()
    original = given(3.0)
    original._fsdp_flattened = True
    optimizer = AdamW([original], max_grad_norm=1.0)
    with pytest.warns(UserWarning, match="if FSDP1 shards these parameters"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
