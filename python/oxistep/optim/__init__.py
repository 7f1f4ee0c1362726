"""A drop-in for ``torch.optim``: the same classes, functions and modules, with the step in native code.

All fifteen optimizers are oxistep's; schedulers, functions and every other public name are torch's own, handed on. The
list of names follows the installed torch.
"""

# Under names with underscores: programs that make a menu of the classes in here must find optimizers only.
import sys as _sys
import typing as _typing

try:
    import torch.optim as _torch_optim
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "oxistep.optim needs PyTorch: pip install 'torch>=2.10'. For NumPy arrays alone there is oxistep.numpy.",
        name="torch",
    ) from _error

# One by one and no star: type checkers and editors take what a star brings for torch's classes.
from torch.optim import Optimizer as Optimizer
from torch.optim import __all__ as __all__
from torch.optim import lr_scheduler as lr_scheduler
from torch.optim import swa_utils as swa_utils

from oxistep.optim import optimizer as optimizer
from oxistep.optim.adadelta import Adadelta as Adadelta
from oxistep.optim.adafactor import Adafactor as Adafactor
from oxistep.optim.adagrad import Adagrad as Adagrad
from oxistep.optim.adam import Adam as Adam
from oxistep.optim.adamax import Adamax as Adamax
from oxistep.optim.adamw import AdamW as AdamW
from oxistep.optim.asgd import ASGD as ASGD
from oxistep.optim.lbfgs import LBFGS as LBFGS
from oxistep.optim.muon import Muon as Muon
from oxistep.optim.nadam import NAdam as NAdam
from oxistep.optim.radam import RAdam as RAdam
from oxistep.optim.rmsprop import RMSprop as RMSprop
from oxistep.optim.rprop import Rprop as Rprop
from oxistep.optim.sgd import SGD as SGD
from oxistep.optim.sparse_adam import SparseAdam as SparseAdam

if _typing.TYPE_CHECKING:
    # Not in every version of torch. At run time the loop below brings what the installed one has.
    from torch.optim import functional as functional
    from torch.optim import swap_in_optimizer_params_and_state as swap_in_optimizer_params_and_state

for _name in __all__:
    globals().setdefault(_name, getattr(_torch_optim, _name))

# As torch deletes its modules of single classes: only what is in torch.optim is left.
for _name in [name for name in globals() if not name.startswith("_") and name not in __all__]:
    del globals()[_name]
del _name

if not _typing.TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name):
        """Hands on what else the installed torch has, and our modules to who has imported them."""
        try:
            return getattr(_torch_optim, name)
        except AttributeError:
            pass
        try:
            return _sys.modules[f"{__name__}.{name}"]
        except KeyError:
            raise AttributeError(f"module 'oxistep.optim' has no attribute {name!r}") from None
