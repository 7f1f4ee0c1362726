"""How the step of each class is taken: natively where that can be, by torch's own step where not.

An optimizer's module says so with ``define``. Nothing of this is an attribute of the class, which belongs to whoever
subclasses it.
"""

import inspect
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from oxistep import _core
from oxistep.optim import _modes
from oxistep.optim._all_or_nothing import refuse_if_torn
from oxistep.optim._averages import check_all, left_to_torch, made_average, move_all
from oxistep.optim._compact import (
    Kinds,
    is_compact,
    keep_in,
    made_compact,
    names_of_headers,
    refuse_left,
    weights_changed,
)
from oxistep.optim._kept import KEY, kept_of
from oxistep.optim._max_grad_norm import guarded_by_torch
from oxistep.optim._ranks import Ranks, call_off, joining, refuse_unsaid_parts
from oxistep.optim._rehearsal import rehearse_numbers, rehearse_tensors
from oxistep.optim._state_dtype import in_state_dtype, refuse_narrow_states
from oxistep.optim._storages import check_storages

__all__ = ["Definition", "Rows", "all_torchs", "define", "definition_of", "plan_of", "unwrapped", "what_last"]

Rows = list[tuple[int, int, str, str]]
NewState = Callable[[Any, Tensor, Tensor, dict[str, Any]], dict[str, Any]]

_definitions: dict[type, "Definition"] = {}


def define(
    cls: type,
    rule: str,
    torch_class: type[torch.optim.Optimizer],
    new_state: NewState,
    *,
    scalars: tuple[str, ...] = (),
    narrows_states: Callable[[dict[str, Any]], bool] = lambda group: True,
    kind: "type[Definition] | None" = None,
) -> None:
    """Says how a class of optimizers steps.

    Args:
        cls: the class.
        rule: the name of the native rule.
        torch_class: the class in torch, whose step serves what the rule cannot.
        new_state: makes the states that a parameter starts with, under torch's names, from the optimizer, the
            parameter, its gradient and its group. Must not change anything.
        scalars: states of one number, besides ``step``, that are not kept in the parameter's dtype.
        narrows_states: whether torch's step makes states in the parameter's dtype in a group.
        kind: another class of definitions.
    """
    _definitions[cls] = (kind or Definition)(cls, rule, torch_class, new_state, scalars, narrows_states)


def definition_of(cls: type) -> "Definition":
    """The definition of a class, or of the nearest that it inherits from."""
    return next(_definitions[base] for base in cls.__mro__ if base in _definitions)


def plan_of(optimizer: Any) -> Any:
    """What takes the steps of an optimizer of the class that it has now; made if there is nothing yet.

    (Of one whose parameters are stepped in backward it is the release, which ends iterations.)
    """
    kept = kept_of(optimizer)
    cls = type(optimizer)
    plan = kept.plans.get(cls)
    if plan is None:
        if kept.release is not None:
            return kept.release
        if kept.torn is not None:
            if kept.guarded:
                call_off(optimizer)
            return kept.torn
        if kept.guarded:
            refuse_unsaid_parts(optimizer)
        plan = kept.plans.setdefault(cls, definition_of(cls).new_plan(optimizer))
    return plan


def unwrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's step without the wrapper that would run the hooks a second time."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


class Definition:
    """How the step of a class is taken. The native plan calls its methods with the optimizer."""

    def __init__(
        self,
        cls: type,
        rule: str,
        torch_class: type[torch.optim.Optimizer],
        new_state: NewState,
        scalars: tuple[str, ...] = (),
        narrows_states: Callable[[dict[str, Any]], bool] = lambda group: True,
    ) -> None:
        self.rule = rule
        self.torch = torch_class
        self.new_state = new_state
        self.scalars = scalars
        self.narrows_states = narrows_states
        self.methods = [(name, getattr(cls, name)) for name in _methods_of_step(torch_class)]
        """What torch's step calls of its class, as our class has it: a subclass that has other methods under these
        names wants them to be called."""

    def scalars_of(self, optimizer: Any) -> tuple[str, ...]:
        """States of one number, besides ``step``, that are not kept in the parameter's dtype."""
        return self.scalars

    def new_plan(self, optimizer: Any) -> Any:
        """What takes the steps of an optimizer."""
        return keep_in(optimizer, _core.Plan(self.rule, self), lambda group: self.kinds_of_rule(optimizer, group))

    def kinds(self, optimizer: Any, group: dict[str, Any]) -> Kinds:
        """What the states of a parameter of a group are, as far as that matters for keeping them in fewer bits."""
        return dict(_core.state_kinds(self.rule, group))

    def kinds_of_rule(self, optimizer: Any, group: dict[str, Any]) -> Kinds:
        """As ``kinds``, as far as the kernels do not know it themselves."""
        return {}

    @property
    def counts_for_noise(self) -> bool:
        """Whether ``step`` is a state only for the sake of rounding with fair odds."""
        return self.rule == "sgd"

    def torchs_step(self, optimizer: Any, *closure: Any) -> Any:
        """torch's own step, without hooks."""
        return unwrapped(self.torch.step)(optimizer, *closure)

    def explain(self, optimizer: Any) -> Rows:
        """Rows for ``oxistep.explain``."""
        plan = self.new_plan(optimizer)
        everything = _modes.because() or plan.because(optimizer)
        rows = all_torchs(plan.explain(optimizer), everything)
        return rows if any(path != "skipped" for _, _, path, _ in rows) else self.last_step(optimizer, rows)

    def last_step(self, optimizer: Any, rows: Rows) -> Rows:
        """Rows of what the last step did, where no parameter has a gradient now: trainers clear them after each step.

        Args:
            optimizer: the optimizer.
            rows: what would become of each parameter now; returned if there was no step, or not of these.
        """
        last = what_last(optimizer)
        places = [(g, i) for g, i, _, _ in rows]
        if not last or (rows and not {(g, i) for g, i, _, _ in last} <= set(places)):
            return rows
        told = {
            (g, i): (g, i, path, f"{reason} (in the last step: it has no gradient now)") for g, i, path, reason in last
        }
        return [told.get(place) or row for place, row in zip(places, rows, strict=True)] or list(told.values())

    # What the native plan calls.

    def overridden(self, optimizer: Any) -> str | None:
        """Why a whole step is torch's: there are other methods than torch's step expects."""
        for name, method in self.methods:
            now = getattr(type(optimizer), name, None)
            while now is not None and now is not method:  # torch.compile wraps methods of torch's classes
                now = getattr(now, "_torchdynamo_orig_callable", None)
            if now is None or name in optimizer.__dict__:
                return f"{name} is not torch's own, and torch's step calls it"
        return None

    def make_state(
        self, optimizer: Any, p: Tensor, grad: Tensor, group: dict[str, Any], whole: Any = None
    ) -> dict[str, Any]:
        """New states of a parameter, or of the local shard of ``whole``, a DTensor, as the settings ask for them."""
        if is_compact(optimizer):
            kinds = self.kinds(optimizer, group)
            return made_compact(optimizer, p, group, kinds, lambda: self.new_state(optimizer, p, grad, group), whole)
        state = self.new_state(optimizer, p, grad, group)
        state.update(in_state_dtype(optimizer, p, state))
        return state

    def check_averages(self, optimizer: Any) -> None:
        """Called before anything is written, where fewer averages will be moved by kernels than in the last step."""
        check_all(optimizer)

    def first_element(self, p: Any) -> int:
        """Which element of the whole comes first in the local shard of a DTensor."""
        from oxistep.optim._dtensors import first_element

        return first_element(p)

    def make_average(self, optimizer: Any, p: Tensor, is_dtensor: bool) -> Tensor:
        """The average that a parameter begins with; that of a DTensor is one, placed as it is."""
        return made_average(optimizer, p)

    def weights_changed(self, optimizer: Any, p: Tensor) -> None:
        """Called where somebody changed a parameter since the last step, and something stands beside it."""
        weights_changed(optimizer, p)

    def make_shards(self, optimizer: Any, p: Any, grad: Any, group: dict[str, Any]) -> dict[str, Any]:
        """New states of a DTensor: of its local shard, placed as it is."""
        from oxistep.optim._dtensors import in_shards

        state = self.make_state(optimizer, p._local_tensor, grad._local_tensor, group, whole=p)
        headers = names_of_headers(self.kinds(optimizer, group)) if is_compact(optimizer) else ()
        return in_shards(p, grad, state, ("step", *self.scalars), headers)

    def ranks(self, specs: list[Any]) -> Ranks:
        """Over which ranks norms are summed, given the specifications of all DTensors."""
        return Ranks(specs)

    def norm_over_ranks(
        self, optimizer: Any, ranks: Ranks, norms: list[float], plain: float, double: bool, others: list[Tensor]
    ) -> tuple[float, bool]:
        """The norm of all ranks' gradients; ``Ranks.norm`` says of what."""
        return ranks.norm(kept_of(optimizer).grad_norm_group, norms, plain, double, others)

    def call_off(self, optimizer: Any) -> None:
        """Called where a step fails whose norm other ranks wait for."""
        call_off(optimizer)

    def check_left(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        """Called before anything is written, with the parameters that torch will update."""
        refuse_left(optimizer, left)
        refuse_narrow_states(optimizer, left, self.narrows_states)

    def rehearse(self, optimizer: Any, g: int, p: Tensor, state: dict[str, Any] | None) -> None:
        """Called, before anything is written, where torch may refuse the hyperparameters."""
        rehearse_numbers(optimizer, self, g, p, state)

    def rehearse_tensors(self, optimizer: Any, g: int, p: Tensor) -> None:
        """Called, before anything is written, where torch may refuse the states of a parameter it will update."""
        rehearse_tensors(optimizer, self, g, p)

    def torch_step(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        """Takes torch's own step for the parameters in ``left``, given with the index of their group."""
        store_averages = left_to_torch(optimizer, (p for _, p in left))
        self._torch_step(optimizer, left)
        store_averages()

    def _torch_step(self, optimizer: Any, left: list[tuple[int, Tensor]]) -> None:
        groups = optimizer.param_groups
        copies: dict[tuple[int, bool], dict[str, Any]] = {}
        for g, p in left:
            flat = not groups[g].get("fused") or fused_is_right(optimizer, p)
            if (g, flat) not in copies:
                copies[g, flat] = {**groups[g], "params": []}
                if not flat:
                    copies[g, flat]["fused"] = False
            copies[g, flat]["params"].append(p)
        self._step_with(optimizer, list(copies.values()))

    def leave_everything(self, optimizer: Any, unscale: Callable[[], None] | None = None) -> Tensor | None:
        """Takes torch's own step for all parameters. Returns the norm of the gradients, if it was asked for."""
        groups = optimizer.param_groups
        with joining(optimizer) as ranks:
            refuse_if_torn(optimizer)
            everything = [(g, p) for g, group in enumerate(groups) for p in group["params"]]
            if not _modes.want_operations():  # which would see these calls
                check_storages(optimizer, everything)
            self.check_left(optimizer, everything)
            step_it_is, norm = guarded_by_torch(optimizer, unscale, ranks)
        if not step_it_is:
            return norm
        store_averages = left_to_torch(optimizer, (p for _, p in everything))
        if any(group.get("fused") and not fused_is_right(optimizer, p) for group in groups for p in group["params"]):
            self._torch_step(optimizer, everything)
        else:
            self.torchs_step(optimizer)  # with the groups themselves, which a subclass may want to change
        store_averages()
        move_all(optimizer)
        return norm

    def _step_with(self, optimizer: Any, groups: list[dict[str, Any]]) -> None:
        """torch's own step, with other groups."""
        own = optimizer.param_groups
        try:
            optimizer.param_groups = groups
            self.torchs_step(optimizer)
        finally:
            optimizer.param_groups = own


def fused_is_right(optimizer: Any, p: Tensor) -> bool:
    """Whether torch's fused CPU kernels, which walk memory from its first element on, get this parameter right.

    What they refuse, they shall refuse; subclasses have kernels of their own.
    """
    grad = p.grad
    if grad is None or type(p) not in (Tensor, torch.nn.Parameter) or p.device.type != "cpu":
        return True
    if not p.is_floating_point() or grad.is_sparse or type(grad) is not Tensor:
        return True
    entry = optimizer.state[p] if p in optimizer.state else {}
    states = [state for state in entry.values() if isinstance(state, Tensor) and state.shape == p.shape]
    # states that torch's step makes are laid out like a dense parameter; of another one they are contiguous
    return is_dense(p) and all(tensor.stride() == p.stride() for tensor in (grad, *states) if p.numel() > 1)


def is_dense(p: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of dimensions."""
    covered = 1
    for stride, size in sorted((stride, size) for stride, size in zip(p.stride(), p.shape, strict=True) if size != 1):
        if stride != covered:
            return False
        covered *= size
    return True


def _methods_of_step(torch_class: type) -> Iterable[str]:
    """The names of all methods that torch's step of a class calls, directly or through one another."""
    names: list[str] = []
    waiting = [inspect.unwrap(unwrapped(torch_class.step)).__code__]  # type: ignore[attr-defined]
    while waiting:
        code = waiting.pop()
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for name in code.co_names:
            method = inspect.getattr_static(torch_class, name, None)
            if inspect.isfunction(method) and name not in (*names, "step"):
                names.append(name)
                waiting.append(inspect.unwrap(method).__code__)
    return names


def what_last(optimizer: Any) -> Rows | None:
    """What the last step did with each parameter that had a gradient; nothing if there was no step."""
    kept = optimizer.__dict__.get(KEY)
    plan = None if kept is None else kept.release or kept.plans.get(type(optimizer))
    return None if plan is None else plan.last()


def all_torchs(rows: Rows, reason: str | None) -> Rows:
    """Rows of ``explain`` where a reason makes everything torch's."""
    if reason is None:
        return rows
    return [(g, i, path, why) if path == "skipped" else (g, i, "torch", reason) for g, i, path, why in rows]
