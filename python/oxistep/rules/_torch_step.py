"""A step of a rule by torch's operations, one after the other, on any device.

Everything is found and checked before the first write: programs, conditions, sums over parameters, new states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oxistep._names import name_of
from oxistep.optim._all_or_nothing import tear
from oxistep.optim._new_states import zero_step, zeros
from oxistep.optim._state_dtype import in_state_dtype
from oxistep.rules._program import Program
from oxistep.rules._run import Given, Lazily, Run
from oxistep.rules._source import Reading, Source
from oxistep.rules._together import Member, group_numbers, settle
from oxistep.rules._trace import Facts, State

__all__ = ["Row", "made_states", "rows_of", "take", "try_out"]


class Row:
    """One parameter that takes the step."""

    def __init__(self, optimizer: Any, source: Source, reading: Reading, g: int, i: int, p: Tensor) -> None:
        self.optimizer, self.source, self.reading, self.g, self.i, self.p = optimizer, source, reading, g, i, p
        self.group: dict[str, Any] = optimizer.param_groups[g]
        self.entry: dict[str, Any] = optimizer.state[p] if p in optimizer.state else {}
        self.factor = 1.0
        """What gradients are multiplied with as they are read."""
        self.new: dict[str, Tensor] = {}
        self._begins: dict[str, State] = {}
        self._check()
        self.real = _real(p.detach())
        self.dtype = torch.float64 if self.real.dtype == torch.float64 else torch.float32

    def member(self) -> Member:
        """What finds its program."""
        return Member(Facts(tuple(self.p.shape)), self.source.tree(self.reading), self._new_run)

    def refuse(self, what: str) -> RuntimeError:
        """An error that names the rule and the parameter."""
        name = name_of(self.optimizer.param_groups, self.g, self.i)
        return RuntimeError(f"rule {self.source.name}: {name} {what}; nothing was updated")

    def _check(self) -> None:
        """Refuses what could not be read or written."""
        p, grad = self.p, self.p.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise RuntimeError(f"{self.source.name} does not support sparse gradients")
        if not (p.is_floating_point() or p.is_complex()):
            raise self.refuse(f"is {p.dtype}, and rules are for floating-point and complex parameters")
        if grad.shape != p.shape or grad.device != p.device:
            raise self.refuse(
                f"has a gradient of shape {tuple(grad.shape)} on {grad.device}, and is itself of shape "
                f"{tuple(p.shape)} on {p.device}"
            )
        if grad.is_complex() != p.is_complex():
            raise self.refuse(f"has a gradient of {grad.dtype}, and is itself {p.dtype}: give it one of its own dtype")
        if not isinstance(self.entry, dict):
            raise self.refuse("has an entry in optimizer.state that is no dict")
        for what, tensor in {"": p, **self.entry}.items():
            if isinstance(tensor, Tensor):
                self._check_writable(f"has a state {what!r} that" if what else "", tensor)

    def _check_writable(self, what: str, tensor: Tensor) -> None:
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise self.refuse(f"{what} was made in inference mode, where it can be written alone".strip())
        if tensor.numel() and any(
            n > 1 and stride == 0 for n, stride in zip(tensor.shape, _strides(tensor), strict=True)
        ):
            raise self.refuse(f"{what} is expanded: several of its elements are one place of memory".strip())

    def _new_run(self, program: Program, totals: dict[Any, float]) -> Run:
        self._check_states(program)
        if hasattr(self.p, "_local_tensor") and any(
            program.graph.nodes[i].op in ("reduce", "total") for i in program.needed
        ):
            raise self.refuse("is a DTensor, and its rule asks for a norm or a sum, which are not summed over ranks")
        self._begins.update(program.states)
        given = Given(
            streams=Lazily(self._stream),
            numbers=self.reading.numbers,
            step=self._count() + 1.0,
            numel=float(self.real.numel()),
            of_group={name: float(self.group.get(name, state.initial)) for name, state in program.of_group.items()},
            of_param=Lazily(self._number),
            like=self.real,
            dtype=self.dtype,
        )
        return Run(program, given, totals, torch)

    def _count(self) -> float:
        count = self.entry.get("step", 0.0)
        if isinstance(count, Tensor) and count.numel() != 1:
            raise self.refuse("has a state 'step' of more than one element")
        return float(count)

    def _check_states(self, program: Program) -> None:
        for name, state in program.states.items():
            value = self.entry.get(name)
            if value is None:
                continue
            shape = self.p.shape if state.kind.has_elements else ()
            if not isinstance(value, Tensor) or value.shape != shape:
                got = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
                raise self.refuse(f"has a state {name!r} that is {got}, expected a tensor of shape {tuple(shape)}")
            if state.kind.has_elements and value.device != self.p.device:
                raise self.refuse(f"has a state {name!r} on {value.device}, and is itself on {self.p.device}")
            if state.kind.has_elements and value.is_complex() != self.p.is_complex():
                raise self.refuse(
                    f"has a state {name!r} of {value.dtype}, and is itself {self.p.dtype}: give it one of its own dtype"
                )
        if (strangers := self.source.strangers(self.entry, program.states)) is not None:
            raise self.refuse(strangers)

    def _stream(self, name: str) -> Tensor:
        if name == "p":
            return self.real.to(self.dtype)
        if name == "g":
            assert self.p.grad is not None
            grad = _real(self.p.grad.detach()).to(self.dtype)
            return grad if self.factor == 1.0 else -grad if self.factor == -1.0 else grad * self.factor
        value = self.entry.get(name)
        if isinstance(value, Tensor):
            return _real(value.detach()).to(self.dtype)
        begin = self._begins[name].initial
        if begin == "p":
            return self.real.to(self.dtype)
        return torch.full_like(self.real, float(begin), dtype=self.dtype)

    def _number(self, name: str) -> float:
        return float(self.entry.get(name, self._begins[name].initial))

    def prepare(self, program: Program) -> None:
        """Makes the states that begin in this step; stores nothing."""
        begins: dict[str, State | None] = {"step": None, **program.states}
        lacking = {name: state for name, state in begins.items() if name not in self.entry}
        self.new.update(made_states(self.optimizer, self.p, self.group, lacking))

    def write(self, member: Member, counts: bool) -> None:
        """Computes and writes the elements, and what is kept of them; the step is counted, if it counts."""
        program, nodes = member.program, member.program.graph.nodes
        if self.new:
            entry = self.optimizer.state[self.p]
            entry.update({**self.new, **entry} if entry else self.new)
            self.entry = entry
        # what is handed on as it is must be read before it is overwritten
        values = [
            value.clone() if len(program.writes) > 1 and nodes[i].op in ("param", "state") else value
            for i, value in zip(program.writes.values(), member.run.values(program.writes.values()), strict=True)
        ]
        for name, value in zip(program.writes, values, strict=True):
            _real(self.p if name == "p" else self.entry[name]).copy_(value)
        for name, i in program.numbers.items():
            if name in program.states:
                self.entry[name].fill_(float(member.run.value(i)))
        step = self.entry["step"]
        if isinstance(step, Tensor):
            step += counts
        else:
            self.entry["step"] = step + counts
        member.run.numbers_only()


def made_states(
    optimizer: Any, p: Tensor, group: dict[str, Any], begins: Mapping[str, State | None]
) -> dict[str, Tensor]:
    """New states, in the dtypes asked for; stores nothing.

    Args:
        optimizer: the optimizer.
        p: the parameter.
        group: its group.
        begins: what each begins as, by name; ``step``, at zero, is no state of the rule.
    """
    made = {name: zero_step(p, group) if state is None else _made(p.detach(), state) for name, state in begins.items()}
    elements = {name: made[name] for name, state in begins.items() if state is not None}
    made.update(in_state_dtype(optimizer, p, elements))
    return made


def _made(p: Tensor, state: State) -> Tensor:
    if not state.kind.has_elements:
        return torch.full((), float(state.initial), dtype=torch.float64, device="cpu")
    if state.initial == "p":
        return p.clone(memory_format=torch.preserve_format)
    if state.initial == 0.0:
        return zeros(p)
    return torch.full_like(p, float(state.initial), memory_format=torch.preserve_format)


def rows_of(optimizer: Any, source: Source, left: list[tuple[int, Tensor]] | None = None) -> list[Row]:
    """The parameters that have a gradient, checked; makes no entry in ``state``.

    Args:
        optimizer: the optimizer.
        source: its rule.
        left: these parameters alone, each with the index of its group (None: all).
    """
    wanted = None if left is None else {id(p) for _, p in left}
    # first: to read a number may run code that gives parameters other memory
    readings = [source.read(group, f" in param_groups[{g}]") for g, group in enumerate(optimizer.param_groups)]
    rows = []
    for (g, group), reading in zip(enumerate(optimizer.param_groups), readings, strict=True):
        rows += [
            Row(optimizer, source, reading, g, i, p)
            for i, p in enumerate(group["params"])
            if p.grad is not None and (wanted is None or id(p) in wanted)
        ]
    return rows


def try_out(source: Source, rows: Sequence[Row]) -> None:
    """Raises what a first step would raise by the rule alone: before ranks are asked, or gradients unscaled."""
    for row in rows:
        source.early_program(row.reading, tuple(row.p.shape), row.p.numel())


def take(optimizer: Any, source: Source, rows: Sequence[Row], factor: float, *, counts: bool = True) -> None:
    """Takes the step.

    Args:
        optimizer: the optimizer.
        source: its rule.
        rows: the parameters that step.
        factor: what gradients are multiplied with.
        counts: whether the counters of steps move.
    """
    for row in rows:
        ascends = not source.takes_maximize and bool(row.group.get("maximize"))
        row.factor = -factor if ascends else factor
    members = [row.member() for row in rows]
    settle(members, source.name)
    for row, member in zip(rows, members, strict=True):
        row.prepare(member.program)
    shared = group_numbers(source.name, ((row.g, member) for row, member in zip(rows, members, strict=True)))
    written: list[Tensor] = []
    try:
        for row, member in zip(rows, members, strict=True):
            written.append(row.p)
            row.write(member, counts)
    except BaseException as error:
        torn = tear(optimizer, f"a step of rule {source.name} broke off ({error!r})", written)
        if isinstance(error, Exception):
            raise torn from error
        raise
    for g, numbers in shared.items():
        optimizer.param_groups[g].update(numbers)


def _real(t: Tensor) -> Tensor:
    """Complex numbers as two real ones, as torch's own steps have them."""
    return torch.view_as_real(t) if t.is_complex() else t


def _strides(t: Tensor) -> Sequence[int]:
    return t.stride() if t.layout == torch.strided else t.shape
