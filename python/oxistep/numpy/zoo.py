"""The optimizers of ``oxistep.zoo`` for NumPy arrays, updated in place.

>>> import numpy as np
>>> from oxistep.numpy import zoo
>>> w = np.array([1.0, 2.0])
>>> optimizer = zoo.Lion([w], lr=0.5)
>>> optimizer.step([np.array([1.0, -1.0])])
>>> w
array([0.5, 2.5])

Each is made of the class of this name in ``oxistep.zoo``: its rule, its arguments and their checks. torch need not be
installed; where it is, the first use of a class imports it.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    ADOPT: type[_Any]
    AdEMAMix: type[_Any]
    AdaBelief: type[_Any]
    AdaBound: type[_Any]
    AdamAtan2: type[_Any]
    AdamW: type[_Any]
    AdamWScheduleFree: type[_Any]
    Adan: type[_Any]
    LAMB: type[_Any]
    LARS: type[_Any]
    LaProp: type[_Any]
    Lion: type[_Any]
    MADGRAD: type[_Any]
    MARS: type[_Any]
    NAdamW: type[_Any]
    NovoGrad: type[_Any]
    Prodigy: type[_Any]
    RAdamScheduleFree: type[_Any]
    RMSpropTF: type[_Any]
    SGDScheduleFree: type[_Any]
    SGDW: type[_Any]
    SignSGD: type[_Any]
    SophiaG: type[_Any]
    StableAdamW: type[_Any]
    Tiger: type[_Any]

__all__ = [
    "ADOPT",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdamAtan2",
    "AdamW",
    "AdamWScheduleFree",
    "Adan",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "NAdamW",
    "NovoGrad",
    "Prodigy",
    "RAdamScheduleFree",
    "RMSpropTF",
    "SGDScheduleFree",
    "SGDW",
    "SignSGD",
    "SophiaG",
    "StableAdamW",
    "Tiger",
]

if not _TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> type[_Any]:
        if name not in __all__:
            raise AttributeError(f"module 'oxistep.numpy.zoo' has no attribute {name!r}")
        from oxistep.numpy._zoo import class_of

        # whichever of two threads comes first, both get the same class
        made: type[_Any] = globals().setdefault(name, class_of(name))
        return made


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
