"""DTensors: whether the steps of all processes on their local shards are the step on the whole, and the states.

Imported only when a DTensor has been met.
"""

import math
import zlib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from oxistep import _core

__all__ = ["blocks_of_shards", "differs", "first_element", "in_shards", "refuse_cut"]

# Placements where each element is whole on one process at least.
_WHOLE = (Shard, Replicate, _StridedShard)


_BLOCK = _core.block_of_codes()


def differs(spec: DTensorSpec, other: DTensorSpec, what: str, are_headers: bool = False) -> str | None:
    """Why the shards of a parameter and of another tensor do not belong together.

    Args:
        spec: the parameter's specification.
        other: that of its gradient, or of a state.
        what: what the other one is called in the reason.
        are_headers: it has the headers of a state in codes.

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
    if are_headers and tuple(other.shape) != (needed := _cut(spec).headers):
        return f"{what} has the shape {tuple(other.shape)}, where the parameter's shards need {needed}"
    if not are_headers and other.shape != spec.shape:
        return f"{what} has another shape than the parameter"
    return None


def in_shards(
    p: DTensor, grad: DTensor, state: dict[str, Any], scalars: Iterable[str], headers: Collection[str] = ()
) -> dict[str, Any]:
    """States that were made for the local shards, as DTensors; all but ``scalars``. Nothing is communicated.

    Args:
        p: the parameter.
        grad: its gradient.
        state: the states, and what stands beside them.
        scalars: the names of what is the same on all processes.
        headers: the names of headers of states in codes.
    """
    return {
        key: value if key in scalars else _placed_headers(p, value) if key in headers else _placed(p, grad, value)
        for key, value in state.items()
    }


# ---- states in codes ----
#
# A block of 256 codes has a header, and belongs to one shard. Codes have the parameter's shape and placements. Headers
# have the same placements and one row for each shard: a tensor that two processes of a mesh cut along its first
# dimension has headers of the shape (2, 1, n). So torch.distributed.checkpoint gives each process its own back, and
# finds another size where there are more or fewer shards, which have other blocks. What size does not tell, as whether
# rows or columns were cut, the last header of each row does. (Plain tensors would be taken for copies: all processes
# would be given those of the first.)


def blocks_of_shards(p: DTensor, least: int, *, estimates: bool = False) -> int:
    """How many headers a state of each local shard has, if it is kept in codes; 0: it is kept as numbers.

    All processes come to the same: a state must not be codes here and numbers there.

    Raises:
        RuntimeError: if the shards do not lie as the specification says.
    """
    (shape, largest, _), local = _cut(p._spec), p._local_tensor
    if largest < least or not p.is_contiguous():
        return 0
    if not estimates and (local.numel() > (shape[-1] - 1) * _BLOCK or not local.is_contiguous()):
        raise RuntimeError(
            f"state_dtype='8bit': expected the local shard of a DTensor of shape {tuple(p.shape)} to be contiguous and "
            f"to have at most {largest} elements, as {_told(p._spec)} cuts it; got {tuple(local.shape)} with "
            f"strides {local.stride()}. Make the DTensor with distribute_tensor, or give state_dtype=torch.bfloat16; "
            "nothing was updated"
        )
    return shape[-1]


def refuse_cut(p: DTensor, name: str, value: Tensor, are_headers: bool = False) -> None:
    """Refuses a loaded state, or what stands beside a parameter, that belongs to other shards than the parameter's.

    Raises:
        ValueError: saying which, and how a checkpoint goes from some shards to others.
    """
    if not isinstance(value, DTensor):
        told = f"expected a DTensor, since its parameter is one, got a plain tensor of shape {tuple(value.shape)}"
    elif (reason := differs(p._spec, value._spec, "it", are_headers)) is not None:
        told = f"expected what belongs to the shards of its parameter, {_told(p._spec)} on {_mesh(p._spec)}: {reason}"
    elif are_headers and value._local_tensor.numel() and value._local_tensor.flatten()[-1] != _cut(p._spec).tag:
        told = f"expected blocks of the shards of its parameter, {_told(p._spec)}, got those of shards cut otherwise"
    elif not are_headers and value._local_tensor.shape != p._local_tensor.shape:
        told = f"expected a local shard of shape {tuple(p._local_tensor.shape)}, got {tuple(value._local_tensor.shape)}"
    else:
        return
    raise ValueError(
        f"load_state_dict: state {name!r}: {told}. To go from some shards to others, save what "
        "oxistep.plain_state_dict(optimizer) returns with torch.distributed.checkpoint, and load that"
    )


class _Cut(NamedTuple):
    """How a tensor is cut into shards."""

    headers: tuple[int, ...]
    """The shape of headers: a row for each shard, with room for those of the largest, and for the tag."""
    largest: int
    """The elements of the largest shard."""
    tag: float
    """A number that another cut has not: of 24 bits, which float32 holds."""


def _cut(spec: DTensorSpec) -> _Cut:
    return _cut_of(tuple(spec.shape), tuple(spec.mesh.shape), tuple(spec.placements))


@lru_cache(maxsize=4096)
def _cut_of(shape: tuple[int, ...], mesh: tuple[int, ...], placements: tuple[Any, ...]) -> _Cut:
    # dimensions of the mesh whose processes hold the same cut nothing
    pairs = [(p, n) for p, n in zip(placements, mesh, strict=True) if isinstance(p, (Shard, _StridedShard)) and n > 1]
    rows, sizes = [1] * len(shape), list(shape)
    for placement, n in pairs:
        rows[placement.dim] *= n
        sizes[placement.dim] = -(-sizes[placement.dim] // n)
    largest = math.prod(sizes)
    tag = float(zlib.crc32(repr([(str(placement), n) for placement, n in pairs]).encode()) & 0xFFFFFF)
    return _Cut((*rows, -(-largest // _BLOCK) + 1), largest, tag)


def _placed_headers(p: DTensor, local: Tensor) -> DTensor:
    """The headers of a state in codes, given those of the local shard."""
    cut = _cut(p._spec)
    shape = torch.Size(cut.headers)
    strides = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    spec = p._spec.shallow_copy_with_tensor_meta(TensorMeta(shape, strides, local.dtype))
    own = local.view(*[1] * p.dim(), local.numel())
    if own.numel():  # a process outside the mesh holds none
        own.select(-1, -1).fill_(cut.tag)
    return DTensor(own, spec, requires_grad=False)


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


def _mesh(spec: DTensorSpec) -> str:
    return f"a mesh of shape {tuple(spec.mesh.shape)}"


def _told(spec: DTensorSpec) -> str:
    return f"({', '.join(map(str, spec.placements))})"
