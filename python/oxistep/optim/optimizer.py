"""torch's own ``torch.optim.optimizer``, under oxistep's name."""

import sys

from torch.optim.optimizer import *  # noqa: F403
from torch.optim.optimizer import __all__ as __all__

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = sys.modules["torch.optim.optimizer"]
