"""AddressSanitizer sees what it is there to see. Only where it runs: `make asan`."""

import os
import subprocess
import sys

import pytest

from oxistep import _core

pytestmark = pytest.mark.skipif(not hasattr(_core, "trespass"), reason="needs the wheel of `make asan`")

TRESPASS = """
import sys, torch
from oxistep import _core
_core.trespass(torch.ones(1000), int(sys.argv[1]), sys.argv[2] == "write")
print("nobody minds")
"""


def trespass(beyond, what):
    return subprocess.run(
        [sys.executable, "-c", TRESPASS, str(beyond), what], env=os.environ, capture_output=True, text=True
    )


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("beyond", [1, 100])
def test_an_access_beyond_a_tensor_is_reported(beyond, what):
    done = trespass(beyond, what)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert what.upper() + " of size" in done.stderr
    assert "trespass.rs" in done.stderr
    assert "nobody minds" not in done.stdout


@pytest.mark.parametrize("what", ["read", "write"])
def test_an_access_inside_is_not(what):
    done = trespass(0, what)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nobody minds\n"
