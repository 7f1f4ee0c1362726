"""What the optimizers of the zoo have in common: their base class, and the checks of their constructors."""

from typing import TYPE_CHECKING, Any

__all__ = ["Optimizer", "Params", "checked_betas", "checked_rate"]

Params = Any
"""Tensors, ``(name, tensor)`` pairs, or dicts of parameter groups."""

if TYPE_CHECKING:
    from oxistep.rules import Optimizer
else:
    try:
        from oxistep.rules import Optimizer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise

        class Optimizer:
            """In place of ``oxistep.rules.Optimizer`` where torch is not installed: the rules are there all the same,
            for NumPy's arrays.
            """

            def __init__(self, *_: Any, **__: Any) -> None:
                name = type(self).__name__
                raise ModuleNotFoundError(
                    f"oxistep.zoo.{name} needs PyTorch: pip install 'oxistep[torch]' (torch >= 2.10). "
                    f"For NumPy arrays there is oxistep.numpy.zoo.{name}.",
                    name="torch",
                )


def checked_rate(lr: Any, name: str = "learning rate") -> Any:
    """A number that must not be negative.

    Raises:
        ValueError: if it is.
    """
    if isinstance(lr, (int, float)) and lr < 0:  # what is no number the base class refuses
        raise ValueError(f"Invalid {name}: {lr}")
    return lr


def checked_betas(betas: Any) -> Any:
    """Weights of means, which must be at least 0 and below 1.

    Raises:
        ValueError: if one is not.
    """
    for i, beta in enumerate(betas):
        if isinstance(beta, (int, float)) and not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    return betas
