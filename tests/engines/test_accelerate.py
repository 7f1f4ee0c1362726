"""Hugging Face's accelerate, in one process; two are in test_deepspeed.py's company, see checks_of_engines.py."""

import pytest
import torch

import oxistep
import oxistep.optim
from recipes import BATCHES, DIRECTIONS, follow, model, native, watched
from scenarios import NATIVE, assert_same


@pytest.fixture(autouse=True)
def accelerate():
    found = pytest.importorskip("accelerate")
    yield found
    found.state.AcceleratorState._reset_state(reset_partial_state=True)
    found.state.GradientState._reset_state()


def test_the_recipe():
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            made = follow("accelerate", optim, model=model(), batches=BATCHES)
            came.append([made["model"].state_dict(), made["optimizer"].state_dict()])
            if optim is oxistep.optim:  # explain looks through the wrapper
                assert {row.path for row in oxistep.explain(made["optimizer"])} == {"native"}
    assert steps == native(len(BATCHES) // 2)
    assert_same(*came, exact=True)


def training(prepared, optimizer, accelerator, start=0, stop=None) -> list[float]:
    losses = []
    for x, y in BATCHES[start:stop]:
        loss = torch.nn.functional.mse_loss(prepared(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_value_(prepared.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", [name for name in NATIVE if name != "Adafactor"])
def test_each_class(name, precision, accelerate):
    came = []
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
            one = model()
            prepared, optimizer = accelerator.prepare(one, getattr(optim, name)(one.parameters(), **NATIVE[name]))
            came.append([training(prepared, optimizer, accelerator), one.state_dict(), optimizer.state_dict()])
    assert steps == native(len(BATCHES))
    assert_same(*came, exact=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_save_state_and_load_state(direction, accelerate):
    accelerator = accelerate.Accelerator(cpu=True)

    def prepared(optim):
        accelerator.free_memory()  # it saves all that it has prepared
        one = model()
        return accelerator.prepare(one, optim.AdamW(one.parameters(), lr=0.01))

    source, target = DIRECTIONS[direction]
    first = prepared(torch.optim)
    training(*first, accelerator)
    second = prepared(source)
    training(*second, accelerator, stop=4)
    accelerator.save_state("state")
    third = prepared(target)
    accelerator.load_state("state")
    training(*third, accelerator, start=4)
    assert_same([one.state_dict() for one in third], [one.state_dict() for one in first], exact=True)
