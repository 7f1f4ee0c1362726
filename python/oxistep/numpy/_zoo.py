"""What makes NumPy's classes of those of ``oxistep.zoo``: the rule, the constructor and its checks are theirs."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from oxistep import zoo
from oxistep.numpy._hyper import learning_rate, real
from oxistep.numpy._rules import RuleOptimizer, checker
from oxistep.numpy._structure import listed_throughout
from oxistep.numpy._types import Array, Grads, Group, Params, State
from oxistep.rules._rule import OF_ARRAYS, constructor
from oxistep.rules._source import MISSING, Hyperparameter, Reading, Source
from oxistep.zoo import stableadamw
from oxistep.zoo._base import Optimizer, answer_of

__all__ = ["ZooOptimizer", "class_of"]

# What a constructor has for tensors alone.
_TORCH_ONLY = {"foreach", "capturable", "differentiable"}
_SETTINGS = {
    "state_dtype",
    "weights",
    "seed",
    "ema",
    "ema_warmup",
    "max_grad_norm",
    "skip_nonfinite",
    "grad_norm_group",
}


class ZooOptimizer(RuleOptimizer):
    """Base of the zoo's optimizers for NumPy's arrays."""

    _oxistep_source: ClassVar[Source] = Source(lambda p, g, s: p, "ZooOptimizer")
    _oxistep_of: ClassVar[type[Optimizer]]
    _oxistep_arguments: ClassVar[tuple[str, ...]]
    """Those of the constructor, without ``params``."""

    _oxistep_good: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """For each place where hyperparameters stand those that the constructor found good last."""

    def __init__(self, params: Params, arguments: Group, **settings: Any) -> None:
        lr = arguments["lr"]
        if isinstance(lr, np.ndarray) and lr.ndim == 0:
            arguments = {**arguments, "lr": float(real(lr[()], "lr"))}
        elif callable(lr):
            if arguments.get("corrected_weight_decay"):
                raise ValueError(
                    "corrected_weight_decay needs the largest learning rate: give it as lr, and put the function into "
                    "optimizer.param_groups[...]['lr'] afterwards"
                )
            arguments = {**arguments, "lr": float(real(lr(0), "lr, returned by its function for step 0,"))}
        for name, check in self._oxistep_checks.items():
            if arguments.get(name) is not None:  # None, where the constructor takes it, stands for something else
                check(arguments[name])
        answer = answer_of(self._oxistep_of, arguments)
        defaults = {key: value for key, value in answer.defaults.items() if key not in _TORCH_ONLY}
        super().__init__(params, {**defaults, "lr": lr}, maximize=answer.settings.get("maximize", False), **settings)

    def _oxistep_checked(self, given: Group, where: str = "") -> Group:
        checked = super()._oxistep_checked(given, where)
        arguments = {name: checked[name] for name in self._oxistep_arguments if name in checked}
        if callable(arguments["lr"]):
            arguments["lr"] = 1.0
        elif isinstance(arguments["lr"], np.ndarray):
            arguments["lr"] = float(arguments["lr"])
        key = (where, tuple(tuple(value) if isinstance(value, list) else value for value in arguments.values()))
        if key not in self._oxistep_good:
            try:
                answer_of(self._oxistep_of, arguments)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}{where}") from None
            self._oxistep_good = (*(one for one in self._oxistep_good if one[0] != where), key)
        return checked

    def _oxistep_saved_group(self, saved: Any) -> Group:
        # what other packages lack, and what is derived of the arguments
        added = {key: value for key, value in self.defaults.items() if key not in self._oxistep_arguments}
        return {**added, **super()._oxistep_saved_group(saved)}

    # What the mixins of oxistep.zoo ask for.

    def _zoo_entries(self) -> Iterator[tuple[Group, Array, State]]:
        for group, states in zip(self.param_groups, self.state, strict=True):
            for array, entry in zip(group["params"], states, strict=True):
                yield group, array, entry

    def _zoo_refuse_in_averaged(self, method: str) -> None:
        """Arrays have no averages."""

    def _zoo_lerp(self, p: Array, end: Array, weight: float) -> None:
        start, end = np.asarray(p, np.float64), np.asarray(end, np.float64)
        p[...] = start + weight * (end - start) if abs(weight) < 0.5 else end - (end - start) * (1 - weight)

    def _zoo_is_zero(self, grads: Any) -> bool:
        return not any(np.any(grad) for row in self._oxistep_listed(grads) for grad in row if grad is not None)

    def _zoo_idle(self, grads: Any) -> Iterable[tuple[Group, Source, Reading]]:
        # a list with an array in it, of a single group: to flatten it takes longer than its step
        if len(self.param_groups) == 1 and type(grads) is list and any(type(grad) is np.ndarray for grad in grads):
            return ()
        return self._zoo_read(grads)

    def _zoo_read(self, grads: Any) -> Iterator[tuple[Group, Source, Reading]]:
        """The groups without gradients, each with its rule and what the rule reads of it."""
        if self._oxistep_clipping is not None and self._oxistep_clipping.skipped():
            return
        source = self._oxistep_source
        for k, (group, row) in enumerate(zip(self.param_groups, self._oxistep_listed(grads), strict=True)):
            if all(grad is None for grad in row):
                yield group, source, source.read({**group, "lr": self._oxistep_rates[k]}, f" in param_groups[{k}]")


def class_of(name: str) -> type[ZooOptimizer]:
    """The class of this name for arrays.

    Args:
        name: of a class of ``oxistep.zoo``.
    """
    of: Any = getattr(zoo, name)
    arguments = _arguments(of)
    answer = answer_of(of, {one.name: 1.0 for one in arguments if one.default is MISSING})
    arguments = [one for one in arguments if one.name in answer.defaults or one.name not in _SETTINGS]
    source = Source(of.update, name, answer.defaults)
    kept = {"maximize": answer.settings.get("maximize", False)} | {
        key: value for key, value in answer.defaults.items() if key not in _TORCH_ONLY
    }
    mixins: tuple[type, ...] = tuple(base for base in of.__bases__ if not issubclass(base, Optimizer))
    if mixins:  # which look at the gradients more than once
        mixins = (_Listing, *mixins)
    own = {one.name for one in arguments}
    settings = [setting for setting in OF_ARRAYS if setting not in own]
    init: Any = constructor(name, arguments, settings, ZooOptimizer)
    init.__module__, init.__qualname__ = "oxistep.numpy.zoo", f"{name}.__init__"
    members = {
        "__init__": init,
        "__doc__": _doc(of, arguments, settings),
        "__module__": "oxistep.numpy.zoo",
        "_oxistep_source": source,
        "_oxistep_of": of,
        "_oxistep_arguments": tuple(one.name for one in arguments),
    }
    cls: type[ZooOptimizer] = type(name, (*mixins, _OWN.get(name, ZooOptimizer)), members)
    cls._oxistep_not_counted = RuleOptimizer._oxistep_not_counted | own
    kinds = kept | {one.name: one.default for one in source.hyperparameters.values()}
    cls._oxistep_checks = {key: learning_rate if key == "lr" else checker(key, kinds[key]) for key in kept}
    return cls


class _Listing:
    """Takes the step with gradients that can be looked at more than once: a generator ends after that."""

    def step(self, grads: Grads) -> None:
        """Updates every parameter that has a gradient, in place.

        Args:
            grads: the gradients in the structure of the parameters, as every optimizer of ``oxistep.numpy`` takes them.
        """
        super().step(listed_throughout(grads))  # type: ignore[misc]  # of what stands behind it


class _SophiaG(ZooOptimizer):
    """What SophiaG has beside a step."""

    def step(self, grads: Grads, bs: int = 5120) -> None:
        """Updates every parameter that has a gradient, in place.

        Args:
            grads: the gradients in the structure of the parameters, as every optimizer of ``oxistep.numpy`` takes them.
            bs: how many labels a gradient of ``update_hessian`` is the mean of: the batch size, times the length of a
                sequence in language models (default: 5120).
        """
        before = [group.get("bs", bs) for group in self.param_groups]
        for group in self.param_groups:
            group["bs"] = bs
        try:
            super().step(grads)
        except BaseException:  # a step that was not taken leaves the groups as they were, too
            for group, earlier in zip(self.param_groups, before, strict=True):
                group["bs"] = earlier
            raise

    def update_hessian(self, grads: Grads) -> None:
        """Takes gradients of the loss of labels that the model drew: their squares go into ``hessian``.

        Parameters and counters stay.

        Args:
            grads: as ``step`` takes them.
        """
        grads = listed_throughout(grads)
        of_hessian: RuleOptimizer = copy.copy(self)
        of_hessian._oxistep_clipping = None
        of_hessian._oxistep_plan = None  # another rule
        of_hessian.__class__ = _Hessian
        of_hessian.step(grads)
        self._oxistep_torn = of_hessian._oxistep_torn
        for row, states in zip(self._oxistep_listed(grads), self.state, strict=True):
            for grad, entry in zip(row, states, strict=True):
                if grad is not None:
                    entry["step"] -= 1


class _Hessian(RuleOptimizer):
    """Takes the step of SophiaG's ``update_hessian``."""

    _oxistep_source = Source(zoo.SophiaG.hessian_update, "SophiaG.update_hessian")


class _StableAdamW(ZooOptimizer):
    """StableAdamW sums as Kahan does where arrays are float16, which each group settles."""

    def _oxistep_add(self, param_group: Group) -> None:
        super()._oxistep_add(param_group)
        try:
            stableadamw.settle(self.param_groups[-1])
        except ValueError:
            del self.param_groups[-1], self.state[-1], self._oxistep_live.given[-1]
            self._oxistep_live.look()
            raise

    def _oxistep_loaded_group(self, saved: Any, k: int) -> Group:
        group = super()._oxistep_loaded_group(saved, k)
        stableadamw.settle(group)
        return group


# What single classes have beside the rule.
_OWN: dict[str, type[ZooOptimizer]] = {"SophiaG": _SophiaG, "StableAdamW": _StableAdamW}


def _arguments(of: type) -> list[Hyperparameter]:
    """The arguments of a constructor that arrays have too; after one that is left out, by name alone."""
    found = []
    by_name = False
    for one in list(inspect.signature(of.__init__).parameters.values())[2:]:  # type: ignore[misc]
        by_name |= one.kind is one.KEYWORD_ONLY or one.name in _TORCH_ONLY
        if one.name not in _TORCH_ONLY:
            found.append(Hyperparameter(one.name, one.default, by_name))
    return found


def _doc(of: type, arguments: list[Hyperparameter], settings: list[str]) -> str:
    """The docstring of a class for arrays: what its class for tensors does, and the arguments that arrays have."""
    doc = inspect.getdoc(of) or ""
    start, args = doc.split("\nArgs:\n", 1)
    args, rest = re.split(r"\n(?=\S)", args, maxsplit=1)
    items = re.split(r"\n(?=    \S)", args.rstrip())
    names = {"params", *(one.name for one in arguments), *settings}
    kept = [item for item in items if not names.isdisjoint(re.split(r", ?", item.split(":")[0].strip()))]
    kept[0] = (
        "    params: arrays, in a list, a dict, containers of these or param groups, as every optimizer of "
        "``oxistep.numpy`` takes them."
    )
    kept.append(
        "    follow: train an array that has been put in the place of another in the dict or list that was given, if\n"
        "        it has the same shape and dtype (default: False, which raises)."
    )
    sections = {name: text.rstrip() for name, text in re.findall(r"^(\w+:)\n(.*?)(?=^\S|\Z)", rest, re.S | re.M)}
    states = sections.get("State:", "").splitlines()
    sections["State:"] = "\n".join(line for line in states if not line.startswith("    param_ema: "))  # no `ema` here
    required = "".join(f", {one.name}=0.1" for one in arguments if one.default is MISSING)
    lines = [
        ">>> import numpy as np",
        ">>> from oxistep.numpy import zoo",
        ">>> w = np.array([1.0, -2.0])",
        f">>> optimizer = zoo.{of.__name__}([w]{required})",
        *([">>> optimizer.train()"] if hasattr(of, "train") else []),
        ">>> optimizer.step([np.array([0.5, 0.5])])",
    ]
    sections["Example:"] = "\n".join(f"    {line}" for line in lines)
    parts = [
        start.rstrip(),
        f"For NumPy's arrays, by the definition of :class:`oxistep.zoo.{of.__name__}`. ``lr`` may be a function of the "
        "number of steps done.",
        "Args:\n" + "\n".join(kept),
        *(f"{name}\n{sections[name]}" for name in ("State:", "Raises:", "Example:", "Reference:") if name in sections),
    ]
    return "\n\n".join(parts) + "\n"
