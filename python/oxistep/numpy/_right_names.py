"""Names of hyperparameters that people bring from other libraries, courses and papers, and what they are here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

# What other libraries, courses and papers call it -> what torch calls it; what is first of these that a class has.
_NAMES = {
    "learning_rate": ("lr",),
    "learningrate": ("lr",),
    "lr_rate": ("lr",),
    "step_size": ("lr",),
    "stepsize": ("lr",),
    "eta": ("lr",),
    "alpha": ("lr",),
    "epsilon": ("eps",),
    "mu": ("momentum",),
    "gamma": ("momentum",),
    "beta": ("momentum", "betas=(beta, 0.999)"),
    "rho": ("alpha", "momentum"),
    "decay_rate": ("alpha", "rho"),
    "decay": ("alpha", "rho", "weight_decay"),
    "l2": ("weight_decay",),
    "reg": ("weight_decay",),
    "lambda_": ("weight_decay",),
    "weightdecay": ("weight_decay",),
    "nesterovs": ("nesterov",),
    "use_nesterov": ("nesterov",),
    "clipnorm": ("max_grad_norm",),
    "global_clipnorm": ("max_grad_norm",),
    "max_norm": ("max_grad_norm",),
    "clip_norm": ("max_grad_norm",),
    "grad_clip": ("max_grad_norm",),
    **dict.fromkeys(("schedule", "scheduler"), ("lr=schedules.cosine(0.1, steps=1000)",)),
    **dict.fromkeys(("lr_schedule", "lr_scheduler"), ("lr=schedules.cosine(0.1, steps=1000)",)),
    **{f"beta{i}": ("betas=(beta1, beta2)",) for i in "12"},
    **{f"beta_{i}": ("betas=(beta1, beta2)",) for i in "12"},
    **{f"b{i}": ("betas=(b1, b2)",) for i in "12"},
}


_BY_SCHEDULE = "lr takes a function of the step, lr=oxistep.schedules.cosine(0.1, steps=1000); none is stepped by hand"

# What people look for on an optimizer that has a .grad to read, or comes from another library.
_ATTRIBUTES = {
    "zero_grad": "gradients are handed to step(grads), and nothing accumulates; leave the call out",
    "learning_rate": "it is optimizer.lr",
    **dict.fromkeys(("scheduler", "lr_scheduler", "schedule", "lr_schedule"), _BY_SCHEDULE),
    **dict.fromkeys(("update", "apply_gradients", "apply", "minimize"), "step(grads) updates the parameters"),
}


def right_names(wrong: Iterable[Any], known: Iterable[str]) -> str:
    """For the end of an error: what wrong names are called here; empty if nothing is known of them."""
    known = set(known)
    told: dict[str, list[str]] = {}
    for name in wrong:
        for right in _NAMES.get(str(name).lower(), ()):
            if right.partition("=")[0] in known:
                told.setdefault(right if "=" in right else f"{right}=", []).append(f"{name}=")
                break
    return "".join(f"; {' and '.join(names)} {_BE[len(names) > 1]} {right} here" for right, names in told.items())


_BE = ("is", "are")


class RightNames:
    """Stands behind classes whose constructors say what arguments are called that other libraries call otherwise.

    In ``__new__``, because programs read what the constructor takes off ``__init__``.
    """

    def __new__(cls, *_: Any, **kwargs: Any) -> Self:
        if not _NAMES.keys().isdisjoint(map(str.lower, kwargs)):
            _refuse(cls.__name__, signature(cls.__init__).parameters, kwargs)
        return super().__new__(cls)

    if not TYPE_CHECKING:  # a type checker would believe that every name is there

        def __getattr__(self, name: str) -> Any:
            if (hint := _ATTRIBUTES.get(name)) is not None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}: {hint}")
            return object.__getattribute__(self, name)  # which says what it said: a property may have its own words


def _refuse(cls: str, known: Mapping[str, Any], given: Iterable[str]) -> None:
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    wrong = [name for name in given if name not in known]
    if told := right_names(wrong, known):
        raise TypeError(f"{cls} got an unexpected keyword argument {wrong[0]!r}{told}")
