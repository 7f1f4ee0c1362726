"""Eight optimizers on a bowl: what the pictures and the demonstration take where nothing else is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

START = (4.0, 3.0)


def bowl(x1: Any, x2: Any) -> Any:
    """``x1**2 + 10 * x2**2``: ten times as steep one way as the other, with its minimum at (0, 0).

    Args:
        x1, x2: numbers, or arrays or tensors of shapes that go together.

    Returns:
        number, array or tensor: the height, element by element.

    Raises:
        TypeError: for what cannot be multiplied.

    Example:
        >>> from oxistep.viz import bowl
        >>> bowl(4.0, 3.0)
        106.0
    """
    return x1**2 + 10 * x2**2


def eight(optim: Any = None) -> dict[str, Callable[[list[Any]], Any]]:
    """The eight optimizers that `trajectories` draws by default, by name.

    Args:
        optim: the module to take the classes from (default: None, which is ``oxistep.optim``, or ``oxistep.numpy``
            where torch is not installed).

    Returns:
        dict: for each name a function that makes the optimizer of a list of parameters.

    Raises:
        AttributeError: when an optimizer is made that the module does not have.

    Example:
        >>> import numpy as np
        >>> import oxistep.numpy
        >>> from oxistep.viz import eight
        >>> optimizers = eight(oxistep.numpy)
        >>> list(optimizers)[:2]
        ['Gradient descent, lr 0.1', 'Gradient descent, lr 0.01']
        >>> optimizers["Adam, lr 0.1"]([np.zeros(2)]).param_groups[0]["lr"]
        0.1
    """
    if optim is None:
        try:
            import oxistep.optim as optim
        except ModuleNotFoundError:
            import oxistep.numpy as optim
    return {
        "Gradient descent, lr 0.1": lambda p: optim.SGD(p, lr=0.1),
        "Gradient descent, lr 0.01": lambda p: optim.SGD(p, lr=0.01),
        "Momentum 0.9, lr 0.01": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
        "Nesterov 0.9, lr 0.01": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        "Adagrad, lr 0.1": lambda p: optim.Adagrad(p, lr=0.1, eps=1e-8),
        "RMSprop, lr 0.1": lambda p: optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-8),
        "Adam, lr 0.1": lambda p: optim.Adam(p, lr=0.1),
        "AdamW, lr 0.1": lambda p: optim.AdamW(p, lr=0.1),
    }
