"""autograd's derivatives and differences of torch functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

if TYPE_CHECKING:
    from oxistep.diagnostics.check import Pair, Place, _Inputs


def wide(value: Tensor) -> Tensor:
    """A float64 copy, a leaf of its own."""
    if not value.is_floating_point():
        raise TypeError(f"x: expected tensors of real floating-point numbers, got {value.dtype}")
    return value.detach().to(torch.float64, copy=True)


def derivatives(
    function: Callable[..., Any], inputs: _Inputs, places: list[Place], step: float | None
) -> Iterator[Pair]:
    """Pairs of autograd's derivatives and differences, for every element of the output."""
    from oxistep.diagnostics.check import rounding_of, step_for

    leaves = [value.requires_grad_() for value in map(wide, inputs.values)]
    outputs = _outputs(inputs.call(function, list(leaves)))
    shapes = [tuple(output.shape) for output in outputs]
    flat = torch.cat([output.reshape(-1) for output in outputs])
    rows = []
    for output in flat:
        grads: tuple[Any, ...] = (None,) * len(leaves)
        if output.requires_grad:
            grads = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)])
    names = _output_places(shapes)
    with torch.no_grad():
        for k, index in places:
            value = inputs.values[k]
            before = value[index].item()
            ahead, behind, distance = step_for(before, step)
            try:
                value[index] = ahead
                f_ahead = torch.cat([output.reshape(-1) for output in _outputs(inputs.call(function))])
                value[index] = behind
                f_behind = torch.cat([output.reshape(-1) for output in _outputs(inputs.call(function))])
            finally:
                value[index] = before
            numeric = ((f_ahead - f_behind) / distance).tolist()
            sizes = torch.maximum(f_ahead.abs(), f_behind.abs()).tolist()
            for o, (place, difference, size) in enumerate(zip(names, numeric, sizes, strict=True)):
                analytic = rows[o][k][index].item()
                yield inputs.names[k], index, place, analytic, difference, rounding_of(size, distance)


def gradcheck_message(
    function: Callable[..., Any],
    inputs: _Inputs,
    tolerances: tuple[float, float | None],
    step: float | None,
    fast: bool,
) -> str:
    """What `torch.autograd.gradcheck` objects to; empty if nothing. `fast`: in one random direction."""
    rtol, atol = tolerances
    leaves = tuple(value.requires_grad_() for value in map(wide, inputs.values))
    try:
        torch.autograd.gradcheck(
            lambda *values: tuple(_outputs(inputs.call(function, list(values)))),
            leaves,
            eps=1e-6 if step is None else step,
            atol=1e-5 if atol is None else atol,
            rtol=max(rtol, 1e-3),  # its own, larger step is bent more
            fast_mode=fast,
        )
    except GradcheckError as error:
        return str(error).partition("\nnumerical:")[0].strip().rstrip(",")  # whole matrices follow
    return ""


def _outputs(value: Any) -> list[Tensor]:
    outputs = list(value) if isinstance(value, (tuple, list)) else [value]
    for output in outputs:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"function must give tensors of real floating-point numbers, got {kind}")
    return outputs


def _output_places(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
    """Where each element of the outputs stands: its index, after the place of the output if there are several."""
    places: list[tuple[int, ...] | None] = []
    for k, shape in enumerate(shapes):
        for index in (
            torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist() if shape else [[]]
        ):
            places.append((k, *index) if len(shapes) > 1 else tuple(index))
    return [None] if places == [()] else places
