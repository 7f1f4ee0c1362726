"""What needs two processes: FSDP2, tensor parallelism, distributed checkpoints, DDP, ZeRO, FSDP1.

`checks_of_two.py` holds the checks, `two_processes.py` runs them: all that were selected, in one pair of processes.
"""

import pytest
from torch import distributed

from checks_of_two import NOT_YET
from two_processes import CHECKS, play

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch is built without it"
    ),
]

ON_PURPOSE = "on_purpose_one_process_fails"


@pytest.fixture(scope="module")
def came(request, tmp_path_factory):
    """What came of every check that is to be run. Those expected to fail come last, for each ends its pair."""
    here = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["name"] if hasattr(item, "callspec") else ON_PURPOSE for item in here]
    names.sort(key=lambda name: (name in NOT_YET, name == ON_PURPOSE))
    return play("checks_of_two", names, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=NOT_YET[name]) if name in NOT_YET else ())
        for name in CHECKS["checks_of_two"]
        if name != ON_PURPOSE
    ],
)
def test_in_two_processes(name, came):
    assert not came[name], came[name]


def test_a_failure_in_one_process_is_told(came):
    assert "ZeroDivisionError: on purpose" in came[ON_PURPOSE]
