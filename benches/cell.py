"""One cell of the grid, ready to be timed: every implementation built, warm, and checked."""

from __future__ import annotations

from typing import Any

import torch

from check import difference
from implementations import IMPLEMENTATIONS, OPTIMIZERS, REFERENCE, Parameters
from neighbours import Neighbours
from paired import Step, contestant, measure
from probe import NAME as PROBE
from probe import torch_probe
from record import CellName, Record
from workloads import WORKLOADS, parameters

CHECKED_STEPS = 3
# Parameters small enough that a few steps show, even in bfloat16; gradients large enough that their
# squares do not vanish in float16.
PARAMETER_SIZE = 0.02
GRADIENT = (0.1, 1.0)

# Above this all implementations step on the same parameters and gradients, and only the states are
# their own: nothing of that size survives in a cache from one block to the next anyway.
OWN_COPIES_BYTES = 4 * 2**30
# Above this (bytes of one copy) a block needs no untimed first step, for the same reason.
LEAD_IN_BYTES = 2**29


class Cell:
    seconds = 0.0  # for timing, set by whoever plans

    def __init__(self, name: CellName, implementations: list[str]) -> None:
        self.optimizer = OPTIMIZERS[name.optimizer]
        self.shapes = WORKLOADS[name.workload]
        self.dtype: torch.dtype = getattr(torch, name.dtype)
        elements, size = parameters(self.shapes), self.dtype.itemsize

        reasons = {i: IMPLEMENTATIONS[i].missing(self.optimizer) for i in implementations}
        self.record = Record(
            name=name,
            parameters=elements,
            tensors=len(self.shapes),
            bytes_per_step=self.optimizer.streams * size * elements,
            missing={i: reason for i, reason in reasons.items() if reason},
        )
        present = [i for i, reason in reasons.items() if not reason]
        one_copy = (2 + self.optimizer.states) * size * elements
        self.array_bytes = size * elements
        self.lead_in = one_copy < LEAD_IN_BYTES
        self.record.shared_tensors = one_copy * len(present) > OWN_COPIES_BYTES

        steps = self._checked_steps(present)
        self.contestants = {i: contestant(step) for i, step in steps.items()}

    def _checked_steps(self, present: list[str]) -> dict[str, Step]:
        """Let all take a few steps from the same start, and keep those that agree with the judge.

        What is checked is what is timed, at full size. The judge is torch's for-loop once more: it
        goes when all are built, and so takes the first place in memory, which showed as a
        disadvantage of a few percent, from none of the contestants.
        """
        gradients = self._empty()
        generator = torch.Generator().manual_seed(1)
        for gradient in gradients:
            gradient.uniform_(*GRADIENT, generator=generator)
        shared = self._parameters(gradients) if self.record.shared_tensors else None

        def started(name: str) -> tuple[Any, Parameters, Step]:
            own = shared or self._parameters([gradient.clone() for gradient in gradients])
            generator.manual_seed(2)
            for parameter in own:
                parameter.detach().normal_(std=PARAMETER_SIZE, generator=generator)
            optimizer = IMPLEMENTATIONS[name].build(self.optimizer, own)
            step = _step_of(optimizer, IMPLEMENTATIONS[name].compiled)
            for _ in range(CHECKED_STEPS):
                step()
            return optimizer, own, step

        judge, judged, _ = started(REFERENCE)
        expected = [p.detach().clone() if shared else p.detach() for p in judged]
        steps: dict[str, Step] = {}
        for name in present:
            try:
                optimizer, own, step = started(name)
            except Exception as error:
                self.record.wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            if found := difference(optimizer, own, judge, expected):
                self.record.wrong[name] = found
            else:
                steps[name] = step
        return steps

    def _empty(self) -> list[torch.Tensor]:
        return [torch.empty(shape, dtype=self.dtype) for shape in self.shapes]

    def _parameters(self, gradients: list[torch.Tensor]) -> Parameters:
        made = [torch.nn.Parameter(tensor) for tensor in self._empty()]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient
        return made

    def measure(self, seconds: float) -> None:
        contestants = dict(self.contestants)
        if made := torch_probe(self.array_bytes, self.optimizer.states):
            step, self.record.probe_bytes = made
            contestants[PROBE] = contestant(step)
        neighbours = Neighbours()
        self.record.paired = measure(contestants, seconds, self.lead_in)
        self.record.other_cores = neighbours.cores()

    def close(self) -> None:
        """Free the tensors before the next cell takes its own."""
        self.contestants.clear()
        torch.compiler.reset()  # its cache is bounded, and would send later cells to the slow path


def _step_of(optimizer: Any, compiled: bool) -> Step:
    if not compiled:
        step: Step = optimizer.step
        return step

    # A function around it, as torch's own tutorial compiles it.
    @torch.compile(fullgraph=False)
    def compiled_step() -> None:
        optimizer.step()

    return compiled_step
