"""DTensors: whether the steps of all processes on their local shards are the step on the whole, and the states.

Imported only when a DTensor has been met.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

__all__ = ["differs", "first_element", "in_shards"]

# Placements where each element is whole on one process at least.
_WHOLE = (Shard, Replicate, _StridedShard)


def differs(spec: DTensorSpec, other: DTensorSpec, what: str) -> str | None:
    """Why the shards of a parameter and of another tensor do not belong together.

    Args:
        spec: the parameter's specification.
        other: that of its gradient, or of a state.
        what: what the other one is called in the reason.

    Returns:
        The reason; None if they hold the same elements on each process.
    """
    for placement in spec.placements:
        if type(placement) not in _WHOLE:
            return f"the parameter is a DTensor with the placement {placement}"
    if other is spec:
        return None
    if other.mesh != spec.mesh:
        return f"{what} is a DTensor on another mesh than the parameter"
    if other.placements != spec.placements or _order(other) != _order(spec):
        return f"{what} is a DTensor placed as {_told(other)}, the parameter as {_told(spec)}"
    if other.shape != spec.shape:
        return f"{what} has another shape than the parameter"
    return None


def in_shards(p: DTensor, grad: DTensor, state: dict[str, Any], scalars: Iterable[str]) -> dict[str, Any]:
    """States that were made for the local shards, as DTensors; all but ``scalars``. Nothing is communicated."""
    return {key: value if key in scalars else _placed(p, grad, value) for key, value in state.items()}


def first_element(p: DTensor) -> int:
    """Which element of the whole comes first in the local shard, where that lies in one piece in the whole.

    Elsewhere (not cut along the first dimension alone) a number so far from those of other shards that no two share
    one.
    """
    shape, cut = p.shape, [i for i, placement in enumerate(p.placements) if not isinstance(placement, Replicate)]
    numel = math.prod(shape)
    placements = [p.placements[i] for i in cut]
    if all(type(placement) is Shard and placement.dim == 0 for placement in placements):
        _, offset = compute_local_shape_and_global_offset(shape, p.device_mesh, p.placements)
        return offset[0] * math.prod(shape[1:]) if offset else 0
    coordinate: Sequence[int] = p.device_mesh.get_coordinate() or ()
    place = 0
    for i in cut:
        place = place * p.device_mesh.size(i) + (coordinate[i] if coordinate else 0)
    return place * numel % 2**63


def _placed(p: DTensor, grad: DTensor, local: Tensor) -> DTensor:
    """A state of ``p``, given its local shard. It has the strides of the parameter, or of its gradient."""
    like = p if local.stride() == p._local_tensor.stride() else grad
    spec = like._spec
    if spec.tensor_meta is not None and spec.tensor_meta.dtype != local.dtype:
        meta = TensorMeta(spec.tensor_meta.shape, spec.tensor_meta.stride, local.dtype)
        spec = spec.shallow_copy_with_tensor_meta(meta)
    return DTensor(local, spec, requires_grad=False)


def _order(spec: DTensorSpec) -> Any:
    """In which order a dimension is cut that several dimensions of the mesh cut; older torch's have no such choice."""
    return getattr(spec, "shard_order", None)


def _told(spec: DTensorSpec) -> str:
    return f"({', '.join(map(str, spec.placements))})"
