"""Where tensors lie: channels last in five dimensions, in a bucket at odd offsets; and nothing is copied whole."""

import os
import subprocess
import sys

import pytest
import torch

import oxistep
import oxistep.optim
from scenarios import assert_agrees, each_class, make, torch_updates_raise


def in_a_bucket(shapes, offset):
    """Tensors one after the other in one buffer, as the gradients of distributed training lie, from `offset` on."""
    buffer = torch.zeros(offset + sum(shape.numel() for shape in shapes))
    views = []
    for shape in shapes:
        views.append(buffer[offset : offset + shape.numel()].view(shape))
        offset += shape.numel()
    return buffer, views


@each_class
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
def test_gradients_in_a_bucket_at_odd_offsets(name, offset):
    def scenario(optim):
        shapes = [torch.Size(s) for s in [(5, 3), (7,), (), (2, 3, 3), (130,)]]
        generator = torch.Generator().manual_seed(offset)
        params = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
        buffer, views = in_a_bucket(shapes, offset)
        for p, view in zip(params, views, strict=True):
            p.grad = view
        optimizer = make(optim, name, params)
        for _ in range(3):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
            before = buffer.clone()
            if optim is oxistep.optim:
                assert {row.path for row in oxistep.explain(optimizer)} == {"native"}
            optimizer.step()
            assert torch.equal(buffer, before)
        return params, [dict(optimizer.state[p]) for p in params]

    assert_agrees(scenario)


@each_class
@pytest.mark.parametrize("grad_too", [True, False])
def test_channels_last_in_three_dimensions(name, grad_too):
    def scenario(optim):
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(2, 3, 2, 4, 5, generator=generator)
        p = values.to(memory_format=torch.channels_last_3d).requires_grad_()
        optimizer = make(optim, name, [p])
        for _ in range(3):
            grad = torch.randn(p.shape, generator=generator)
            p.grad = grad.to(memory_format=torch.channels_last_3d) if grad_too else grad
            if optim is oxistep.optim:
                with torch_updates_raise():
                    optimizer.step()
            else:
                optimizer.step()
        return p, p.stride(), {key: (value, value.stride()) for key, value in optimizer.state[p].items()}

    assert_agrees(scenario)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="this platform does not tell peaks of memory")
@pytest.mark.parametrize("layout", ["contiguous", "transposed gradient", "strided", "channels last", "half gradient"])
def test_a_step_takes_no_memory_the_size_of_a_parameter(layout):
    code = """
import sys, torch, oxistep.optim


layout = sys.argv[1]
# 4 Mi elements, 16 MiB each
p = torch.zeros(2048, 2048)
g = torch.ones(2048, 2048)
if layout == "transposed gradient":
    g = g.t()
elif layout == "strided":
    p, g = torch.zeros(2048, 4096)[:, ::2], torch.ones(2048, 4096)[:, 1::2]
elif layout == "channels last":
    p, g = torch.zeros(64, 64, 32, 32).to(memory_format=torch.channels_last), torch.ones(64, 64, 32, 32)
if layout == "half gradient":
    p = p.bfloat16()
    p.grad = g.bfloat16()
    p.data = torch.zeros(2048, 2048)
else:
    p.grad = g

def peak():
    lines = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024, int(lines["VmRSS"].split()[0]) // 1024

for name in ("SGD", "Adam"):
    optimizer = getattr(oxistep.optim, name)([p], lr=0.1)
    optimizer.step()
    optimizer.step()
    try:
        open("/proc/self/clear_refs", "w").write("5")  # from here on the peak is new
    except PermissionError:
        print("no peak")
        break
    before = peak()[1]
    optimizer.step()
    assert peak()[0] - before < 6, (name, before, peak())
else:
    print("small")
"""
    done = subprocess.run([sys.executable, "-c", code, layout], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if done.stdout == "no peak\n":
        pytest.skip("this machine does not let a process reset its peak")
    assert done.stdout == "small\n"
