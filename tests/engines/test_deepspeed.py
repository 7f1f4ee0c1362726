"""DeepSpeed, and accelerate over DDP, in two processes."""

import pytest
from torch import distributed

from two_processes import CHECKS, play

MODULE = "checks_of_engines"

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"),
]


@pytest.fixture(scope="module")
def came(request, tmp_path_factory):
    pytest.importorskip("deepspeed")
    pytest.importorskip("accelerate")
    names = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    return play(MODULE, names, tmp_path_factory.mktemp("engines"))


__import__(MODULE)


@pytest.mark.parametrize("name", CHECKS[MODULE])
def test_in_two_processes(name, came):
    assert not came[name], came[name]
