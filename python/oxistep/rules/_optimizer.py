"""``oxistep.rules.Optimizer``: torch optimizers whose update is a rule."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from oxistep import _core
from oxistep._names import name_of
from oxistep.optim import _modes
from oxistep.optim._all_or_nothing import refuse_if_torn
from oxistep.optim._averages import AVERAGE, left_to_torch, move_all
from oxistep.optim._compact import (
    Kinds,
    is_compact,
    keep_in,
    made_compact,
    names_of_headers,
    plain_names,
    refuse_left,
)
from oxistep.optim._definition import Definition, Rows, define
from oxistep.optim._kept import GradNormGroup, StateDType, Weights, keep_settings, kept_of
from oxistep.optim._max_grad_norm import measured_by_torch
from oxistep.optim._native import NativeStep
from oxistep.optim._ranks import joining
from oxistep.optim._storages import check_storages
from oxistep.rules._kinds import kinds_of_rule
from oxistep.rules._native import tree_of
from oxistep.rules._source import Source
from oxistep.rules._torch_step import made_states, rows_of, take, try_out
from oxistep.rules._trace import State

__all__ = ["Optimizer"]

# torch's class, whatever may be put under its name later
_Optimizer = torch.optim.Optimizer

# An attribute of a rule's function: its rules, by the class that has it as `update`. What a function knows may lead
# back to the class, and only what Python's collector sees can be let go of.
OF_CLASSES = "_oxistep_rules"


class Optimizer(NativeStep, _Optimizer):
    """A torch optimizer whose update is a rule: for libraries, which want a class with a literal constructor.

    A subclass has a constructor, which hands its hyperparameters over as torch's classes do, and the rule as a static
    method ``update(p, g, s, lr, ...)``, whose arguments after ``s`` are hyperparameters of these names.
    ``oxistep.rule`` makes such a class of a function.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        defaults: the hyperparameters, by name.
        maximize: ascend instead of descend (default: False).
        state_dtype: how states are kept: ``torch.float32`` for half-precision parameters, ``torch.bfloat16``, or
            ``"8bit"`` (default: None).
        weights: what becomes of the digits that half-precision parameters cannot hold: ``"stochastic"``, ``"kahan"``,
            ``"residual8"``, ``"residual16"`` or ``"master"`` (default: None, rounded to nearest).
        seed: of what ``weights`` and ``state_dtype`` round up or down at random (default: 0).
        ema: the decay of a running average of the parameters, which each step moves (default: None).
        ema_warmup: let the average begin with the first steps and forget them, as timm does (default: False).
        max_grad_norm: clip the norm of all gradients as they are read, which stay as they are (default: None).
        skip_nonfinite: skip the whole step if a gradient holds NaN or infinity (default: False).
        grad_norm_group: the ranks over which the norm is summed, if each holds a part of the parameters: ``"world"``, a
            process group, or a function that sums a small tensor over ranks (default: None: they hold all of them).

    Raises:
        TypeError: if the class has no rule, a hyperparameter is of another kind than its default, or something in
            ``params`` is no tensor.
        ValueError: for what ``torch.optim.Optimizer`` refuses, in its words; for a hyperparameter that is NaN.

    Example:
        >>> import torch
        >>> from oxistep import rules
        >>> class Momentum(rules.Optimizer):
        ...     def __init__(self, params, lr=0.01, beta=0.9):
        ...         super().__init__(params, {"lr": lr, "beta": beta})
        ...
        ...     @staticmethod
        ...     def update(p, g, s, lr, beta):
        ...         s.v = beta * s.v - lr * g
        ...         return p + s.v
        >>> w = torch.tensor([3.0], requires_grad=True)
        >>> optimizer = Momentum([w], lr=0.5)
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.item()
        2.5
    """

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        maximize: bool = False,
        state_dtype: StateDType = None,
        weights: Weights = None,
        seed: int = 0,
        ema: float | None = None,
        ema_warmup: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_norm_group: GradNormGroup = None,
    ) -> None:
        source = source_of(type(self))
        keep_settings(self, state_dtype, max_grad_norm, skip_nonfinite, grad_norm_group, weights, seed, ema, ema_warmup)
        defaults = {**_own_defaults(source), **defaults}
        if lacks := [name for name in source.hyperparameters if name not in defaults]:
            raise TypeError(f"rule {source.name}: update takes {lacks[0]!r}, which is not among the hyperparameters")
        source.checked(defaults)
        if not source.takes_maximize:
            if not isinstance(maximize, bool):
                raise TypeError(f"maximize: expected True or False, got {type(maximize).__name__}: {maximize!r}")
            defaults["maximize"] = maximize
        _Optimizer.__init__(self, params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as torch's does; its hyperparameters are checked.

        Args:
            param_group: ``{"params": tensors}``, and hyperparameters of this group.

        Raises:
            TypeError: for a hyperparameter of another kind than its default.
        """
        source = source_of(type(self))
        if isinstance(param_group, dict):
            source.checked(param_group, f" in param_groups[{len(self.param_groups)}]")
        super().add_param_group(param_group)
        _begin_group_numbers(source, self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", ())
        super().__setstate__(state)
        if not source_of(type(self)).takes_maximize:
            for group, old in zip(self.param_groups, chain(before, repeat({})), strict=False):
                group.setdefault("maximize", old.get("maximize", False))  # those who keep it elsewhere save none
        for entry in self.state.values():  # packages keep a parameter's numbers as Python's own
            if isinstance(entry, dict):
                numbers = {k: v for k, v in entry.items() if type(v) is float and k != "step"}
                entry.update({k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()})


Optimizer.__module__ = "oxistep.rules"


def source_of(cls: type) -> Source:
    """The rule of a class: the nearest static method ``update`` in its line of classes. (Another thing of that name is
    whoever subclasses the class its own.)

    Raises:
        TypeError: if there is none, or it cannot be a rule.
    """
    for base in cls.__mro__:
        update = vars(base).get("update")
        if isinstance(update, staticmethod):
            function = update.__func__
            of_classes: dict[type, Source] = getattr(function, "__dict__", {}).setdefault(OF_CLASSES, {})
            if base not in of_classes:
                of_classes[base] = Source(function, base.__name__, _defaults_of(base))
            return of_classes[base]
    raise TypeError(
        f"{cls.__name__} has no rule: an optimizer of oxistep.rules has a static method update(p, g, s, lr, ...), "
        "which returns the new parameter"
    )


def _defaults_of(cls: type) -> dict[str, Any]:
    """The defaults of a class's constructor, which tell of what kind a hyperparameter is if the rule does not."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _own_defaults(source: Source) -> dict[str, Any]:
    """The defaults that stand in the rule itself."""
    parameters = inspect.signature(source.function).parameters
    return {
        name: parameters[name].default
        for name in source.hyperparameters
        if parameters[name].default is not inspect.Parameter.empty
    }


def _begin_group_numbers(source: Source, group: dict[str, Any]) -> None:
    """The numbers of a group are there from the beginning, as far as they can be told without data."""
    try:
        reading = source.read(group, "")
        for shape in {tuple(p.shape) for p in group["params"]}:
            program = source.early_program(reading, shape, math.prod(shape))
            for name, state in program.of_group.items():
                group.setdefault(name, state.initial)
    except Exception:  # the first step says what is wrong
        return


class _RuleDefinition(Definition):
    """All optimizers of rules step in the same way; which rule it is, the class of the optimizer says."""

    source: Source
    """Of the plan of one optimizer."""

    def scalars_of(self, optimizer: Any) -> tuple[str, ...]:
        known = source_of(type(optimizer)).states().items()
        numbers = {name for name, state in known if not state.kind.has_elements}
        loading = kept_of(optimizer).loading
        if loading is not None:  # a rule that has not run yet does not tell: one number where the parameter has more
            params = (p for group in optimizer.param_groups for p in group["params"])
            ids = (saved_id for group in loading["param_groups"] for saved_id in group["params"])
            for p, saved_id in zip(params, ids, strict=False):
                for name, value in loading["state"].get(saved_id, {}).items():
                    if name == AVERAGE:
                        continue
                    if isinstance(value, Tensor) and value.dim() == 0 and (p.dim() or value.dtype != p.dtype):
                        numbers.add(name)
        return ("step", *sorted(numbers - {"step"}))

    def new_plan(self, optimizer: Any) -> Any:
        cls = type(optimizer)
        own = copy.copy(self)
        own.source = source_of(cls)
        own.methods = [("update", getattr(cls, "update", None))]
        return keep_in(
            optimizer, _core.Plan(tree_of(own.source), own), lambda group: self.kinds_of_rule(optimizer, group)
        )

    counts_for_noise = False

    def kinds_of_rule(self, optimizer: Any, group: dict[str, Any]) -> Kinds:
        return self.kinds(optimizer, group)

    def kinds(self, optimizer: Any, group: dict[str, Any]) -> Kinds:
        source = source_of(type(optimizer))
        known: dict[Any, Kinds] = kept_of(optimizer).kinds
        # they hang on what is no number, and on how many numbers a tuple has
        words = tuple(
            (name, len(value) if isinstance(value, tuple) else value if isinstance(value, str | bool | None) else float)
            for name, value in ((name, group.get(name)) for name in source.hyperparameters)
        )
        if (source, words) not in known:
            found = kinds_of_rule(source, group)
            known[source, words] = {name: (kind.name, kind.of, kind.name == "relative") for name, kind in found.items()}
        return known[source, words]

    def overridden(self, optimizer: Any) -> str | None:
        """Why a whole step is torch's: the class has another rule now. (The next step has a plan of its own for it.)"""
        if source_of(type(optimizer)) is self.source:
            return None
        kept_of(optimizer).plans.pop(type(optimizer), None)
        return "its update was replaced since the last step"

    def leave_everything(self, optimizer: Any, unscale: Callable[[], None] | None = None) -> Tensor | None:
        refuse_if_torn(optimizer)
        refuse_left(optimizer, [(g, p) for g, group in enumerate(optimizer.param_groups) for p in group["params"]])
        return _step(optimizer, unscale)

    def explain(self, optimizer: Any) -> Rows:
        name = source_of(type(optimizer)).name
        rows = super().explain(optimizer)
        by = {"native": f"rule {name}: ", "torch": f"rule {name}, by torch's operations: ", "skipped": ""}
        return [(g, i, path, by[path] + reason) for g, i, path, reason in rows]

    def make_state(  # type: ignore[override]
        self,
        optimizer: Any,
        p: Tensor,
        grad: Tensor,
        group: dict[str, Any],
        missing: Sequence[str],
        begins: Mapping[str, State],
        whole: Any = None,
    ) -> dict[str, Any]:
        """States that begin in this step.

        Args:
            optimizer: the optimizer.
            p: the parameter.
            grad: its gradient.
            group: its group.
            missing: the names of those that it lacks.
            begins: what all states of the rule begin as.
            whole: the DTensor whose local shard it is, if it is one.
        """
        source = source_of(type(optimizer))
        key = p if whole is None else whole
        entry = optimizer.state[key] if key in optimizer.state else {}
        if is_compact(optimizer):
            entry = plain_names(entry, self.kinds(optimizer, group), kept_of(optimizer).weights)
        if kept_of(optimizer).ema is not None:
            entry = {name: value for name, value in entry.items() if name != AVERAGE}
        if (strangers := source.strangers(entry, begins)) is not None:
            place = next((i for i, other in enumerate(group["params"]) if other is key), 0)
            g = next(k for k, other in enumerate(optimizer.param_groups) if other is group)
            name = name_of(optimizer.param_groups, g, place)
            raise RuntimeError(f"rule {source.name}: {name} {strangers}; nothing was updated")

        def make() -> dict[str, Any]:
            return made_states(optimizer, p, group, {name: begins.get(name) for name in missing})

        if is_compact(optimizer):
            return made_compact(optimizer, p, group, self.kinds(optimizer, group), make, whole)
        return make()

    def make_shards(  # type: ignore[override]
        self,
        optimizer: Any,
        p: Any,
        grad: Any,
        group: dict[str, Any],
        missing: Sequence[str],
        begins: Mapping[str, State],
    ) -> dict[str, Any]:
        """States that begin in this step, of a DTensor: of its local shard, placed as it is."""
        from oxistep.optim._dtensors import in_shards

        local, of_grad = p._local_tensor, grad._local_tensor
        state = self.make_state(optimizer, local, of_grad, group, missing, begins, whole=p)
        numbers = [name for name, state in begins.items() if not state.kind.has_elements]
        headers = names_of_headers(self.kinds(optimizer, group)) if is_compact(optimizer) else ()
        return in_shards(p, grad, state, ("step", *numbers), headers)

    def check_left(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        """Raises what torch's operations would: what cannot be written, and what cannot be traced."""
        refuse_left(optimizer, left)
        source = source_of(type(optimizer))
        try_out(source, rows_of(optimizer, source, left))

    def rehearse_tensors(self, optimizer: Any, g: int, p: Tensor) -> None:
        """``check_left`` has looked at the tensors."""

    @torch.no_grad()
    def torch_step(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        """Takes the step of the parameters in ``left`` by torch's operations."""
        source = source_of(type(optimizer))
        store_averages = left_to_torch(optimizer, (p for _, p in left))
        take(optimizer, source, rows_of(optimizer, source, left), 1.0)
        store_averages()


@torch.no_grad()
def _step(optimizer: Any, unscale: Callable[[], None] | None) -> Tensor | None:
    """A step by torch's operations; returns the norm of the gradients, if it was asked for."""
    source = source_of(type(optimizer))
    with joining(optimizer) as ranks:
        rows = rows_of(optimizer, source)
        if not _modes.want_operations():  # which would see these calls
            check_storages(optimizer, [(row.g, row.p) for row in rows])
        if ranks is not None or unscale is not None:
            try_out(source, rows)
        step_it_is, norm, factor = measured_by_torch(optimizer, unscale, ranks)
    if step_it_is:
        store_averages = left_to_torch(optimizer, (row.p for row in rows))
        take(optimizer, source, rows, factor)
        store_averages()
        move_all(optimizer)
    return norm


define(Optimizer, "program", _Optimizer, lambda *_: {}, kind=_RuleDefinition)
