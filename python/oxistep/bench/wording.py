"""Results in words: labels, units, rows of tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .layouts import LAYOUTS
from .workloads import STRIDED, UNUSUAL


def strided_label(workload: str) -> str:
    """The layout and the sizes, as in `sliced columns, 64 × 64`."""
    layout, [shape] = workload.rpartition("_")[0], STRIDED[workload].shapes
    return f"{LAYOUTS[layout][0]}, {' × '.join(f'{size:,}' for size in shape)}"


# Workloads as a reader knows them, in the order of the page; sweeps have figures instead.
WORKLOAD_LABELS = {
    "two_scalars": "two scalars",
    "seven": "7 floats",
    "mlp": "MLP 784-256-128-10",
    "lora": "192 LoRA matrices",
    "small_2000": "2,000 tensors of 64",
    "matrices": "12 matrices 256 × 256",
    "resnet50": "ResNet-50",
    "gpt2_small": "GPT-2 small",
    "embedding": "4,096 rows of 1 M × 64",
    "flat_16": "flat 16 Mi",
    "flat": "flat 128 Mi",
    **{name: strided_label(name) for name in STRIDED},
    **{name: f"24 matrices 64 × 64, {label}" for name, label in UNUSUAL.items()},
}


def label(cell: dict[str, Any]) -> str:
    """`optimizer, dtype`, float32 left unsaid."""
    return str(cell["optimizer"]) + ("" if cell["dtype"] == "float32" else f", {cell['dtype']}")


def sections(measured: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cells by workload."""
    found = {title: [c for c in measured if c["workload"] == name] for name, title in WORKLOAD_LABELS.items()}
    return {title: cells for title, cells in found.items() if cells}


def floor_rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every floor with what was measured; the floor of cells without one of their own is left to the count."""
    named = [(c, f) for c in measured if c["workload"] in WORKLOAD_LABELS for f in c["floors"]]
    return [{"workload": WORKLOAD_LABELS[c["workload"]], "cell": label(c)} | f for c, f in named]


def missing(cells: Iterable[dict[str, Any]]) -> list[str]:
    """Each reason once, with the workloads that it holds for."""
    reasons: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, why in cell["missing"].items():
            reasons.setdefault(f"{name}: {why}", {})[WORKLOAD_LABELS.get(cell["workload"], "sweeps")] = None
    return [f"{reason} ({', '.join(where)})" for reason, where in reasons.items()]


def machine(content: dict[str, Any]) -> str:
    where = content["environment"]
    simd = where["cpu_features"]["simd"]
    return (
        f"{where['cpu']} ({simd}) · {where['threads']} threads of {where['cores']} · torch {where['torch']} · "
        f"oxistep {where['oxistep']} · Python {where['python']} · {where['system']} · {where['date']}"
    )


def duration(nanoseconds: float | None) -> str:
    if nanoseconds is None:
        return "–"
    for unit, length in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= length:
            return f"{nanoseconds / length:#.3g} {unit}".replace(". ", " ")
    return f"{nanoseconds:.0f} ns"


def ratio(value: float | None) -> str:
    """Two decimals below ten, none above: more would be noise."""
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def size(exponent: int) -> str:
    """2**exponent elements, as people write it."""
    unit, power = next((u, p) for u, p in (("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0)) if exponent >= p)
    return f"{2 ** (exponent - power)} {unit}".strip()
