"""What needs two processes: FSDP2, tensor parallelism, distributed checkpoints, DDP, ZeRO, FSDP1.

`checks_of_two.py`, `checks_of_norms.py` and `checks_of_shards.py` hold the checks, `two_processes.py` runs them: all
that were selected, in one pair of processes.
"""

import pytest
from torch import distributed

from two_processes import checks_of, play

pytestmark = [
    pytest.mark.alone,
    pytest.mark.whole,  # starting two processes and meeting all of torch.distributed takes a minute
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch is built without it"
    ),
]

MODULES = ("checks_of_two", "checks_of_norms", "checks_of_shards")
ON_PURPOSE = "on_purpose_one_process_fails"


@pytest.fixture(scope="module")
def came(request, tmp_path_factory):
    """What came of every check that is to be run. The one that is to fail comes last, for it ends its pair."""
    here = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["name"] if hasattr(item, "callspec") else ON_PURPOSE for item in here]
    names.sort(key=lambda name: name == ON_PURPOSE)
    return play(MODULES, names, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", [name for name in checks_of(*MODULES) if name != ON_PURPOSE])
def test_in_two_processes(name, came):
    assert not came[name], came[name]


def test_a_failure_in_one_process_is_told(came):
    assert "ZeroDivisionError: on purpose" in came[ON_PURPOSE]
