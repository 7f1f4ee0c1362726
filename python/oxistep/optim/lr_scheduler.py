"""torch's own ``torch.optim.lr_scheduler``, under oxistep's name."""

import sys

import torch.optim.lr_scheduler
from torch.optim.lr_scheduler import *  # noqa: F403

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = torch.optim.lr_scheduler
