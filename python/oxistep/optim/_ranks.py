"""The norm of gradients of which each rank holds a part.

Every rank sends what its own parts come to, and whether it can take the step at all; all of them reduce that together
and decide alike. A rank that fails before says so in the same reduction, so that the others do not wait for it.
"""

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from oxistep.optim._kept import KEY

__all__ = ["Ranks", "call_off", "joining", "ranks_of", "refuse_unsaid_parts"]

# What a rank sends: its sum of squares (for other norms of absolute values, or the largest of them); whether gradients
# that all ranks hold are infinite or NaN on this one; whether it cannot step; whether it has gradients of float64.
_OWN, _INFINITE, _NAN, _FAILED, _DOUBLE = range(5)


class Ranks:
    """Over which ranks the gradients of an optimizer are summed.

    Args:
        specs: the specifications of its DTensors, in the order of the parameters, which is the same on all ranks.
    """

    def __init__(self, specs: list[Any]) -> None:
        self.meshes: list[Any] = []
        """The meshes, in the order in which they are reduced."""
        self.shares = [self._share(spec) for spec in specs]
        """For each DTensor the place of its mesh; -1 where another rank counts, which holds a replica."""
        self.joined = False
        """Whether this step's reductions were begun."""

    def norm(
        self, group: Any, norms: list[float], plain: float, double: bool, others: list[Tensor], order: float = 2.0
    ) -> tuple[float, bool]:
        """The norm of all gradients, the same on every rank.

        Args:
            group: ``grad_norm_group``.
            norms: of each mesh, the norm of what counts of its local shards.
            plain: the norm of all that is no DTensor.
            double: whether one of these gradients is of float64.
            others: gradients that were not measured yet.
            order: 1, 2 or infinity, which no group but meshes can reduce.

        Returns:
            The norm, and whether any rank has gradients of float64.

        Raises:
            RuntimeError: if another rank cannot take the step.
        """
        try:
            norms, plain = self._with(others, norms, plain, order)
            double |= any(t.dtype in (torch.float64, torch.complex128) for t in others)
        except BaseException:
            self.call_off(group)
            raise
        values, double, failed = self._reduced(group, norms, plain, double, failed=False, order=order)
        if failed:
            raise RuntimeError(
                "another rank cannot take this step, and says why; no rank has taken it, and nothing was updated"
            )
        return values, double

    def call_off(self, group: Any) -> None:
        """Tells the other ranks, instead of a norm, that this one cannot take the step."""
        if not self.joined:
            self._reduced(group, [0.0] * len(self.meshes), 0.0, False, failed=True, order=2.0)

    def _share(self, spec: Any) -> int:
        mesh = spec.mesh
        place = next((i for i, known in enumerate(self.meshes) if known is mesh or known == mesh), len(self.meshes))
        if place == len(self.meshes):
            self.meshes.append(mesh)
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            return -1
        first = (c == 0 for c, placement in zip(coordinate, spec.placements, strict=True) if placement.is_replicate())
        return place if all(first) else -1

    def _with(self, others: list[Tensor], norms: list[float], plain: float, order: float) -> tuple[list[float], float]:
        """The norms, with those of ``others``."""
        norms, both = list(norms), _BOTH[order]
        for grad in others:
            spec: Any = getattr(grad, "_spec", None)
            place = -1
            if spec is None:
                plain = both(plain, _norm(grad, order))
            elif any(placement.is_partial() for placement in spec.placements) or spec.mesh not in self.meshes:
                plain = both(plain, _norm(grad.full_tensor(), order))  # type: ignore[attr-defined]
            elif (place := self._share(spec)) >= 0:
                norms[place] = both(norms[place], _norm(grad._local_tensor, order))  # type: ignore[attr-defined]
        return norms, plain

    def _reduced(
        self, group: Any, norms: list[float], plain: float, double: bool, *, failed: bool, order: float
    ) -> tuple[float, bool, bool]:
        """The norm of all, whether any rank has float64, and whether any cannot step."""
        self.joined = True
        own = 0.0 if group is not None else plain  # what every rank holds is not summed, but must be finite on all
        sent = [norm * norm if order == 2 else norm for norm in norms]
        sums = [_payload(x, own, double, failed) for x in sent]
        reducers: list[Callable[[Tensor], Tensor]] = [
            _over_mesh(mesh, largest=order == math.inf) for mesh in self.meshes
        ]
        if group is not None:
            sums.append(_payload(plain * plain, 0.0, double, failed))
            reducers.append(_over_group(group))
        reduced = [reduce(payload).tolist() for reduce, payload in zip(reducers, sums, strict=True)]
        total = 0.0 if group is not None else plain
        for payload in reduced:
            total = _BOTH[order](total, math.sqrt(payload[_OWN]) if order == 2 else payload[_OWN])
        # beside an infinity, or a larger number, a NaN may go unseen; all ranks are to say the same
        if math.isnan(plain) or any(payload[_NAN] or math.isnan(payload[_OWN]) for payload in reduced):
            total = math.nan
        elif any(payload[_INFINITE] for payload in reduced):
            total = math.inf
        return total, any(p[_DOUBLE] for p in reduced), any(p[_FAILED] for p in reduced)


def ranks_of(optimizer: Any) -> Ranks | None:
    """What the gradients of an optimizer are summed over; None if this rank holds them all."""
    specs = []
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        specs = [p._spec for group in optimizer.param_groups for p in group["params"] if type(p) is DTensor]
    return Ranks(specs) if specs or _group_of(optimizer) is not None else None


def call_off(optimizer: Any) -> None:
    """Tells the other ranks that this one cannot take a step of which the norm is reduced."""
    ranks = ranks_of(optimizer)
    if ranks is not None:
        ranks.call_off(_group_of(optimizer))


@contextmanager
def joining(optimizer: Any) -> Iterator[Ranks | None]:
    """What is done before the norm of a step is reduced. If it raises, the other ranks are told."""
    kept = optimizer.__dict__.get(KEY)
    ranks = ranks_of(optimizer) if kept is not None and kept.guarded else None
    try:
        yield ranks
    except BaseException:
        if ranks is not None:
            ranks.call_off(_group_of(optimizer))
        raise


# Modules whose code steps an optimizer that holds a part of the parameters, with what they are called and what clips.
_SHARDERS = {
    "torch.distributed.optim.zero_redundancy_optimizer": ("ZeroRedundancyOptimizer", "clip by clip_grad_norm_ before"),
    "deepspeed.runtime.zero.stage_1_and_2": ("DeepSpeed's ZeRO", "set gradient_clipping in DeepSpeed's configuration"),
    "deepspeed.runtime.zero.stage3": ("DeepSpeed's ZeRO", "set gradient_clipping in DeepSpeed's configuration"),
    "deepspeed.runtime.bf16_optimizer": ("DeepSpeed", "set gradient_clipping in DeepSpeed's configuration"),
}
# A wrapper's step lies no more calls above the optimizer's own.
_CALLS = 30


def refuse_unsaid_parts(optimizer: Any) -> None:
    """At the first step of which the norm is taken: refuses where each rank has a part of it, and nothing says so.

    Raises:
        RuntimeError: if parameters are flat shards of FSDP1, or a wrapper that shards is taking the step.
    """
    if _group_of(optimizer) is not None or not dist.is_available():
        return
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    who, instead = _sharder() or _fsdp1(optimizer) or (None, "")
    if who is not None:
        raise RuntimeError(
            f"max_grad_norm and skip_nonfinite: {who} gives each rank's optimizer a part of the parameters, whose norm "
            "is not the norm of all gradients. Give grad_norm_group='world' to the constructor (or the process group "
            f"that shares the parameters), or {instead}; nothing was updated"
        )


def _sharder() -> tuple[str, str] | None:
    frame = sys._getframe(1)
    for _ in range(_CALLS):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        if (found := _SHARDERS.get(frame.f_globals.get("__name__", ""))) is not None:
            return found
    return None


def _fsdp1(optimizer: Any) -> tuple[str, str] | None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        whole = getattr(p, "_unpadded_unsharded_size", None)
        if whole is not None and whole.numel() > p.numel():
            return "FSDP1", "call the FSDP module's clip_grad_norm_"
    if any(getattr(p, "_fsdp_flattened", False) and not hasattr(p, "_unpadded_unsharded_size") for p in params):
        # of original parameters it cannot be told whether they are sharded
        warnings.warn(
            "max_grad_norm and skip_nonfinite: if FSDP1 shards these parameters (any strategy but NO_SHARD), give "
            "grad_norm_group='world' to the constructor, or the process group that shares the parameters: else each "
            "rank clips by the norm of its part",
            stacklevel=2,
        )
    return None


def _group_of(optimizer: Any) -> Any:
    kept = optimizer.__dict__.get(KEY)
    return None if kept is None else kept.grad_norm_group


def _norm(t: Tensor, order: float) -> float:
    if not t.numel():
        return 0.0
    half = t.dtype in (torch.float16, torch.bfloat16)
    with torch.no_grad():
        norm: float = torch.linalg.vector_norm(t.float() if half else t, order).item()
    return norm


# The norm of two vectors as one, given theirs.
_BOTH: dict[float, Callable[[float, float], float]] = {
    1.0: lambda a, b: a + b,
    2.0: math.hypot,
    math.inf: lambda a, b: a if a >= b or math.isnan(a) else b,
}


def _payload(own: float, plain: float, double: bool, failed: bool) -> Tensor:
    sent = [own, math.isinf(plain), math.isnan(own + plain), failed, double]  # the largest of numbers may hide a NaN
    return torch.tensor(list(map(float, sent)), dtype=torch.float64, device="cpu")


def _over_mesh(mesh: Any, *, largest: bool) -> Callable[[Tensor], Tensor]:
    operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM

    def reduce(payload: Tensor) -> Tensor:
        if mesh.get_coordinate() is None:
            return payload
        for dim in range(mesh.ndim):
            if mesh.size(dim) > 1:
                payload = _all_reduce(payload, mesh.get_group(dim), operation)
        return payload

    return reduce


def _over_group(group: Any) -> Callable[[Tensor], Tensor]:
    def reduce(payload: Tensor) -> Tensor:
        if callable(group):
            summed = group(payload)
            return summed if isinstance(summed, Tensor) else payload
        if group == "world":
            return _all_reduce(payload, None) if dist.is_available() and dist.is_initialized() else payload
        return _all_reduce(payload, group)

    return reduce


def _all_reduce(payload: Tensor, group: Any, operation: Any = None) -> Tensor:
    """The sum (or what ``operation`` says) over a process group; on another device where its backend knows no CPU."""
    devices = (dist.distributed_c10d._get_default_group() if group is None else group)._device_types
    device = torch.device("cpu") if not devices or torch.device("cpu") in devices else devices[0]
    moved = payload.to(device)
    dist.all_reduce(moved, dist.ReduceOp.SUM if operation is None else operation, group=group)
    return moved.cpu()
