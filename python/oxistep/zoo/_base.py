"""What the optimizers of the zoo have in common: their base class, and the checks of their constructors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

__all__ = ["Answer", "Optimizer", "Params", "answer_of", "checked_betas", "checked_rate"]

Params = Any
"""Tensors, ``(name, tensor)`` pairs, or dicts of parameter groups."""

if TYPE_CHECKING:
    from oxistep.rules import Optimizer as RulesOptimizer
else:
    try:
        from oxistep.rules import Optimizer as RulesOptimizer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise

        class RulesOptimizer:
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


class Asked:
    """In place of parameters: asks a constructor what it makes of its arguments."""


class Answer(Exception):  # noqa: N818 (no error: an answer)
    """What a constructor hands to its base class: the hyperparameters, checked, and the settings."""

    def __init__(self, defaults: dict[str, Any], settings: dict[str, Any]) -> None:
        self.defaults, self.settings = defaults, settings


class Optimizer(RulesOptimizer):
    """Base of the zoo's optimizers: that of all rules, which also tells NumPy's classes what a constructor makes."""

    def __init__(self, params: Params, defaults: dict[str, Any], **settings: Any) -> None:
        if isinstance(params, Asked):
            raise Answer(defaults, settings)
        super().__init__(params, defaults, **settings)


def answer_of(cls: type[Optimizer], arguments: Mapping[str, Any]) -> Answer:
    """What the constructor of a class makes of these arguments; no optimizer is made.

    Raises:
        ValueError: what the constructor raises.
    """
    try:
        cls.__init__(cls.__new__(cls), Asked(), **arguments)
    except Answer as answer:
        return answer
    raise TypeError(f"{cls.__name__} does not hand its hyperparameters to its base class")


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
