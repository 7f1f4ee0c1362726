"""What the project has set itself to reach: ratios that a cell must not fall below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .optimizer_table import COMMON, UNFUSED
from .workloads import STRIDED

# Against whom a ratio is taken: the fastest of these that was timed.
EAGER = ("for-loop", "foreach", "fused")
RIVALS: dict[str, tuple[str, ...]] = {
    "best peer": (*EAGER, "compile", "deepspeed"),
    "best of torch": (*EAGER, "compile"),
    "best eager": EAGER,
    "torch's default": ("for-loop",),
    "fused": ("fused",),
    "compile": ("compile",),
    "deepspeed": ("deepspeed",),
}
CEILING = "ceiling"  # the share of the probe's rate
ANYWHERE = 0.97  # never slower than the best peer, but for the noise
LAYOUTS = 0.95  # nor where tensors are not contiguous, or unusual in another way


@dataclass(frozen=True)
class Floor:
    workload: str
    optimizer: str
    dtype: str
    against: str  # of RIVALS, or CEILING
    ratio: float


@dataclass(frozen=True)
class Verdict:
    """`measured` and `met` are None where nobody it is taken against was timed."""

    against: str
    floor: float
    measured: float | None
    met: bool | None


def _floors(workloads: str, optimizers: list[str], against: str, ratio: float, dtype: str = "float32") -> list[Floor]:
    return [Floor(w, o, dtype, against, ratio) for w in workloads.split() for o in optimizers]


_RARELY = ["SGD", "SGD momentum"]  # little arithmetic, few states: less to gain
_OFTEN = [name for name in COMMON if name not in _RARELY]
_ADAM = ["Adam"]

FLOORS: list[Floor] = [
    *_floors("two_scalars seven", [name for name in COMMON if name != "Adam"], "best peer", 2.0),
    *_floors("two_scalars seven", _ADAM, "best peer", 3.0),
    *_floors("small_2000", _OFTEN, "best of torch", 10.0),
    *_floors("small_2000", ["Adam", "AdamW", "Adagrad"], "deepspeed", 5.0),
    *_floors("small_2000", ["SGD momentum"], "best peer", 7.0),
    *_floors("small_2000", ["SGD"], "best peer", 3.0),
    *_floors("lora", _OFTEN, "best peer", 3.0),
    *_floors("lora", _RARELY, "best peer", 2.0),
    *_floors("mlp", _ADAM, "best of torch", 2.0),
    *_floors("mlp", _ADAM, "deepspeed", 1.2),
    *_floors("resnet50", _ADAM, "best peer", 1.2),
    *_floors("gpt2_small", _ADAM, "best peer", 1.1),
    *_floors("resnet50 gpt2_small", _ADAM, "torch's default", 4.0),
    *_floors("flat", ["Adam", "AdamW"], "best peer", 1.12),
    *_floors("flat", ["SGD momentum", "Adagrad"], "best peer", 1.03),
    *_floors("flat", ["SGD"], "fused", 1.0),
    *_floors("flat", UNFUSED, "best eager", 3.0),
    *_floors("flat", UNFUSED, "compile", 1.0),
    *_floors("flat", _ADAM, "fused", 1.5, "bfloat16"),
    *_floors("flat", _ADAM, "fused", 1.15, "float16"),
    *_floors("flat", [*COMMON, *UNFUSED[1:]], CEILING, 0.9),
    *_floors("gpt2_small", ["clip + Adam"], "fused", 1.2),
    *_floors("gpt2_small", ["no clip + Adam"], "fused", 1.4),
    *_floors("gpt2_small", ["max_grad_norm Adam"], "fused", 1.45),
    *_floors("embedding", ["SparseAdam", "Adagrad"], "best peer", 4.0),
    *_floors(" ".join(STRIDED), COMMON, "best peer", LAYOUTS),
    *_floors("tied_weights subclasses", ["SGD", "Adam"], "best peer", LAYOUTS),
    *_floors("integer_counters", _ADAM, "best peer", LAYOUTS),
    *_floors("left_to_torch", ["SGD", "Adam"], "torch's default", LAYOUTS),
]


def floors_of(workload: str, optimizer: str, dtype: str) -> list[Floor]:
    """The floors of a cell; every cell has at least the one that holds anywhere."""
    cell = (workload, optimizer, dtype)
    own = [floor for floor in FLOORS if (floor.workload, floor.optimizer, floor.dtype) == cell]
    if workload == "left_to_torch" or any(floor.against == "best peer" for floor in own):
        return own
    return [*own, Floor(*cell, "best peer", ANYWHERE)]


def verdicts(floors: list[Floor], ratios: Mapping[str, float], share_of_ceiling: float | None) -> list[Verdict]:
    """`ratios`: the time of each peer over ours."""
    return [_verdict(floor, ratios, share_of_ceiling) for floor in floors]


def _verdict(floor: Floor, ratios: Mapping[str, float], share_of_ceiling: float | None) -> Verdict:
    if floor.against == CEILING:
        measured = share_of_ceiling
    else:
        measured = min((ratios[peer] for peer in RIVALS[floor.against] if peer in ratios), default=None)
    return Verdict(floor.against, floor.ratio, measured, None if measured is None else measured >= floor.ratio)
