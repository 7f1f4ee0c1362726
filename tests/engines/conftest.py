"""Tests of other people's trainers, not collected where those are not installed; `make test-engines` installs them."""

import importlib.util
import os
from pathlib import Path

import pytest

# A file is named after what it tests. In the ordinary environment there is none of these, and a line for each test that
# is skipped would hide the others.
collect_ignore = [
    path.name for path in Path(__file__).parent.glob("test_*.py") if not importlib.util.find_spec(path.stem[5:])
]

# No network: models are made from configurations, data are drawn.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "Agg"}


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            # what others warn of is theirs; what oxistep warns of is an error as everywhere
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:::oxistep"))


@pytest.fixture(autouse=True)
def bits_in_a_folder(ieee_sqrt, fused_adds, tmp_path, monkeypatch):
    """Bits are compared with torch's for-loop; and trainers write where they stand."""
    monkeypatch.chdir(tmp_path)
