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
"""

from oxistep.numpy._base import Optimizer
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

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
]
