"""What several tests ask for by name, and how a run is set up."""

import gc

import numpy as np
import pytest
import torch

import brief
import fresh

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption(
        "--brief", action="store_true", help="of every test function as few parametrisations as show each value once"
    )


def pytest_configure(config):
    brief.ASKED = config.getoption("--brief")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    if config.getoption("--brief"):
        items[:], left_out = brief.split(items)
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish():
    # Torch and thousands of tests are a million objects, which each of the many collections would look at again.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # what ends with the interpreter is collected as always
    fresh.end()


def pytest_sessionfinish(session):
    # pytest-xdist's main process collects nothing itself: its workers tell it, and all collect the same
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--brief"):
        left_out = config.stash.get(LEFT_OUT, 0)
        terminalreporter.section("brief run")
        terminalreporter.line(
            f"{left_out:,} parametrisations were left out (see tests/brief.py); `make test-whole` runs all."
        )


@pytest.fixture
def fused_adds():
    """For what compares bits with torch's: its loops for AVX2, AVX-512 and NEON fuse multiply-adds, as ours do.

    Those for older processors do not, and their last digits are others.
    """
    # the product is 1 + 2**-11 + 2**-24, of which float32 keeps no more than 1 + 2**-11
    factor = 1 + 2.0**-12
    sums = torch.full((64,), -(1 + 2.0**-11)).add_(torch.full((64,), factor), alpha=factor)
    if not (sums == 2.0**-24).all():
        pytest.skip("torch's loops for this processor do not fuse multiply-adds")


@pytest.fixture
def ieee_sqrt(monkeypatch):
    """Gives torch a correctly rounded square root; the library that torch may use for it is off by one ulp at times.

    IEEE 754 asks for correct rounding and processors deliver it, NumPy's and ours do; this is where torch's for-loop
    would differ from itself between processors.
    """

    torchs = torch.Tensor.sqrt

    def sqrt(x):
        if x.dtype == torch.bfloat16:  # which NumPy lacks, and which hides a last digit of float32
            return torchs(x)
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))

    monkeypatch.setattr(torch.Tensor, "sqrt", sqrt)
    monkeypatch.setattr(torch.Tensor, "sqrt_", lambda x: x.copy_(sqrt(x)))
