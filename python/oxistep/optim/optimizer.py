"""torch's own ``torch.optim.optimizer``, under oxistep's name."""

import sys

import torch.optim.optimizer
from torch.optim.optimizer import *  # noqa: F403

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = torch.optim.optimizer
