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
for beyond, write in eval(sys.argv[1]):
    _core.trespass(torch.ones(1000), beyond, write)
print("nobody minds")
"""


def trespass(*accesses):
    # with Python's own allocator, which starts sooner
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONMALLOC"}
    return subprocess.run(
        [sys.executable, "-c", TRESPASS, repr(accesses)], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("beyond, write", [(1, False), (100, True)])
def test_an_access_beyond_a_tensor_is_reported(beyond, write):
    done = trespass((0, write), (beyond, write))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert ("WRITE of size" if write else "READ of size") in done.stderr
    assert "trespass.rs" in done.stderr
    assert "nobody minds" not in done.stdout


def test_an_access_inside_is_not():
    done = trespass((0, False), (0, True))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nobody minds\n"
