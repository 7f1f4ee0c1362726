"""The optimizers of torch.optim for NumPy arrays, updated in place.

>>> import numpy as np
>>> from oxistep.numpy import SGD
>>> w = np.array([1.0, 2.0])
>>> optimizer = SGD([w], lr=0.5)
>>> optimizer.step([np.array([1.0, 1.0])])
>>> w
array([0.5, 1.5])

Names, arguments, defaults, parameter groups and state dicts are those of ``torch.optim``; the gradients are
handed to ``step`` because an array has no ``.grad``. torch need not be installed.

The optimizers of ``oxistep.zoo`` are here too (its AdamW as ``oxistep.numpy.zoo.AdamW``), made when first touched.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from oxistep.numpy import zoo
from oxistep.numpy._base import Optimizer
from oxistep.numpy._clip import clip_grad_norm, clip_grad_value
from oxistep.numpy._files import load, save
from oxistep.numpy.adadelta import Adadelta
from oxistep.numpy.adagrad import Adagrad
from oxistep.numpy.adam import Adam
from oxistep.numpy.adamax import Adamax
from oxistep.numpy.adamw import AdamW
from oxistep.numpy.asgd import ASGD
from oxistep.numpy.nadam import NAdam
from oxistep.numpy.radam import RAdam
from oxistep.numpy.rmsprop import RMSprop
from oxistep.numpy.rprop import Rprop
from oxistep.numpy.sgd import SGD
from oxistep.numpy.sparse_adam import SparseAdam

if _TYPE_CHECKING:
    from oxistep.numpy.zoo import ADOPT as ADOPT
    from oxistep.numpy.zoo import LAMB as LAMB
    from oxistep.numpy.zoo import LARS as LARS
    from oxistep.numpy.zoo import MADGRAD as MADGRAD
    from oxistep.numpy.zoo import MARS as MARS
    from oxistep.numpy.zoo import SGDW as SGDW
    from oxistep.numpy.zoo import AdaBelief as AdaBelief
    from oxistep.numpy.zoo import AdaBound as AdaBound
    from oxistep.numpy.zoo import AdamAtan2 as AdamAtan2
    from oxistep.numpy.zoo import AdamWScheduleFree as AdamWScheduleFree
    from oxistep.numpy.zoo import Adan as Adan
    from oxistep.numpy.zoo import AdEMAMix as AdEMAMix
    from oxistep.numpy.zoo import LaProp as LaProp
    from oxistep.numpy.zoo import Lion as Lion
    from oxistep.numpy.zoo import NAdamW as NAdamW
    from oxistep.numpy.zoo import NovoGrad as NovoGrad
    from oxistep.numpy.zoo import Prodigy as Prodigy
    from oxistep.numpy.zoo import RAdamScheduleFree as RAdamScheduleFree
    from oxistep.numpy.zoo import RMSpropTF as RMSpropTF
    from oxistep.numpy.zoo import SGDScheduleFree as SGDScheduleFree
    from oxistep.numpy.zoo import SignSGD as SignSGD
    from oxistep.numpy.zoo import SophiaG as SophiaG
    from oxistep.numpy.zoo import StableAdamW as StableAdamW
    from oxistep.numpy.zoo import Tiger as Tiger

__all__ = [
    "ADOPT",
    "ASGD",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "NAdam",
    "NAdamW",
    "NovoGrad",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "RMSpropTF",
    "Rprop",
    "SGD",
    "SGDScheduleFree",
    "SGDW",
    "SignSGD",
    "SophiaG",
    "SparseAdam",
    "StableAdamW",
    "Tiger",
    "clip_grad_norm",
    "clip_grad_value",
    "load",
    "save",
]

if not _TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> type[Optimizer]:
        if name in zoo.__all__:
            made: type[Optimizer] = getattr(zoo, name)
            return made
        told = ": learning rates are functions of the step, as oxistep.schedules makes them" * (name == "lr_scheduler")
        raise AttributeError(f"module 'oxistep.numpy' has no attribute {name!r}{told}")


def __dir__() -> list[str]:
    return sorted({*__all__, "zoo", *(name for name in globals() if name.startswith("__"))})
