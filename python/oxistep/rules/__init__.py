"""What the rules of ``oxistep.rule`` may use, and the base class of optimizers that libraries make of them."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from oxistep.rules import _protocols as _protocols
from oxistep.rules._functions import (
    addcdiv,
    addcmul,
    atan2,
    cbrt,
    clip,
    cos,
    dot,
    exp,
    fma,
    full_like,
    lerp,
    log,
    max_abs,
    maximum,
    mean,
    minimum,
    norm,
    rms,
    sign,
    sqrt,
    sum,
    tanh,
    total,
    where,
    zeros_like,
)

if _TYPE_CHECKING:
    from oxistep.rules._optimizer import Optimizer as Optimizer
    from oxistep.rules._rule import Rule as Rule

# Not Optimizer, which needs torch: `from oxistep.rules import *` must work without. Nor Rule, which no rule uses.
__all__ = [
    "addcdiv",
    "addcmul",
    "atan2",
    "cbrt",
    "clip",
    "cos",
    "dot",
    "exp",
    "fma",
    "full_like",
    "lerp",
    "log",
    "max_abs",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "rms",
    "sign",
    "sqrt",
    "sum",
    "tanh",
    "total",
    "where",
    "zeros_like",
]

if not _TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> object:
        if name == "Rule":
            from oxistep.rules._rule import Rule

            return Rule
        if name != "Optimizer":
            raise AttributeError(f"module 'oxistep.rules' has no attribute {name!r}")
        try:
            from oxistep.rules._optimizer import Optimizer
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                "oxistep.rules.Optimizer needs PyTorch: pip install 'torch>=2.10'. "
                "For NumPy arrays there is the decorator oxistep.rule.",
                name="torch",
            ) from error
        return Optimizer


def __dir__() -> list[str]:
    return sorted({*__all__, "Optimizer", "Rule", *(name for name in globals() if name.startswith("__"))})
