"""Where the elements of parameters and gradients lie in memory, when not simply one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # helps list workloads where torch is missing
    import torch

Shape = tuple[int, ...]

# Name -> label, how the parameter lies, how the gradient does. Of a slice, autograd makes a contiguous gradient.
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "sliced_columns": ("sliced columns", "sliced columns", "contiguous"),
    "second_rows": ("every second row", "second rows", "contiguous"),
    "second_columns": ("every second column", "second columns", "contiguous"),
    "transposed_gradient": ("transposed gradient", "contiguous", "transposed"),
    "channels_last_gradient": ("channels_last gradient", "contiguous", "channels last"),
    "channels_last_parameter": ("channels_last parameter", "channels last", "contiguous"),
}


def shapes(layout: str) -> dict[str, Shape]:
    """A small, a medium and a large parameter; torch knows channels_last in four dimensions."""
    if layout.startswith("channels_last"):
        return {"small": (32, 16, 3, 3), "medium": (256, 128, 3, 3), "large": (1024, 512, 3, 3)}
    return {"small": (64, 64), "medium": (512, 512), "large": (2048, 2048)}


def empty(shape: Shape, lies: str, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of this shape that lies in memory like this."""
    import torch

    if lies == "contiguous":
        return torch.empty(shape, dtype=dtype)
    if lies == "channels last":
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    rows, columns = shape
    if lies == "sliced columns":
        return torch.empty(rows, 2 * columns, dtype=dtype)[:, :columns]
    if lies == "second rows":
        return torch.empty(2 * rows, columns, dtype=dtype)[::2]
    if lies == "second columns":
        return torch.empty(rows, 2 * columns, dtype=dtype)[:, ::2]
    if lies == "transposed":
        return torch.empty(columns, rows, dtype=dtype).t()
    raise ValueError(f"no layout is called {lies!r}")
