"""Is a result right? Parameters and states against those of torch's for-loop."""

from __future__ import annotations

from typing import Any

import torch

from .implementations import Parameters

# Relative and absolute. The half types are wide because torch's own paths differ that much: the
# for-loop rounds after each operator (half a unit of 2**-8 or 2**-11 each time), the fused kernels
# once per step. Still far below what three steps change (1e-3 and more): a step that does nothing is seen.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.bfloat16: (2**-6, 2e-4),
    torch.float16: (2**-9, 1e-4),
}
# With clipping the gradient is multiplied by a norm's inverse, and torch sums norms in the gradients' type: over the
# 124 M gradients of GPT-2 small it was found 9e-4 too small (oxistep's 3e-8), and the mean of squares doubles that.
CLIPPED = (3e-3, 1e-6)
COMPARED_AT_ONCE = 2**22  # elements; comparing a flat tensor must not need another one


def difference(
    actual: Any, parameters: Parameters, expected: Any, expected_values: list[torch.Tensor], clipped: bool = False
) -> str | None:
    """What differs, or None. `expected` is the reference optimizer; its parameters may be shared.

    State names that only the reference knows are an error for torch's own classes and oxistep, not
    for others, which keep what they like.
    """
    same_names = isinstance(actual, torch.optim.Optimizer) and _is_drop_in(actual)
    rows = zip(parameters, expected.param_groups[0]["params"], expected_values, strict=True)
    for index, (parameter, reference, value) in enumerate(rows):
        if not close(parameter.detach(), value, clipped):
            return f"parameter {index} differs from the for-loop's"
        state = actual.state.get(parameter, {})
        for key, reference_state in expected.state.get(reference, {}).items():
            if key not in state:
                if same_names:
                    return f"state {key!r} of parameter {index} is missing"
                continue
            if not isinstance(reference_state, torch.Tensor):
                continue
            if not close(torch.as_tensor(state[key]), reference_state, clipped):
                return f"state {key!r} of parameter {index} differs from the for-loop's"
    return None


def close(actual: torch.Tensor, expected: torch.Tensor, clipped: bool = False) -> bool:
    if actual.shape != expected.shape:
        return False
    if not expected.dtype.is_floating_point:  # a counter
        return torch.equal(actual, expected)
    relative, absolute = CLIPPED if clipped and expected.dtype == torch.float32 else TOLERANCES[expected.dtype]
    pairs = zip(
        torch.split(actual.reshape(-1), COMPARED_AT_ONCE),
        torch.split(expected.reshape(-1), COMPARED_AT_ONCE),
        strict=True,
    )
    return all(torch.allclose(a.to(e.dtype), e, rtol=relative, atol=absolute) for a, e in pairs)


def _is_drop_in(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.split(".")[0] in ("torch", "oxistep")
