"""torch's own ``torch.optim.functional``, under oxistep's name; in the versions of torch that have it."""

import sys

from torch.optim.functional import *  # noqa: F403
from torch.optim.functional import __all__ as __all__

# The very module, so that names torch does not list are there too, and patching one patches both.
sys.modules[__name__] = sys.modules["torch.optim.functional"]
