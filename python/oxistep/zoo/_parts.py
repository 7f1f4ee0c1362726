"""Parts that several rules of the zoo have."""

from typing import Any

from oxistep import rules

__all__ = ["cautious", "decay_rate", "largest_lr", "trust"]


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
