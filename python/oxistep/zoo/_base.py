"""What the optimizers of the zoo have in common: their base class, and the checks of their constructors."""

import math
from collections.abc import Iterable, Iterator, Mapping
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
                    f"oxistep.zoo.{name} needs PyTorch: pip install 'torch>=2.10'. "
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

    # What mixins that know neither torch nor NumPy ask for.

    def _zoo_entries(self) -> Iterator[tuple[dict[str, Any], Any, dict[str, Any]]]:
        """Each parameter with its group and its states; makes no entry in ``state``."""
        for group in self.param_groups:
            for p in group["params"]:
                yield group, p, self.state[p] if p in self.state else {}

    def _zoo_refuse_in_averaged(self, method: str) -> None:
        """Refuses to move parameters where they are their averages."""
        from oxistep.optim._digits import refuse_in_averaged

        refuse_in_averaged(self, method)

    def _zoo_lerp(self, p: Any, end: Any, weight: float) -> None:
        """``p`` becomes ``lerp(p, end, weight)`` in place, rounded once."""
        import torch

        from oxistep.optim._digits import keeps_digits, now, write

        with torch.no_grad():
            end = end.to(p.device)
            if keeps_digits(self):
                write(self, p, torch.lerp(now(self, p), end.float(), weight))
            elif end.dtype == p.dtype:
                p.lerp_(end, weight)
            else:  # of the states' own dtype
                p.copy_(torch.lerp(p.to(end.dtype), end, weight))

    def _zoo_is_zero(self, *_: Any) -> bool:
        """Whether no gradient of the coming step has an element other than zero."""
        grads = (p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        return not any(bool(grad.count_nonzero()) for grad in grads)

    def _zoo_idle(self, *_: Any) -> Iterable[tuple[dict[str, Any], Any, Any]]:
        """The groups of which no parameter had a gradient in the step just taken, each with its rule and what the rule
        reads of it; none, if that step was skipped.
        """
        idle = []
        for group in self.param_groups:  # loops and no generators: in a step of few parameters they are seen
            for p in group["params"]:
                if p.grad is not None:
                    break
            else:
                idle.append(group)
        return self._zoo_read(idle) if idle else ()

    def _zoo_read(self, idle: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        """These groups, each with its rule and what the rule reads of it; none, if the step was skipped."""
        from oxistep.optim._kept import kept_of
        from oxistep.rules._optimizer import source_of

        if (release := kept_of(self).release) is not None:  # which frees gradients
            idle = [group for group in idle if id(group) not in release.groups]
        if kept_of(self).skip_nonfinite and not math.isfinite(float(self.last_grad_norm or 0.0)):
            return
        for group in idle:
            source = source_of(type(self))
            yield group, source, source.read(group, "")


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
