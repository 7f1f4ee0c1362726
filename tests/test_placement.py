"""Where large states lie: see rust/bindings/src/services/placement.rs."""

import pytest
import torch

from oxistep import _core, optim
from oxistep.optim import _new_states

FLOAT = 4
LARGE = 8 * 2**20 // FLOAT  # elements of the smallest state on large pages
ALIGNED = 2**28


@pytest.fixture
def tensor_at():
    """A function for tensors in memory that is never written, at an offset from an address with few bits set."""
    memory = torch.empty(2**30 // FLOAT)
    aligned = -memory.data_ptr() % ALIGNED

    def at(offset: int, elements: int = LARGE) -> torch.Tensor:
        return memory[(aligned + offset) // FLOAT :][:elements]

    return at


@pytest.mark.parametrize("low, high", [(12, 27), (13, 26), (14, 25), (15, 20), (16, 21), (17, 22), (18, 23), (19, 24)])
def test_bits_that_are_folded_together(tensor_at, low, high):
    tensor = tensor_at(0)
    assert _core.in_the_way(tensor_at(1 << low | 1 << high), [tensor])
    assert _core.in_the_way(tensor_at(ALIGNED), [tensor])  # a bit that is not looked at
    assert not _core.in_the_way(tensor_at(1 << low), [tensor])
    assert not _core.in_the_way(tensor_at(1 << high), [tensor])
    assert not _core.in_the_way(tensor_at((1 << low | 1 << high) + 1024), [tensor])  # in other sets at the same time


def test_any_of_the_tensors_counts(tensor_at):
    state, same, other = tensor_at(0), tensor_at(ALIGNED), tensor_at(ALIGNED + 4096)
    assert not _core.in_the_way(state, [other])
    assert _core.in_the_way(state, [other, same])
    assert not _core.in_the_way(state, [])


def test_states_made_for_the_same_parameter_count(tensor_at):
    p, other = tensor_at(2048, 3), tensor_at(3072, 3)  # never where the states are at the same time
    first, second, third = tensor_at(0), tensor_at(4096), tensor_at(ALIGNED)
    assert not _core.in_the_way(third, [p])
    assert _core.zero_large(first, p)
    assert _core.in_the_way(third, [p])
    assert not _core.in_the_way(first, [p])  # it was there, so it is gone if this is new
    assert not _core.in_the_way(third, [other])
    assert _core.zero_large(second, p)
    assert _core.in_the_way(third, [p])  # also of the one before
    assert _core.zero_large(torch.empty(LARGE), other)
    assert not _core.in_the_way(third, [p])


@pytest.mark.parametrize("refused", [0, 1, 2, 100])
def test_another_place_is_found(monkeypatch, refused):
    """Tried and refused places are all different, and in the end one is taken."""
    p = torch.nn.Parameter(torch.empty(LARGE))
    p.grad = torch.empty_like(p)
    asked = []

    def in_the_way(state, tensors):
        assert [t.data_ptr() for t in tensors] == [p.data_ptr(), p.grad.data_ptr()]
        asked.append(state.data_ptr())
        return len(asked) <= refused

    monkeypatch.setattr(_core, "in_the_way", in_the_way)
    state = _new_states.zeros(p)
    tries = _new_states._OTHER_PLACES
    assert len(asked) == len(set(asked)) == min(refused + 1, tries)
    assert (state.data_ptr() == asked[-1]) == (refused < tries)
    assert state.shape == p.shape and state.untyped_storage().nbytes() == FLOAT * LARGE and not state.any()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_momentum_buffer_is_placed(monkeypatch, transposed):
    p = torch.nn.Parameter(torch.zeros(2048, LARGE // 2048))
    p.grad = torch.ones(LARGE // 2048, 2048).t() if transposed else torch.ones_like(p)
    asked = []
    monkeypatch.setattr(_core, "in_the_way", lambda state, _: asked.append(state.data_ptr()) or len(asked) == 1)
    optimizer = optim.SGD([p], lr=0.5, momentum=0.9)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"]
    assert len(asked) == 2 and buffer.data_ptr() == asked[1]
    assert torch.equal(buffer, p.grad) and buffer.stride() == p.grad.stride()
    assert (p == -0.5).all()


def test_where_no_more_memory_is_promised_the_place_is_taken(monkeypatch):
    p, made = torch.nn.Parameter(torch.empty(LARGE)), []

    def once(*args, **kwargs):
        if made:
            raise RuntimeError("not enough memory")
        made.append(torch.zeros(LARGE))
        return made[0]

    monkeypatch.setattr(torch, "empty_like", once)
    monkeypatch.setattr(_core, "in_the_way", lambda *_: True)
    assert _new_states.zeros(p) is made[0]


def test_memory_that_torch_fills_is_not_held(monkeypatch):
    p = torch.nn.Parameter(torch.empty(LARGE))
    monkeypatch.setattr(_core, "in_the_way", lambda *_: pytest.fail("asked whether to try another place"))
    torch.use_deterministic_algorithms(True)
    try:
        assert not _new_states.zeros(p).any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_small_states_and_other_objects_are_left_alone(monkeypatch):
    assert not _core.in_the_way(torch.empty(3), [None, 1, torch.empty(3, device="meta")])
    assert not _core.in_the_way(None, [torch.empty(3)])
    monkeypatch.setattr(_core, "in_the_way", lambda *_: pytest.fail("asked for a small state"))
    assert not _new_states.zeros(torch.nn.Parameter(torch.ones(5))).any()
