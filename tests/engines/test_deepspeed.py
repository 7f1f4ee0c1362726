"""DeepSpeed, and accelerate over DDP, in two processes."""

import pytest
from torch import distributed

from two_processes import checks_of, play

MODULES = ("checks_of_engines",)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"),
]


@pytest.fixture(scope="module")
def came(request, tmp_path_factory):
    pytest.importorskip("deepspeed")
    pytest.importorskip("accelerate")
    names = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    return play(MODULES, names, tmp_path_factory.mktemp("engines"))


@pytest.mark.parametrize("name", checks_of(*MODULES))
def test_in_two_processes(name, came):
    assert not came[name], came[name]
