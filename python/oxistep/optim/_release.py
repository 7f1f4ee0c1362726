"""Gradient release: each parameter is stepped as soon as backward has accumulated its gradient, and the gradient freed.

A parameter is stepped by a *stand-in* for its optimizer: an object of the same class with this one parameter, which has
a native plan of its own, shares the parameter's entry in ``optimizer.state`` and reads the group afresh. So a step is
what it is without release, and everything that belongs to the optimizer stays there.

What parameters point to is a hook that knows the release weakly: an optimizer that is dropped takes its states with it.
"""

import weakref
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from oxistep import _core
from oxistep._names import name_of
from oxistep.optim import _modes
from oxistep.optim._all_or_nothing import tear
from oxistep.optim._averages import begin, check_all, end_of_one, move_all, refuse_while_swapped
from oxistep.optim._compact import is_compact
from oxistep.optim._definition import Rows, definition_of, plan_of
from oxistep.optim._kept import KEY, Kept
from oxistep.optim._release_refusals import refuse_by_now, refuse_optimizer, refuse_reducers, refuse_setting

__all__ = ["Release", "release_of"]

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_compiling = torch.compiler.is_compiling

# What torch's step of some class looks at, and ours.
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_SCALING = "_step_supports_amp_scaling"
_MISSING = object()

_AGAIN = (
    "step_in_backward: {name} has a gradient again, and was stepped in this iteration already. Call optimizer.step() "
    "at the end of each iteration, and put every backward of an iteration but its last into `with "
    "oxistep.accumulating(optimizer):`. The gradient is kept; this parameter was not updated again"
)


class Release:
    """What steps the parameters of one optimizer in backward; kept by the optimizer."""

    def __init__(self, optimizer: Any, clip: str | None) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._cls = type(optimizer)
        self.clip = clip
        self.held = 0
        """In how many ``accumulating`` blocks the program is."""
        self.groups: set[int] = set()
        """The groups that were stepped in the last iteration, by identity."""
        self._iteration = 1
        self._parts: dict[int, _Part] = {}
        self._numbers: dict[int, dict[str, Any]] = {}
        """What numbers of groups become at the end of the iteration, by the group's place."""
        self._norms: list[Tensor] = []
        self._reducers_looked_for = False
        self._is_rule = definition_of(self._cls).rule == "program"
        self._refuse: Any = getattr(self._cls, "_zoo_refuse", None) if self._is_rule else None
        self._known_programs = -1
        self.sync()
        self._scaling_before = optimizer.__dict__.get(_SCALING, _MISSING)
        # so a GradScaler hands its scale to `step`, which says that it is refused
        optimizer._step_supports_amp_scaling = True

    def sync(self) -> None:
        """Hooks the parameters that the optimizer has now, and no others. Whole, or not at all.

        Raises:
            ValueError: for a parameter that cannot be served.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            return
        refuse_optimizer(optimizer, self.clip)
        before, self._parts = self._parts, {}
        hooked: list[_Part] = []
        try:
            for g, group in enumerate(optimizer.param_groups):
                for i, p in enumerate(group["params"]):
                    part = before.get(id(p)) or _Part(p)
                    part.settle(optimizer, g, i)
                    self._parts[id(p)] = part
                    if part.hook(self):
                        hooked.append(part)
        except BaseException:
            self._parts = before
            for part in hooked:
                part.unhook()
            raise
        for key, part in before.items():
            if key not in self._parts:
                part.unhook()
        self._cls, self._known_programs = type(optimizer), -1

    def remove(self) -> None:
        """Unhooks all parameters. The gradients that there are stay for the next step."""
        for part in self._parts.values():
            part.unhook()
        self._parts.clear()
        optimizer = self._optimizer()
        if optimizer is None or optimizer.__dict__[KEY].release is not self:
            return
        self._count_in_groups(optimizer)
        optimizer.__dict__[KEY].release = None
        if self._scaling_before is _MISSING:
            optimizer.__dict__.pop(_SCALING, None)
        else:
            optimizer._step_supports_amp_scaling = self._scaling_before

    def arrived(self, p: Tensor, number: int) -> None:
        """The gradient of a parameter is accumulated. ``number``: of our hook."""
        hooks: Any = p._post_accumulate_grad_hooks
        if next(reversed(hooks)) != number:
            return  # those of others, which come after ours, shall see the gradient: `step` takes what is left
        if p.grad is not None:
            self._take(self._parts[id(p)], p)

    def end(self, optimizer: Any) -> None:
        """What ``optimizer.step()`` does: steps what has a gradient still, and begins the next iteration."""
        kept: Kept = optimizer.__dict__[KEY]
        if kept.torn is not None:
            kept.torn.step()
        if kept.swapped:
            refuse_while_swapped()
        if kept.ema is not None:
            check_all(optimizer)
        left = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    part = self._parts.get(id(p))
                    if part is None or part.number is None:  # added by hand, or not frozen any more
                        self.sync()
                        part = self._parts[id(p)]
                    if part.stepped == self._iteration:
                        raise RuntimeError(_AGAIN.format(name=part.name))
                    left.append((part, p))
        for part, p in left:
            self._take(part, p)
            part.go_last()
        self._count_in_groups(optimizer)
        if kept.ema is not None:
            # also those of parameters that had no gradient move
            move_all(optimizer, {key for key, part in self._parts.items() if part.stepped == self._iteration})
        self.groups = {id(optimizer.param_groups[g]) for g in self._stepped_groups(optimizer)}
        if self._norms:
            optimizer.__dict__["last_grad_norm"] = torch.linalg.vector_norm(torch.stack(self._norms))
            self._norms = []
        self._iteration += 1

    def plan_of(self, p: Tensor) -> Any:
        """What steps a parameter; None: it was not stepped yet."""
        part = self._parts.get(id(p))
        return None if part is None else part.kept.plans.get(self._cls)

    def last(self) -> Rows:
        """What became of each parameter that was stepped in this iteration or, if none was, in the last."""
        now = self._iteration if any(part.stepped == self._iteration for part in self._parts.values()) else None
        rows: Rows = []
        for part in self._parts.values():
            if part.stepped == (now or self._iteration - 1) and (plan := part.kept.plans.get(self._cls)) is not None:
                rows += [(part.g, part.i, path, reason) for *_, path, reason in plan.last() or ()]
        return rows

    # ---- one parameter ----

    def _take(self, part: "_Part", p: Tensor) -> None:
        """Steps one parameter, and frees its gradient."""
        if part.stepped == self._iteration:
            raise RuntimeError(_AGAIN.format(name=part.name))
        optimizer: Any = self._optimizer()
        if optimizer is None:
            return
        kept: Kept = optimizer.__dict__[KEY]
        if kept.torn is not None:
            kept.torn.step()
        if kept.swapped:
            refuse_while_swapped()
        if not self._reducers_looked_for:
            refuse_reducers(optimizer)
            self._reducers_looked_for = True
        groups = optimizer.param_groups
        if (
            type(optimizer) is not self._cls
            or part.g >= len(groups)
            or part.i >= len(groups[part.g]["params"])
            or groups[part.g]["params"][part.i] is not p
        ):
            self.sync()  # somebody has changed the list
            if self._parts.get(id(p)) is not part:
                return
        group = groups[part.g]
        if kept.guarded:
            refuse_setting(kept, self.clip)
            part.kept.max_grad_norm, part.kept.guarded = kept.max_grad_norm, True
        elif part.kept.guarded:
            part.kept.max_grad_norm, part.kept.guarded = None, False
        if self._is_rule:
            self._known_programs = refuse_by_now(optimizer, group, self._known_programs)
            if self._refuse is not None:
                self._refuse(optimizer, group)
        part.read(group, optimizer.state.get(p))
        try:
            norm = self._step_alone(part) if self._is_rule else self._step(part)
        except _core.KernelError as panic:
            message, params = panic.args
            raise tear(optimizer, f"a kernel of oxistep panicked ({message}; please report this)", params) from None
        except BaseException as error:
            part.forget()
            part.name_in(error)
            raise
        part.stepped = self._iteration
        p.grad = None
        if not part.entry and (entry := part.state.get(p)) is not None:
            optimizer.state[p] = part.entry = entry
        if norm is not None:
            self._norms.append(norm)
        if self._is_rule:
            self._note_numbers(part, group)

    def _step_alone(self, part: "_Part") -> Tensor | None:
        """As ``_step``, where a rule could ask for sums over all parameters."""
        from oxistep.rules._trace import ALONE

        token = ALONE.set(True)
        try:
            return self._step(part)
        finally:
            ALONE.reset(token)

    def _step(self, part: "_Part") -> Tensor | None:
        """What a step of an optimizer does, without hooks; returns the norm of the gradient, if it was measured."""
        stand_in, kept = part.stand_in, part.kept
        plan = kept.plans.get(self._cls)
        if plan is None:
            plan = plan_of(stand_in)
        if (_modes.FORCED or _dispatch_modes() or _function_modes()) and _modes.because():
            return definition_of(self._cls).leave_everything(stand_in)
        if kept.ema is not None:
            begin(stand_in, plan, kept)
        norm: Tensor | None = None
        if kept.guarded:
            norm = plan.step(stand_in, kept.max_grad_norm)
        else:
            plan.step(stand_in)
        if kept.ema is not None:
            end_of_one(stand_in, plan, part.p, kept)
        return norm

    # ---- numbers of groups, which count iterations, whatever the number of parameters ----

    def _note_numbers(self, part: "_Part", group: dict[str, Any]) -> None:
        changed = {
            name: value
            for name, value in part.view.items()
            if name not in ("params", "param_names") and group.get(name, _MISSING) is not value
        }
        noted = self._numbers.setdefault(part.g, changed)
        if noted != changed:
            name = next(name for name in {**noted, **changed} if noted.get(name) != changed.get(name))
            raise RuntimeError(
                f"step_in_backward: {name!r}, a number of the group, becomes another one for {part.name} than for the "
                "parameters before it: with a rule whose group looks at its parameters, step after backward"
            )

    def _count_in_groups(self, optimizer: Any) -> None:
        for g, numbers in self._numbers.items():
            optimizer.param_groups[g].update(numbers)
        self._numbers = {}

    def _stepped_groups(self, optimizer: Any) -> set[int]:
        places = {part.g for part in self._parts.values() if part.stepped == self._iteration}
        return {g for g in places if g < len(optimizer.param_groups)}


class _Part:
    """One parameter: the stand-in that steps it, and when it was stepped."""

    __slots__ = (
        "_handle",
        "_names",
        "_params",
        "entry",
        "g",
        "i",
        "kept",
        "name",
        "number",
        "p",
        "stand_in",
        "state",
        "stepped",
        "view",
    )

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.number: int | None = None
        """Of our hook; None: there is none."""
        self._handle: Any = None
        self.stepped = 0
        """In which iteration."""

    def settle(self, optimizer: Any, g: int, i: int) -> None:
        """Makes the stand-in, for a place among the optimizer's groups."""
        self.g, self.i = g, i
        self.name = name_of(optimizer.param_groups, g, i)
        self.kept = optimizer.__dict__[KEY].__copy__()
        self.kept.max_grad_norm, self.kept.guarded, self.kept.is_part = None, False, True
        self.view: dict[str, Any] = {}
        self.state: Any = defaultdict(dict)
        self.entry: dict[str, Any] | None = None
        self._params, self._names = [self.p], [self.name]
        before: list[dict[str, Any]] = []
        if is_compact(optimizer):
            # what is drawn at random hangs on the place of a parameter: others stand before it that have no gradient
            self._params = [_BLANK] * i + self._params
            before = [{**group, "params": []} for group in optimizer.param_groups[:g]]
            self._names = []
        stand_in: Any = object.__new__(type(optimizer))
        stand_in.__dict__.update(
            defaults=optimizer.defaults, state=self.state, param_groups=[*before, self.view], **{KEY: self.kept}
        )
        stand_in.__dict__.update({name: OrderedDict() for name in _HOOKS})
        stand_in._warned_capturable_if_run_uncaptured = True
        self.stand_in = stand_in

    def read(self, group: dict[str, Any], entry: dict[str, Any] | None) -> None:
        """Takes the group and the states as they are now."""
        view = self.view
        if len(view) > len(group) + 1:
            view.clear()  # of numbers that a rule has put there
        view.update(group)
        view["params"] = self._params
        if self._names:
            view["param_names"] = self._names
        if entry is not self.entry:
            self.forget()
            if entry is not None:
                self.state[self.p] = self.entry = entry

    def forget(self) -> None:
        """Lets go of the states, such as a step that failed has left."""
        self.state.clear()
        self.entry = None

    def name_in(self, error: BaseException) -> None:
        """Puts the parameter's name where an error has the place that it has in its stand-in."""
        if self._names:
            error.args = tuple(self._named(arg) for arg in error.args)
            if notes := getattr(error, "__notes__", None):
                notes[:] = [self._named(note) for note in notes]

    def _named(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        named = text.replace("param_groups[0]['params'][0]", self.name)
        return named if named != text else text.replace("param_groups[0]", f"param_groups[{self.g}]")

    def hook(self, release: Release) -> bool:
        """Has backward tell of the gradient. Returns whether it did not before."""
        if self.number is not None or not self.p.requires_grad:
            return False
        others: Any = self.p._post_accumulate_grad_hooks or {}
        if any(isinstance(other, _Hook) and other.release() is not None for other in others.values()):
            raise ValueError(
                f"step_in_backward: another optimizer steps {self.name} in backward, and frees its gradient: a "
                "parameter can be stepped so by one optimizer"
            )
        hook = _Hook(release)
        self._handle = self.p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self.number = hook.number = self._handle.id
        return True

    def unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.number = None

    def go_last(self) -> None:
        """Puts our hook behind those that were registered since, for the next backward."""
        hooks: Any = self.p._post_accumulate_grad_hooks
        if self.number in hooks and next(reversed(hooks)) != self.number:
            hooks[self.number] = hooks.pop(self.number)


class _Hook:
    """What a parameter calls when its gradient is accumulated."""

    __slots__ = ("number", "release")

    def __init__(self, release: Release) -> None:
        self.release = weakref.ref(release)
        self.number = -1

    def __call__(self, p: Tensor) -> None:
        release = self.release()
        if release is None or release.held:
            return
        if _is_compiling():
            _arrived_outside_graph(release, p, self.number)
        else:
            release.arrived(p, self.number)


# As with the step: a graph ends where a parameter is stepped.
@_disable_dynamo
def _arrived_outside_graph(release: Release, p: Tensor, number: int) -> None:
    release.arrived(p, number)


_BLANK = torch.empty(0, device="cpu")


def release_of(optimizer: Any) -> Release | None:
    """What steps an optimizer's parameters in backward, if anything does."""
    kept = optimizer.__dict__.get(KEY)
    return None if kept is None else kept.release
