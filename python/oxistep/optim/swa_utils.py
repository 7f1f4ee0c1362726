"""torch's own ``torch.optim.swa_utils``, under oxistep's name."""

import sys

import torch.optim.swa_utils
from torch.optim.swa_utils import *  # noqa: F403

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = torch.optim.swa_utils
