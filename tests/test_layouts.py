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


LAYOUTS = ["contiguous", "transposed gradient", "strided", "channels last", "half gradient"]
PEAKS = """
import sys, torch, oxistep.optim


def tensors(layout):
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
    return p


def peak():
    lines = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024, int(lines["VmRSS"].split()[0]) // 1024


def tell(layout, name, work):
    try:
        open("/proc/self/clear_refs", "w").write("5")  # from here on the peak is new
    except PermissionError:
        print(layout, name, "untold", sep=";")
        return
    before = peak()[1]
    work()
    print(layout, name, peak()[0] - before, sep=";")


for layout in sys.argv[1:]:
    for name in ("SGD", "Adam"):
        p = tensors(layout)
        optimizer = getattr(oxistep.optim, name)([p], lr=0.1)
        optimizer.step()
        optimizer.step()
        tell(layout, name, optimizer.step)
tell("a copy", "of it", p.clone)
"""


@pytest.fixture(scope="module")
def peaks():
    """By layout, and class: how many MiB a step takes for a while. One process measures all: to start takes seconds.

    Whatever is large has a mapping of its own there: memory that was given back is gone, and cannot hide what is taken.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", PEAKS, *LAYOUTS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = {layout: {} for layout in ("a copy", *LAYOUTS)}
    for layout, name, peak in (line.split(";") for line in done.stdout.splitlines()):
        told[layout][name] = peak
    return told


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="this platform does not tell peaks of memory")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_takes_no_memory_the_size_of_a_parameter(peaks, layout):
    assert set(peaks[layout]) == {"SGD", "Adam"}
    if "untold" in peaks[layout].values():
        pytest.skip("this machine does not let a process reset its peak")
    assert all(int(peak) < 6 for peak in peaks[layout].values()), peaks[layout]
    assert int(peaks["a copy"]["of it"]) > 12, "what a copy takes was not seen"
