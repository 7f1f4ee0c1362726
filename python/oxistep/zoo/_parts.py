"""Parts that several rules of the zoo have."""

import sys
from typing import Any

from oxistep import rules

__all__ = [
    "begun",
    "below_one",
    "cautious",
    "decay_rate",
    "in_float32",
    "largest_lr",
    "positive_or_zero",
    "refused",
    "trust",
]


def cautious(u: Any, g: Any) -> Any:
    """Caution: of an update the elements that the gradient's sign agrees with, scaled up for those left out.

    Reference:
        Liang, Chen, Liu, Liu, "Cautious Optimizers: Improving Training with One Line of Code", 2024.
    """
    agrees = rules.where(u * g > 0, 1.0, 0.0)
    return u * agrees / rules.maximum(rules.mean(agrees), 1e-3)


def decay_rate(lr: Any, corrected: bool, max_lr: Any) -> Any:
    """What decoupled weight decay is multiplied with: the learning rate, or corrected, its square over the largest.

    Reference:
        Defazio, "Why Gradients Rapidly Increase Near the End of Training", 2025.
    """
    return lr * lr / max_lr if corrected else lr


def largest_lr(lr: Any, corrected: bool) -> float:
    """The constructor's learning rate, kept in the param groups as the largest one.

    Raises:
        ValueError: if it is to correct weight decay and is not positive.
    """
    largest = float(lr)
    if corrected and largest <= 0:
        raise ValueError(
            f"Corrected weight decay requires a positive max lr, got {largest}. Construct the optimizer with the "
            "peak lr."
        )
    return largest


def refused(name: str, value: bool) -> bool:
    """``capturable`` and ``differentiable``, of which False is all that there is.

    Raises:
        ValueError: for True.
    """
    if value:
        outside = {"capturable": "of CUDA graphs", "differentiable": "of autograd"}[name]
        raise ValueError(
            f"{name}=True: the optimizers of oxistep.zoo take their steps outside {outside}; leave it False"
        )
    return value


def positive_or_zero(name: str, value: Any) -> Any:
    """A number that must not be negative, in pytorch_optimizer's words.

    Raises:
        ValueError: if it is.
    """
    if isinstance(value, (int, float)) and value < 0:
        raise ValueError(f"{name} must be non-negative: {value}")
    return value


def below_one(name: str, value: Any) -> Any:
    """The weight of a mean, which must be at least 0 and below 1, in pytorch_optimizer's words.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(value, (int, float)) and not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in the range [0.0, 1.0): {value}")
    return value


def in_float32(state_dtype: Any) -> Any:
    """``state_dtype`` where packages keep the states of half-precision parameters in float32 unasked."""
    torch = sys.modules.get("torch")  # where there are tensors it is there
    return torch.float32 if state_dtype is None and torch is not None else state_dtype


def begun(optimizer: Any, name: str) -> None:
    """Counts one step for parameters that have a state and no counter: packages that need none save none.

    Args:
        optimizer: the optimizer, into which states were loaded.
        name: the state.
    """
    import torch

    for entry in optimizer.state.values():
        if entry.get(name) is not None and "step" not in entry:
            entry["step"] = torch.tensor(1.0)


def trust(p: Any, u: Any, clip: bool) -> Any:
    """What scales an update to the norm of its parameter: 1 if either norm is zero.

    Args:
        p: the parameter.
        u: the update.
        clip: no more than 1.
    """
    of_p, of_u = rules.norm(p), rules.norm(u)
    ratio = rules.where((of_p > 0) & (of_u > 0), of_p / of_u, 1.0)
    return rules.minimum(ratio, 1.0) if clip else ratio
