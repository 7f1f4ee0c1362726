"""Workloads: named lists of parameter shapes. Only the shapes matter to an optimizer step."""

from __future__ import annotations

from itertools import pairwise
from math import prod

Shape = tuple[int, ...]


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


WORKLOADS: dict[str, list[Shape]] = {
    "two_scalars": [(), ()],
    "seven": [(7,)],
    "mlp": mlp(784, 256, 128, 10),
    "lora": lora(),
    "small_2000": [(64,) for _ in range(2000)],
    "resnet50": resnet50(),
    "gpt2_small": gpt2_small(),
    "flat_16": [(2**24,)],  # what --quick takes for `flat`
    "flat": [(2**27,)],
}


def parameters(shapes: list[Shape]) -> int:
    return sum(prod(shape) for shape in shapes)
