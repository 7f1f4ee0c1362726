"""``max_grad_norm`` and ``skip_nonfinite`` with torch's operations: what a plan does before it writes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from oxistep.optim._kept import KEY
from oxistep.optim._ranks import Ranks

__all__ = ["guarded_by_torch", "measured_by_torch"]


def guarded_by_torch(
    optimizer: Any, unscale: Callable[[], None] | None, ranks: Ranks | None
) -> tuple[bool, Tensor | None]:
    """Unscales, measures and clips all gradients in place.

    Args:
        optimizer: the optimizer.
        unscale: is called first.
        ranks: over which ranks the norm is summed, if each holds a part.

    Returns:
        Whether the step may be taken (``False``: it is skipped), and the norm, if it was asked for and there are
        gradients.
    """
    from oxistep._clip import _scale_all

    step_it_is, norm, factor = measured_by_torch(optimizer, unscale, ranks)
    if factor != 1.0:
        _scale_all([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None], factor)
    return step_it_is, norm


def measured_by_torch(
    optimizer: Any, unscale: Callable[[], None] | None, ranks: Ranks | None
) -> tuple[bool, Tensor | None, float]:
    """Unscales all gradients in place and measures them.

    Args:
        optimizer: the optimizer.
        unscale: is called first.
        ranks: over which ranks the norm is summed, if each holds a part.

    Returns:
        Whether the step may be taken (``False``: it is skipped), the norm, if it was asked for and there are
        gradients, and what gradients are to be multiplied with.
    """
    from oxistep._clip import _norm_with

    if unscale is not None:
        unscale()
    kept = optimizer.__dict__.get(KEY)
    if kept is None or not kept.guarded:
        return True, None, 1.0
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if ranks is not None:
        value, double = ranks.norm(kept.grad_norm_group, [0.0] * len(ranks.meshes), 0.0, False, grads)
        norm = torch.tensor(value, dtype=torch.float64 if double else torch.float32, device="cpu")
    elif not grads:
        return True, None, 1.0
    else:
        norm = _norm_with(None, grads, grads[0].device)
    if kept.skip_nonfinite and not norm.isfinite():
        return False, norm, 1.0
    if kept.max_grad_norm is not None:
        wide = norm if norm.dtype == torch.float64 else norm.float()
        return True, norm, torch.clamp(kept.max_grad_norm / (wide + 1e-6), max=1.0).item()
    return True, norm, 1.0
