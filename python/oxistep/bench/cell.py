"""One cell of the grid, ready to be timed: every implementation built, warm, and checked."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from .check import difference
from .clipping import clipped_step, limits, norm_of
from .free_memory import available_bytes, fits
from .implementations import IMPLEMENTATIONS, OURS, REFERENCE, Parameters, Task
from .layouts import empty
from .neighbours import Neighbours
from .optimizer_table import OPTIMIZERS
from .paired import Step, contestant, measure
from .probe import NAME as PROBE
from .probe import native_probe, probe_bytes
from .record import CellName, Record
from .tensors import fill_normal, fill_uniform, rows_gradient
from .unusual import as_unusual, settle
from .workloads import ODD, STRIDED, WORKLOADS

# Above this all implementations step on the same parameters and gradients, and only the states are
# their own: nothing of that size survives in a cache from one block to the next anyway.
OWN_COPIES_BYTES = 4 * 2**30
# Above this (bytes of one copy) a block needs no untimed first step, for the same reason.
LEAD_IN_BYTES = 2**29
# Who goes first where memory does not suffice for all: those that make temporaries and are slow.
DISPENSABLE = ["foreach", "compile", "deepspeed", "fused"]


class Cell:
    seconds = 0.0  # for timing, set by whoever plans

    def __init__(self, name: CellName, implementations: list[str]) -> None:
        self.optimizer = OPTIMIZERS[name.optimizer]
        self.workload = WORKLOADS[name.workload]
        self.dtype: torch.dtype = getattr(torch, name.dtype)
        task = Task(self.workload, self.optimizer, self.dtype)
        streams, size = self.optimizer.streams, self.dtype.itemsize

        reasons = {i: IMPLEMENTATIONS[i].missing(task) for i in implementations}
        self.record = Record(
            name=name,
            parameters=self.workload.parameters,
            tensors=len(self.workload.shapes),
            bytes_per_step=None if streams is None else streams * size * self.workload.touched,
            missing={i: reason for i, reason in reasons.items() if reason},
        )
        self.array_bytes: int = size * self.workload.parameters
        self.lead_in = (2 + self.optimizer.states) * self.array_bytes < LEAD_IN_BYTES

        present = self._with_room([i for i, reason in reasons.items() if not reason])
        self.contestants = {}
        if OURS in present:
            steps = self._checked_steps(present)
            self.contestants = {i: contestant(step) for i, step in steps.items()}

    def _with_room(self, present: list[str]) -> list[str]:
        """Those that fit into memory together."""
        for leaving in [None, *DISPENSABLE]:
            if leaving in present:
                present = [name for name in present if name != leaving]
                self.record.missing[str(leaving)] = "memory does not suffice for all"
            if fits(self._needed(len(present))):
                return present
        available = (available_bytes() or 0) / 2**30
        reason = f"needs {self._needed(len(present)) / 2**30:.0f} GiB of memory, {available:.0f} are free"
        self.record.missing |= dict.fromkeys(present, reason)
        return []

    def _needed(self, present: int) -> int:
        """Bytes, with the judge's copy, the probe, and temporaries of torch's for-loop (two arrays)."""
        states = self.optimizer.states * (present + 1)
        one_copy = (2 + self.optimizer.states) * self.array_bytes
        self.record.shared_tensors = one_copy * present > OWN_COPIES_BYTES and self.workload.rows is None
        if self.record.shared_tensors:
            own = 1 + (1 + present if self.optimizer.clip else 1) + 1  # parameter, gradients, what is expected
        else:
            own = 2 * (present + 1)
        return (own + states + 2) * self.array_bytes + self._probe_bytes()

    def _probe_bytes(self) -> int:
        dense = self.workload.rows is None and self.record.name.workload not in (*STRIDED, *ODD)
        dense = dense and self.optimizer.streams is not None
        return probe_bytes(self.array_bytes, self.optimizer.states) if dense else 0

    def _checked_steps(self, present: list[str]) -> dict[str, Step]:
        """Let all take a few steps from the same start, and keep those that agree with the judge.

        What is checked is what is timed, at full size. The judge is torch's for-loop once more: it
        goes when all are built, and so takes the first place in memory, which showed as a
        disadvantage of a few percent, from none of the contestants.
        """
        gradients = self._gradients()
        norm = norm_of(gradients) if self.optimizer.clip else 0.0
        shared = self._parameters(gradients) if self.record.shared_tensors else None

        def started(name: str) -> tuple[Any, Parameters, Step]:
            # a clipped gradient is rewritten, a sparse one never
            common = self.workload.rows or (shared and not self.optimizer.clip)
            kept = gradients if common else [gradient.clone() for gradient in gradients]
            own = shared or self._parameters(kept)
            for parameter in own:
                fill_normal(parameter.detach())
            optimizer, step = self._built(name, own, norm)
            if shared and self.optimizer.clip:
                step = partial(_with_gradients, own, kept, step)
            for k in range(self.optimizer.checked_steps):
                step()
                if k == 0:
                    settle(self.workload.kind, optimizer)
            return optimizer, own, step

        judge, judged, _ = started(REFERENCE)
        expected = [p.detach().clone() if shared else p.detach() for p in judged]
        steps: dict[str, Step] = {}
        for name in present:
            start = time.perf_counter()
            try:
                optimizer, own, step = started(name)
            except Exception as error:
                self.record.wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            if IMPLEMENTATIONS[name].compiled:
                self.record.compile_seconds = time.perf_counter() - start
            if found := difference(optimizer, own, judge, expected, bool(self.optimizer.clip)):
                self.record.wrong[name] = found
            else:
                steps[name] = step
        return steps

    def _built(self, name: str, own: Parameters, norm: float) -> tuple[Any, Step]:
        clip = self.optimizer.clip
        if clip and clip.folded and name == OURS:
            optimizer = IMPLEMENTATIONS[name].build(self.optimizer, own, max_grad_norm=clip.limit * norm)
            return optimizer, optimizer.step
        optimizer = IMPLEMENTATIONS[name].build(self.optimizer, own)
        if clip:
            return optimizer, clipped_step(name, optimizer, own, limits(clip, norm, self.optimizer.checked_steps))
        return optimizer, _compiled(optimizer) if IMPLEMENTATIONS[name].compiled else optimizer.step

    def _gradients(self) -> list[torch.Tensor]:
        if self.workload.rows:
            return [rows_gradient(shape, self.workload.rows, self.dtype) for shape in self.workload.shapes]
        return [fill_uniform(gradient) for gradient in self._empty(self.workload.gradient_lies)]

    def _empty(self, lies: str) -> list[torch.Tensor]:
        return [empty(shape, lies, self.dtype) for shape in self.workload.shapes]

    def _parameters(self, gradients: list[torch.Tensor]) -> Parameters:
        made = [torch.nn.Parameter(tensor) for tensor in self._empty(self.workload.parameter_lies)]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient
        return as_unusual(self.workload.kind, made)

    def measure(self, seconds: float) -> None:
        contestants = dict(self.contestants)
        if self._probe_bytes() and (made := native_probe(self.array_bytes, self.optimizer.states)):
            step, self.record.probe_bytes = made
            contestants[PROBE] = contestant(step)
        neighbours = Neighbours()
        self.record.paired = measure(contestants, seconds, self.lead_in)
        self.record.other_cores = neighbours.cores()

    def close(self) -> None:
        """Free the tensors before the next cell takes its own."""
        self.contestants.clear()
        torch.compiler.reset()  # its cache is bounded, and would send later cells to the slow path


def _with_gradients(parameters: Parameters, gradients: list[torch.Tensor], step: Step) -> None:
    """Step on shared parameters with gradients of its own."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is not gradient:
            parameter.grad = gradient
    step()


def _compiled(optimizer: Any) -> Step:
    # A function around it, as torch's own tutorial compiles it.
    @torch.compile(fullgraph=False)
    def compiled_step() -> None:
        optimizer.step()

    return compiled_step
