"""A drop-in for ``torch.optim``: the same classes, functions and modules, with the step in native code.

All fifteen optimizers are oxistep's; schedulers, functions and every other public name are torch's own, handed on. The
list of names follows the installed torch.
"""

try:
    import torch.optim as _torch_optim
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "oxistep.optim needs PyTorch: pip install 'oxistep[torch]' (torch >= 2.10). "
        "For NumPy arrays alone there is oxistep.numpy.",
        name="torch",
    ) from _error

from typing import Any

from torch.optim import *  # noqa: F403 - the public list varies by version
from torch.optim import __all__ as __all__

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


def __getattr__(name: str) -> Any:
    """Hands on what else the installed torch has."""
    try:
        return getattr(_torch_optim, name)
    except AttributeError:
        raise AttributeError(f"module 'oxistep.optim' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
