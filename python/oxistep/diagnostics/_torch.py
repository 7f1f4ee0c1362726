"""What kernels do not serve, by torch's operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oxistep._core import GradientStatistics


@torch.no_grad()
def statistics_of(grad: Tensor, native: GradientStatistics) -> Any:
    """A row of statistics: of a sparse gradient's values, of tensors on other devices and of subclasses."""
    row = np.empty((1, len(native.fields())))
    if grad.layout != torch.strided:
        grad = grad._values() if grad.layout == torch.sparse_coo else grad.values()
    if not native.of_tensors([grad], row, False):
        return row[0]
    whole: Any = grad.full_tensor() if hasattr(grad, "full_tensor") else grad  # of a DTensor
    # MPS has no float64
    wide = torch.float64 if whole.device.type != "mps" else torch.float32
    flat = (torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole).reshape(-1).to(wide)
    finite = flat[flat.isfinite()]
    sizes = finite.abs()
    nonzero = sizes[sizes > 0]
    nan = float("nan")
    some = finite.numel() > 0
    return np.array(
        [
            flat.numel(),
            finite.mean().item() if some else nan,
            finite.var(correction=0).item() if some else nan,
            torch.linalg.vector_norm(finite).item() if some else nan,
            (nonzero.min().item() if nonzero.numel() else 0.0) if some else nan,
            sizes.max().item() if some else nan,
            (flat == 0).sum().item() / flat.numel() if flat.numel() else nan,
            flat.isnan().sum().item(),
            flat.isinf().sum().item(),
        ]
    )


@torch.no_grad()
def norms_of(p: Tensor, old: Tensor) -> Any:
    """Norms of the update, of the parameter before it and of the gradient; NaN without a gradient."""
    grad = p.grad
    if grad is None:
        return np.full(3, np.nan)
    if grad.layout != torch.strided:
        grad = grad.coalesce().values() if grad.layout == torch.sparse_coo else grad.values()
    # float64 is exact here, a difference of half types would not be
    wide = old if old.device.type == "mps" else old.to(torch.complex128 if old.is_complex() else torch.float64)
    return np.array([_norm(p.detach() - wide), _norm(old), _norm(grad)])


def _norm(x: Tensor) -> float:
    whole: Any = x.full_tensor() if hasattr(x, "full_tensor") else x  # of a DTensor
    wide = torch.complex128 if whole.is_complex() else torch.float64
    if whole.device.type == "mps":  # which has no float64
        return float(torch.linalg.vector_norm(whole))
    return float(torch.linalg.vector_norm(whole, dtype=wide).real)
