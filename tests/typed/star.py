"""The star import, as type checkers see it. Never run: see as_users_see_it.py."""

# pyright: reportWildcardImportFromLibrary=false

from typing import assert_type

import torch

import oxistep.optim
from oxistep.optim import *  # noqa: F403

assert_type(SGD([torch.zeros(1)]), oxistep.optim.SGD)  # noqa: F405
lr_scheduler.StepLR(SGD([torch.zeros(1)]), 1)  # noqa: F405
