"""Optimizers for NumPy's arrays whose update is a rule."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from oxistep._core import ArrayPlan, KernelError
from oxistep._names import names_of
from oxistep._torn import Torn, text_of
from oxistep.numpy._accepted import accepted, gradient_of, refuse_overlaps
from oxistep.numpy._base import Optimizer
from oxistep.numpy._checkpoints import loaded_array, new_step
from oxistep.numpy._hyper import Check, flag, learning_rate, number
from oxistep.numpy._replace import blank
from oxistep.numpy._types import Array, Grads, Group, Params, State
from oxistep.rules._native import tree_of
from oxistep.rules._program import Program
from oxistep.rules._run import Given, Lazily, Run
from oxistep.rules._source import Reading, Source, check
from oxistep.rules._together import Member, group_numbers, settle
from oxistep.rules._trace import Facts
from oxistep.rules._trace import State as StateOfRule

__all__ = ["RuleOptimizer", "checker"]


class RuleOptimizer(Optimizer):
    """What the NumPy class of every rule has: ``oxistep.rule`` makes the classes."""

    _oxistep_source: ClassVar[Source]
    _oxistep_added_later: ClassVar[Group] = {"maximize": False}

    _oxistep_not_counted: ClassVar[frozenset[str]] = frozenset(("params", "param_names", "name", "maximize"))
    """What of a group is no number that a step counts in it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        source = cls._oxistep_source
        cls._oxistep_checks = {name: checker(name, one.default) for name, one in source.hyperparameters.items()}
        if not source.takes_maximize:
            cls._oxistep_checks["maximize"] = flag("maximize")
        cls._oxistep_not_counted = RuleOptimizer._oxistep_not_counted | source.hyperparameters.keys()
        super().__init_subclass__(**kwargs)

    def __init__(self, params: Params, defaults: Group, *, maximize: bool = False, **settings: Any) -> None:
        super().__init__(params, {"maximize": maximize} | defaults, **settings)

    def step(self, grads: Grads) -> None:
        """Updates every parameter that has a gradient, in place.

        Args:
            grads: the gradients in the structure of the parameters, as every optimizer of ``oxistep.numpy`` takes them.

        Raises:
            TypeError: for a gradient, a hyperparameter or a state of a wrong type, and for what the rule does that
                cannot be traced.
            ValueError: for a shape that does not fit, an array that cannot be written, or arrays that overlap. Whatever
                is raised, nothing has been changed.
        """
        if self._oxistep_torn is not None:
            self._oxistep_torn.step()
        watch = self._oxistep_watch
        rates: list[float] = []
        if watch is None and self._oxistep_clipping is None:
            again = self._oxistep_stepped_again(grads)
            if again is None:
                self.step_count += 1
                return
            rates = again
        updates = None if watch is None else watch._row()
        listed = self._oxistep_listed(grads)
        if (clipping := self._oxistep_clipping) is None:
            self._oxistep_take(listed, updates, rates, grads)
            return
        before = clipping.norm
        try:
            clipped = self._oxistep_clipped(listed)
            if clipped is not None:
                self._oxistep_take(clipped, updates, rates, None)
        except BaseException:
            clipping.norm = before
            raise

    def _oxistep_take(self, listed: list[list[Any]], updates: Any, rates: list[float], given: Any) -> None:
        """Take the step, by kernels or by NumPy's operations."""
        source, watch = self._oxistep_source, self._oxistep_watch
        if self._oxistep_stepped_natively(listed, updates, rates, given):
            self.step_count += 1
            if watch is not None:
                watch._history.commit(None)
            return
        try:
            rows = self._oxistep_rows(listed)
        except (TypeError, ValueError) as error:
            if (better := self._oxistep_explained(error, listed)) is not error:
                raise better from None
            raise
        members = [Member(Facts(row.array.shape), source.tree(row.reading), row.new_run) for row in rows]
        settle(members, source.name)
        shared = group_numbers(source.name, ((row.k, member) for row, member in zip(rows, members, strict=True)))
        for row, member in zip(rows, members, strict=True):
            row.prepare(member.program)
        self._oxistep_write(rows, members, updates)
        for k, numbers in shared.items():
            self.param_groups[k].update(numbers)
        self.step_count += 1
        if watch is not None:
            watch._history.commit(None)

    def _oxistep_rows(self, listed: list[list[Any]]) -> list[_Row]:
        """The arrays that take a step by NumPy's operations, all checked."""
        source = self._oxistep_source
        rows = []
        place = 0
        for k, group in enumerate(self.param_groups):
            reading = self._oxistep_reading(group, k)
            ascends = not source.takes_maximize and group["maximize"]
            for i, (array, grad) in enumerate(zip(group["params"], listed[k], strict=True)):
                if grad is not None:
                    name = self._oxistep_name(group, k, i)
                    rows.append(_Row(source, reading, (k, group), array, grad, self.state[k][i], name, place, ascends))
                place += 1
        refuse_overlaps(
            [one for row in rows for one in row.written()], [(f"the gradient of {row.name}", row.grad) for row in rows]
        )
        return rows

    def _oxistep_stepped_again(self, grads: Grads) -> list[float] | None:
        """Takes a step like the last one, if it is one; else what functions returned as learning rates, if they did."""
        plan = self._oxistep_plan
        if plan is None:
            return []
        try:
            left = plan.again(self, self.param_groups, self.state, grads, self._oxistep_live.seen)
            if left is False:
                left = self._oxistep_looked_again(plan, grads, ())
        except KernelError as panic:
            raise self._oxistep_torn_by(panic) from None
        return left if isinstance(left, list) else None

    def _oxistep_torn_by(self, panic: KernelError) -> RuntimeError:
        message, arrays = panic.args
        names = names_of(self.param_groups, arrays)
        self._oxistep_torn = Torn(text_of(f"a kernel of oxistep panicked ({message}; please report this)", names))
        return RuntimeError(self._oxistep_torn.text)

    def _oxistep_stepped_natively(
        self, listed: list[list[Any]], updates: Array | None, rates: list[float], given: Any
    ) -> bool:
        """Takes the step by kernels, if they have one for this rule.

        Args:
            listed: the gradients of each group.
            updates: where the norms of all updates go, if they are wanted.
            rates: what functions returned as learning rates in this step; empty if none was called.
            given: the gradients as they came.
        """
        source = self._oxistep_source

        def begin(
            array: Array, group: Group, missing: list[str], begins: dict[str, StateOfRule], entry: State, name: str
        ) -> State:
            if (strangers := source.strangers(entry, begins)) is not None:
                raise ValueError(f"rule {source.name}: {name} {strangers}")
            return _new_states(array, group, missing, begins)

        lrs: list[float | None] = []
        for k, group in enumerate(self.param_groups):
            checked = self._oxistep_with_rates(group, k, rates)
            # what is a learning rate by its default may be a function of the step in the group
            lrs.append(float(checked["lr"]) if self._oxistep_checks.get("lr") is learning_rate else None)
        self._oxistep_rates = [lr or 0.0 for lr in lrs]
        plan = self._oxistep_plan
        if plan is None:
            self._oxistep_plan = plan = ArrayPlan(tree_of(source))
        try:
            left = plan.step(self.param_groups, lrs, listed, self.state, begin, updates, given)
        except KernelError as panic:
            raise self._oxistep_torn_by(panic) from None
        except (TypeError, ValueError) as error:
            if (better := self._oxistep_explained(error, listed)) is not error:
                raise better from None
            raise
        return left is None

    def _oxistep_with_rates(self, group: Group, k: int, rates: Sequence[float]) -> Group:
        """The settings of a group, checked, with a learning rate that is a number: that of `rates`, if it has any."""
        plain = group
        if self._oxistep_checks.get("lr") is learning_rate:
            plain = {**group, "lr": rates[k] if rates else self._oxistep_learning_rate(group["lr"], k)}
        self._oxistep_checked({**self._oxistep_added_later, **plain}, f" in param_groups[{k}]")
        return plain

    def _oxistep_write(self, rows: list[_Row], members: list[Member], updates: Array | None) -> None:
        written: list[Array] = []
        if updates is not None:
            updates.fill(np.nan)  # of those without a gradient
        try:
            for row, member in zip(rows, members, strict=True):
                written.append(row.array)
                row.write(member, updates)
        except BaseException as error:  # out of memory, say
            names = names_of(self.param_groups, written)
            self._oxistep_torn = Torn(
                text_of(f"a step of rule {self._oxistep_source.name} broke off ({error!r})", names)
            )
            if isinstance(error, Exception):
                raise RuntimeError(self._oxistep_torn.text) from error
            raise

    def _oxistep_reading(self, group: Group, k: int) -> Reading:
        return self._oxistep_source.read(
            self._oxistep_with_rates(group, k, self._oxistep_rates), f" in param_groups[{k}]"
        )

    def _oxistep_add(self, param_group: Group) -> None:
        super()._oxistep_add(param_group)
        group, source = self.param_groups[-1], self._oxistep_source
        try:
            reading = source.read({**group, "lr": 0.0} if callable(group.get("lr")) else group, "")
            for array in group["params"]:
                for name, state in source.early_program(reading, array.shape, array.size).of_group.items():
                    group.setdefault(name, state.initial)
        except Exception:  # the first step says what is wrong
            return

    def _oxistep_group_numbers(self, group: Group) -> Group:
        return {key: value for key, value in group.items() if key not in self._oxistep_not_counted}

    def _oxistep_numbers(self) -> Collection[str]:
        of_one = (name for name, known in self._oxistep_source.states().items() if not known.kind.has_elements)
        return {"step", *of_one}

    def _oxistep_begun(self, new: Array, group: Group, state: State, old: Array) -> State:
        begun = blank(new, state, old, self._oxistep_numbers())
        for name, known in self._oxistep_source.states().items():
            if name in begun and begun[name].shape == new.shape and known.kind.has_elements:
                begun[name][...] = new if known.initial == "p" else known.initial
        return begun

    def _oxistep_loaded_state(self, saved: Any, group: Group, k: int, i: int) -> State:
        if saved is None or not isinstance(saved, Mapping):
            return super()._oxistep_loaded_state(saved, group, k, i)
        array, name = group["params"][i], self._oxistep_name(group, k, i)
        known = self._oxistep_source.states()
        return {key: _loaded(value, key, array, name, known) for key, value in saved.items() if value is not None}


class _Row:
    """One array that takes the step."""

    def __init__(
        self,
        source: Source,
        reading: Reading,
        place_of_group: tuple[int, Group],
        array: Array,
        grad: Any,
        entry: dict[str, Any],
        name: str,
        place: int,
        ascends: bool,
    ) -> None:
        self.source, self.reading, self.name, self.place = source, reading, name, place
        self.k, self.group = place_of_group
        self.array = accepted(array, name, array, name, write=True)
        self.grad = gradient_of(grad, array, name)
        self.entry, self.ascends = entry, ascends
        self.new: State = {}
        self.begins: dict[str, StateOfRule] = {}
        self.dtype = np.float64 if array.dtype == np.float64 else np.float32
        for key, value in entry.items():
            what = f"state {key!r} of {name}"
            if isinstance(value, np.ndarray) and value.shape == ():
                if value.dtype.kind not in "fiu" or not value.flags.writeable:
                    raise TypeError(f"{what} must be a writeable, aligned array of one float32 or float64")
            else:
                accepted(value, what, array, name, write=True)
        if not 0 <= float(entry.get("step", np.zeros(()))) < np.inf:
            raise ValueError(f"state 'step' of {name} must be a number of steps, got {entry['step']}")

    def written(self) -> list[tuple[str, Array]]:
        """What the step writes, by name."""
        return [(self.name, self.array), *((f"state {key!r} of {self.name}", a) for key, a in self.entry.items())]

    def new_run(self, program: Program, totals: dict[Any, float]) -> Run:
        """A run of a program over this array."""
        self.begins.update(program.states)
        for name, state in program.states.items():
            value = self.entry.get(name)
            if value is not None and value.shape != (self.array.shape if state.kind.has_elements else ()):
                shape = self.array.shape if state.kind.has_elements else ()
                raise ValueError(f"state {name!r} of {self.name} has shape {value.shape}, expected {shape}")
        if (strangers := self.source.strangers(self.entry, program.states)) is not None:
            raise ValueError(f"rule {self.source.name}: {self.name} {strangers}")
        given = Given(
            streams=Lazily(self._stream),
            numbers=self.reading.numbers,
            step=float(self.entry.get("step", 0.0)) + 1.0,
            numel=float(self.array.size),
            of_group={name: float(self.group.get(name, state.initial)) for name, state in program.of_group.items()},
            of_param=Lazily(lambda name: float(self.entry.get(name, self.begins[name].initial))),
            like=self.array,
            dtype=self.dtype,
        )
        return Run(program, given, totals)

    def _stream(self, name: str) -> Array:
        if name == "p":
            return np.asarray(self.array, self.dtype)
        if name == "g":
            grad = np.asarray(self.grad, self.dtype)
            return np.negative(grad) if self.ascends else grad
        if name in self.entry:
            return np.asarray(self.entry[name], self.dtype)
        initial = self.begins[name].initial
        return self._stream("p") if initial == "p" else np.full_like(self.array, initial, dtype=self.dtype, subok=False)

    def prepare(self, program: Program) -> None:
        """Makes the states that begin in this step; stores nothing."""
        if "step" not in self.entry:
            self.new["step"] = new_step()
        lacking = [name for name in program.states if name not in self.entry]
        self.new.update(_new_states(self.array, self.group, lacking, program.states))

    def write(self, member: Member, updates: Array | None) -> None:
        """Computes and writes the elements, and what is kept of them."""
        program = member.program
        nodes = program.graph.nodes
        entry = {**self.new, **self.entry}
        self.entry.update({key: value for key, value in entry.items() if key not in self.entry})
        before = np.array(self.array, np.float64) if updates is not None else None
        # what is handed on as it is must be read before it is overwritten
        values = [
            np.copy(value) if nodes[i].op in ("param", "state") else value
            for i, value in zip(program.writes.values(), member.run.values(program.writes.values()), strict=True)
        ]
        with np.errstate(all="ignore"):
            for name, value in zip(program.writes, values, strict=True):
                (self.array if name == "p" else self.entry[name])[...] = value
        for name, i in program.numbers.items():
            if name in program.states:
                self.entry[name][...] = member.run.value(i)
        self.entry["step"] += 1
        member.run.numbers_only()
        if updates is not None and before is not None:
            now = np.array(self.array, np.float64)
            grad = np.asarray(self.grad, np.float64)
            updates[self.place] = [np.linalg.norm(np.ravel(x)) for x in (now - before, before, grad)]


def _new_states(array: Array, group: Group, missing: Sequence[str], begins: Mapping[str, StateOfRule]) -> State:
    """States that begin in a step; stores nothing."""
    made: State = {}
    for name in missing:
        state = begins.get(name)
        if state is None:
            made[name] = new_step()
        elif not state.kind.has_elements:
            made[name] = np.array(state.initial, np.float64)
        elif state.initial == "p":
            made[name] = np.array(array, copy=True, subok=False)
        else:
            made[name] = np.full_like(array, state.initial, subok=False)
    return made


def checker(name: str, default: Any) -> Check:
    """What checks a hyperparameter of a rule, as those of other classes are."""
    if name == "lr" and isinstance(default, (int, float)) and not isinstance(default, bool):
        return learning_rate
    if isinstance(default, bool):
        return flag(name)
    if isinstance(default, (int, float)):
        return number(name)

    def checked(value: Any) -> Any:
        check(name, value, default)
        return value

    return checked


def _loaded(value: Any, key: str, array: Array, name: str, known: Mapping[str, StateOfRule]) -> Array:
    """A copy of a loaded state: one number in float64, or elements in the parameter's dtype and layout."""
    state = known.get(key)
    if key == "step" or np.shape(value) != () or (array.shape == () and (state is None or state.kind.has_elements)):
        return loaded_array(value, key, array, name)
    return np.array(loaded_array(value, key, np.zeros((), np.float64), name))
