"""Workloads: named lists of parameter shapes. Only the shapes matter to an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from .layouts import LAYOUTS, Shape, shapes

DTYPES = ["float32", "float64", "bfloat16", "float16"]


def mlp(*widths: int) -> list[Shape]:
    """Weight and bias of each linear layer."""
    shapes: list[Shape] = []
    for inputs, outputs in pairwise(widths):
        shapes += [(outputs, inputs), (outputs,)]
    return shapes


def lora() -> list[Shape]:
    """Rank 8 beside 96 square matrices of width 768."""
    pair: list[Shape] = [(8, 768), (768, 8)]
    return 96 * pair


def resnet50() -> list[Shape]:
    """torchvision's ResNet-50: 161 tensors, 25,557,032 parameters."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # and its batch norm

    shapes = convolution(64, 3, 7)
    inputs = 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        outputs = 4 * width
        for block in range(blocks):
            shapes += convolution(width, inputs, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(outputs, width, 1)
            if block == 0:
                shapes += convolution(outputs, inputs, 1)  # the projection of the shortcut
            inputs = outputs
    return [*shapes, (1000, inputs), (1000,)]


def gpt2_small() -> list[Shape]:
    """GPT-2 small with tied embeddings: 148 tensors, 124,439,808 parameters."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    block = [
        *norm,
        *linear(width, 3 * width),
        *linear(width, width),
        *norm,
        *linear(width, 4 * width),
        *linear(4 * width, width),
    ]
    return [(50257, width), (1024, width), *(12 * block), *norm]


@dataclass(frozen=True)
class Workload:
    """Shapes of the parameters; with `rows`, gradients are sparse and name that many rows of each.

    `parameter_lies` and `gradient_lies`: where their elements are in memory (`layouts.py`). `kind`: what else is
    unusual about them (`unusual.py`).
    """

    shapes: list[Shape]
    rows: int | None = None
    parameter_lies: str = "contiguous"
    gradient_lies: str = "contiguous"
    kind: str = ""

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes)

    @property
    def touched(self) -> int:
        """Elements that a step updates."""
        return self.parameters if self.rows is None else sum(self.rows * prod(shape[1:]) for shape in self.shapes)


# One tensor of 2**k elements, and n tensors of 64: what a step costs against either number.
SIZES = {f"size_{k}": k for k in (*range(0, 28, 2), 28)}
TENSORS = {f"tensors_{n}": n for n in (1, 3, 10, 30, 100, 300, 1000, 3000)}
# One tensor of each layout and size.
STRIDED = {
    f"{layout}_{size}": Workload([shape], None, parameter_lies, gradient_lies)
    for layout, (_, parameter_lies, gradient_lies) in LAYOUTS.items()
    for size, shape in shapes(layout).items()
}

# Parameters that are not simply plain tensors with plain counters (`unusual.py`).
UNUSUAL = {
    "tied_weights": "weights tied through .data",
    "subclasses": "subclasses of Parameter",
    "integer_counters": "int64 counters",
    "left_to_torch": "left to torch",
}
# Two dozen matrices that torch's step takes as they are.
ODD = {kind: Workload([(64, 64) for _ in range(24)], kind=kind) for kind in UNUSUAL}

WORKLOADS: dict[str, Workload] = {
    "two_scalars": Workload([(), ()]),
    "seven": Workload([(7,)]),
    "mlp": Workload(mlp(784, 256, 128, 10)),
    "lora": Workload(lora()),
    "small_2000": Workload([(64,) for _ in range(2000)]),
    "resnet50": Workload(resnet50()),
    "gpt2_small": Workload(gpt2_small()),
    "matrices": Workload([(256, 256) for _ in range(12)]),  # for what takes only matrices
    "embedding": Workload([(10**6, 64)], rows=4096),
    "flat_16": Workload([(2**24,)]),  # what --quick takes for `flat`
    "flat": Workload([(2**27,)]),
    **{name: Workload([(2**k,)]) for name, k in SIZES.items()},
    **{name: Workload([(64,) for _ in range(n)]) for name, n in TENSORS.items()},
    **STRIDED,
    **ODD,
}
