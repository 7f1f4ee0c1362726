"""Which cells are measured, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .implementations import IMPLEMENTATIONS
from .optimizer_table import COMMON, OPTIMIZERS, UNFUSED
from .record import CellName, Record
from .workloads import ODD, SIZES, STRIDED, TENSORS, WORKLOADS

_CLIPPING = [name for name, optimizer in OPTIMIZERS.items() if optimizer.clip]
# Classes of torch that take sparse gradients.
SPARSE = ("SGD", "Adagrad", "SparseAdam")
_SWEEPS = {*SIZES, *TENSORS, *STRIDED, *ODD}

# Parameters from which on a cell needs more time: a round of all contestants on 128 Mi takes a second.
_LARGE = 2**22


def grid(workloads: list[str], optimizers: list[str], dtypes: list[str]) -> list[CellName]:
    return [CellName(w, o, d) for w in workloads for d in dtypes for o in optimizers]


def refused(cell: CellName) -> str | None:
    """Why torch itself takes no such step."""
    workload, optimizer = WORKLOADS[cell.workload], OPTIMIZERS[cell.optimizer]
    name = optimizer.torch_class
    if workload.rows and (name not in SPARSE or optimizer.clip):
        return f"{cell.optimizer} takes no sparse gradients, which {cell.workload} has"
    if name == "SparseAdam" and not workload.rows:
        return f"SparseAdam takes sparse gradients alone, and {cell.workload} has dense ones"
    if workload.kind == "integer_counters" and name == "SGD":
        return "SGD keeps no counters"
    if name == "Muon" and any(len(shape) != 2 for shape in workload.shapes):
        return f"Muon takes matrices alone, and {cell.workload} has tensors of other shapes"
    return None


def odd() -> list[CellName]:
    """Parameters that are not simply plain tensors."""
    return [cell for cell in grid(list(ODD), ["SGD", "Adam"], ["float32"]) if not refused(cell)]


def sweeps() -> list[CellName]:
    """What a step costs against the number of tensors, and against the size of one."""
    return grid([*TENSORS, *SIZES], ["Adam"], ["float32"])


def full() -> list[CellName]:
    """Every cell that has a floor, and the sweeps."""
    f32 = ["float32"]
    return [
        *grid(["two_scalars", "seven", "mlp", "lora", "small_2000"], COMMON, f32),
        *grid(["resnet50"], ["SGD momentum", "Adam"], f32),
        *grid(["gpt2_small"], ["Adam", "AdamW", *_CLIPPING], f32),
        *grid(["embedding"], ["SparseAdam", "Adagrad"], f32),
        *grid(["matrices"], ["Adafactor", "Muon"], f32),
        *grid(["flat"], [*COMMON, *UNFUSED[1:]], f32),
        *grid(["flat"], ["Adam"], ["bfloat16", "float16"]),
        *grid(list(STRIDED), COMMON, f32),
        *odd(),
        *sweeps(),
    ]


def quick() -> list[CellName]:
    f32 = ["float32"]
    return [
        *grid(["two_scalars", "seven"], ["SGD", "Adam"], f32),
        *grid(["mlp"], ["Adam"], f32),
        *grid(["lora", "small_2000"], ["SGD", "Adam"], f32),
        *grid([name for name, n in TENSORS.items() if n in (1, 10, 100, 1000)], ["Adam"], f32),
        *grid([name for name, k in SIZES.items() if k in (0, 6, 12, 18, 22)], ["Adam"], f32),
        *grid(["flat_16"], ["SGD", "SGD momentum", "RMSprop", "Adam"], f32),
        *grid(["flat_16"], ["Adam"], ["bfloat16"]),
        *grid(["embedding"], ["SparseAdam"], f32),
        *grid(["resnet50"], ["Adam"], f32),
        *odd(),
        *grid(["sliced_columns_small", "sliced_columns_large"], ["SGD"], f32),
        *grid(["transposed_gradient_large", "channels_last_gradient_large"], ["SGD momentum", "Adam"], f32),
    ]


def brief() -> list[CellName]:
    return [
        CellName("two_scalars", "SGD", "float32"),
        CellName("mlp", "Adam", "float32"),
        CellName("small_2000", "Adam", "float32"),
        CellName("flat_16", "RMSprop", "float32"),
        CellName("flat_16", "AdamW", "float32"),
    ]


@dataclass(eq=False)
class Plan:
    """`cell_seconds`: timing of one cell, None for what suits its size; building and checking come on top.

    `total_seconds`: everything; cells that no longer fit are left out.
    """

    cells: list[CellName] = field(default_factory=quick)
    implementations: list[str] = field(default_factory=lambda: [name for name in IMPLEMENTATIONS if name != "compile"])
    cell_seconds: float | None = 2.0
    total_seconds: float | None = None
    records: list[Record] = field(default_factory=list)
    left_out: list[CellName] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def implementations_of(self, name: CellName) -> list[str]:
        """Sweeps leave torch.compile out: compiling would take longer than all the rest."""
        return [i for i in self.implementations if i != "compile" or name.workload not in _SWEEPS]

    def seconds_left(self) -> float:
        if self.total_seconds is None:
            return float("inf")
        return self.started + self.total_seconds - time.perf_counter()

    def share(self, name: CellName) -> float:
        """What this cell may spend on timing; building and checking take as much again of the time left."""
        cells_left = len(self.cells) - len(self.records) - len(self.left_out)
        return min(self._wanted(name), 0.5 * max(0.0, self.seconds_left()) / max(cells_left, 1))

    def _wanted(self, name: CellName) -> float:
        if self.cell_seconds is not None:
            return self.cell_seconds
        large, sweep = WORKLOADS[name.workload].parameters >= _LARGE, name.workload in _SWEEPS
        return {(False, False): 2.5, (False, True): 1.0, (True, False): 9.0, (True, True): 4.0}[large, sweep]
