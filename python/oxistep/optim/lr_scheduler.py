"""torch's own ``torch.optim.lr_scheduler``, under oxistep's name."""

import sys

from torch.optim.lr_scheduler import *  # noqa: F403
from torch.optim.lr_scheduler import __all__ as __all__

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = sys.modules["torch.optim.lr_scheduler"]
