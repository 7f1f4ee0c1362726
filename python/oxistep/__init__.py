"""Fast optimizers for PyTorch and NumPy on the CPU: a drop-in replacement for ``torch.optim``.

Change one import line::

    import oxistep.optim as optim        # was: import torch.optim as optim

Importing ``oxistep`` imports neither torch nor the optimizers; they are loaded when first touched.
"""

# Under names with underscores: what is public in here is oxistep's.
import importlib as _importlib
import os as _os
import typing as _typing

from oxistep import _core
from oxistep._core import __version__, get_num_threads
from oxistep._threads import set_num_threads

if _typing.TYPE_CHECKING:
    from oxistep import diagnostics as diagnostics
    from oxistep import integrations as integrations
    from oxistep import numpy as numpy
    from oxistep import optim as optim
    from oxistep import rules as rules
    from oxistep import schedules as schedules
    from oxistep import viz as viz
    from oxistep import zoo as zoo
    from oxistep._clip import clip_grad_norm_ as clip_grad_norm_
    from oxistep._clip import clip_grad_value_ as clip_grad_value_
    from oxistep._clip import get_total_norm as get_total_norm
    from oxistep._explain import Explanation as Explanation
    from oxistep._explain import ParameterPath as ParameterPath
    from oxistep._explain import explain as explain
    from oxistep._in_backward import GradientRelease as GradientRelease
    from oxistep._in_backward import accumulating as accumulating
    from oxistep._in_backward import step_in_backward as step_in_backward
    from oxistep._memory import Memory as Memory
    from oxistep._memory import memory as memory
    from oxistep._plain import plain_state_dict as plain_state_dict
    from oxistep._swap import Swap as Swap
    from oxistep._swap import swap as swap
    from oxistep.optim import ASGD as ASGD
    from oxistep.optim import LBFGS as LBFGS
    from oxistep.optim import SGD as SGD
    from oxistep.optim import Adadelta as Adadelta
    from oxistep.optim import Adafactor as Adafactor
    from oxistep.optim import Adagrad as Adagrad
    from oxistep.optim import Adam as Adam
    from oxistep.optim import Adamax as Adamax
    from oxistep.optim import AdamW as AdamW
    from oxistep.optim import Muon as Muon
    from oxistep.optim import NAdam as NAdam
    from oxistep.optim import RAdam as RAdam
    from oxistep.optim import RMSprop as RMSprop
    from oxistep.optim import Rprop as Rprop
    from oxistep.optim import SparseAdam as SparseAdam
    from oxistep.rules._rule import rule as rule

# Where each name lives that is loaded when first touched.
_LAZY = {
    "ASGD": "oxistep.optim",
    "Adadelta": "oxistep.optim",
    "Adafactor": "oxistep.optim",
    "Adagrad": "oxistep.optim",
    "Adam": "oxistep.optim",
    "AdamW": "oxistep.optim",
    "Adamax": "oxistep.optim",
    "GradientRelease": "oxistep._in_backward",
    "LBFGS": "oxistep.optim",
    "Memory": "oxistep._memory",
    "Muon": "oxistep.optim",
    "NAdam": "oxistep.optim",
    "RAdam": "oxistep.optim",
    "RMSprop": "oxistep.optim",
    "Rprop": "oxistep.optim",
    "SGD": "oxistep.optim",
    "SparseAdam": "oxistep.optim",
    "accumulating": "oxistep._in_backward",
    "clip_grad_norm_": "oxistep._clip",
    "clip_grad_value_": "oxistep._clip",
    "explain": "oxistep._explain",
    "Explanation": "oxistep._explain",
    "ParameterPath": "oxistep._explain",
    "get_total_norm": "oxistep._clip",
    "memory": "oxistep._memory",
    "plain_state_dict": "oxistep._plain",
    "rule": "oxistep.rules._rule",
    "step_in_backward": "oxistep._in_backward",
    "Swap": "oxistep._swap",
    "swap": "oxistep._swap",
}

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Explanation",
    "GradientRelease",
    "Memory",
    "Muon",
    "NAdam",
    "ParameterPath",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "Swap",
    "__version__",
    "accumulating",
    "clip_grad_norm_",
    "clip_grad_value_",
    "cpu_features",
    "diagnostics",
    "explain",
    "get_num_threads",
    "get_total_norm",
    "integrations",
    "memory",
    "plain_state_dict",
    "rule",
    "rules",
    "schedules",
    "set_num_threads",
    "step_in_backward",
    "swap",
    "zoo",
]


def cpu_features() -> dict[str, _typing.Any]:
    """What this processor offers and what oxistep uses of it.

    Returns:
        dict: ``arch`` (such as ``"x86_64"``), ``simd`` (the level in use) and ``available`` (all levels of this
        processor, weakest first). The environment variable ``OXISTEP_SIMD`` forces one of them; every level
        gives the same bits.

    Example:
        >>> import oxistep
        >>> oxistep.cpu_features()["simd"] in oxistep.cpu_features()["available"]
        True
    """
    arch, simd = _core.cpu_features()
    return {"arch": arch, "simd": simd, "available": _core.simd_levels()}


if _level := _os.environ.get("OXISTEP_SIMD"):
    _core.force_simd(_level)


# Modules that are loaded when first touched.
_MODULES = ("diagnostics", "integrations", "numpy", "optim", "rules", "schedules", "viz", "zoo")


if not _typing.TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name):
        if name in _MODULES:
            return _importlib.import_module(f"oxistep.{name}")
        if name in _LAZY:
            try:
                value = getattr(_importlib.import_module(_LAZY[name]), name)
            except ModuleNotFoundError as error:
                if error.name != "torch" or _LAZY[name] == "oxistep.optim":  # which says so itself
                    raise
                raise ModuleNotFoundError(
                    f"oxistep.{name} needs PyTorch: pip install 'torch>=2.10'. oxistep.numpy works without it.",
                    name="torch",
                ) from error
            globals()[name] = value
            return value
        raise AttributeError(f"module 'oxistep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
