"""autograd's derivatives and differences of torch functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

if TYPE_CHECKING:
    from oxistep.diagnostics.check import GradientEntry, Place, _Compare, _Inputs


def wide(value: Tensor) -> Tensor:
    """A float64 copy, a leaf of its own."""
    if not value.is_floating_point():
        raise TypeError(f"x: expected tensors of real floating-point numbers, got {value.dtype}")
    return value.detach().to(torch.float64, copy=True)


def entries(
    function: Callable[..., Any], inputs: _Inputs, places: list[Place], compare: _Compare
) -> Iterator[GradientEntry]:
    """autograd's derivatives compared with differences, for every element of the output."""
    leaves = [value.requires_grad_() for value in map(wide, inputs.values)]
    found = _outputs(inputs.call(function, list(leaves)))
    rows = []
    for output in torch.cat([output.reshape(-1) for output in found]):
        grads: tuple[Any, ...] = (None,) * len(leaves)
        if output.requires_grad:
            grads = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)])
    names = _output_places([tuple(output.shape) for output in found])

    def outputs() -> Any:
        return torch.cat([output.reshape(-1) for output in _outputs(inputs.call(function))]).double().cpu().numpy()

    with torch.no_grad():
        for k, index in places:
            claimed = torch.stack([row[k][index] for row in rows]).double().cpu().numpy()
            x = inputs.values[k][index].item()
            yield from compare.entries(inputs.along(k, index, outputs), x, claimed, inputs.names[k], index, names)


def gradcheck_message(
    function: Callable[..., Any],
    inputs: _Inputs,
    compare: _Compare,
    fast: bool,
) -> str:
    """What `torch.autograd.gradcheck` objects to; empty if nothing. `fast`: in one random direction."""
    leaves = tuple(value.requires_grad_() for value in map(wide, inputs.values))
    try:
        torch.autograd.gradcheck(
            lambda *values: tuple(_outputs(inputs.call(function, list(values)))),
            leaves,
            eps=1e-6 if compare.step is None else compare.step,
            atol=1e-5 if compare.atol is None else compare.atol,
            rtol=max(compare.rtol, 1e-3),  # its own, larger step is bent more
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
