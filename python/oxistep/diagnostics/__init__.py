"""See what training does: statistics of gradients, sizes of updates, gradient checks, a learning-rate range test.

Everything takes torch modules and tensors as well as NumPy arrays; torch is imported only when torch things are given.

>>> import numpy as np
>>> from oxistep.diagnostics import GradientMonitor
>>> monitor = GradientMonitor({"w": np.zeros(3), "b": np.zeros(1)})
>>> monitor.update({"w": np.array([1.0, -2.0, 0.0]), "b": np.array([np.nan])})
>>> [str(anomaly) for anomaly in monitor.anomalies()]
['step 0, b: not finite (1 NaN, 0 inf of 1)']
"""

from oxistep.diagnostics.anomalies import Anomaly
from oxistep.diagnostics.check import GradientCheck, GradientEntry, WrongGradientError, check_gradients
from oxistep.diagnostics.gradient_monitor import GradientMonitor
from oxistep.diagnostics.lr_range import LRRange, lr_range_test
from oxistep.diagnostics.update_monitor import UpdateMonitor

__all__ = [
    "Anomaly",
    "GradientCheck",
    "GradientEntry",
    "GradientMonitor",
    "LRRange",
    "UpdateMonitor",
    "WrongGradientError",
    "check_gradients",
    "lr_range_test",
]
