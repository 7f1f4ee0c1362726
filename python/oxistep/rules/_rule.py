"""``@oxistep.rule``: one function becomes an optimizer for torch's parameters and for NumPy's arrays."""

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from types import FunctionType
from typing import Any

from oxistep.rules._listing import Listing
from oxistep.rules._source import MISSING, Hyperparameter, Source
from oxistep.rules._values import Value

__all__ = ["Rule", "constructor", "rule"]

# What every optimizer for torch has beside the rule's own hyperparameters, and every one for NumPy.
SETTINGS: dict[str, Any] = {
    "maximize": False,
    "state_dtype": None,
    "weights": None,
    "seed": 0,
    "ema": None,
    "ema_warmup": False,
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "grad_norm_group": None,
    "follow": False,
}
OF_ARRAYS = ("maximize", "max_grad_norm", "skip_nonfinite", "follow")
"""Those of NumPy's classes; torch's have all but the last."""
OF_TENSORS = tuple(name for name in SETTINGS if name != "follow")


def rule(function: Callable[..., Any]) -> "Rule":
    """Makes an optimizer of a function that says what becomes of a parameter.

    The function is traced, never run on data: ``p``, ``g`` and ``s`` stand for values. ``s.name`` is a state, which
    starts as zeros; ``s.step`` counts steps from 1. The functions it may use are those of :mod:`oxistep.rules`, and
    NumPy's and torch's of the same names. docs/rules.md has more.

    Args:
        function: ``function(p, g, s, lr=0.01, ...)``: the parameter, its gradient, its states and the hyperparameters,
            each with a default. Returns the new parameter.

    Returns:
        Rule: called with parameters and hyperparameters it makes an optimizer.

    Raises:
        TypeError: if the function cannot be a rule: it takes no ``p, g, s``, or has a hyperparameter without a default.

    Example:
        >>> import numpy as np
        >>> import oxistep
        >>> @oxistep.rule
        ... def momentum(p, g, s, lr=0.01, beta=0.9):
        ...     s.v = beta * s.v - lr * g
        ...     return p + s.v
        >>> w = np.array([3.0, 1.0])
        >>> optimizer = momentum([w], lr=0.5)
        >>> optimizer.step([np.array([1.0, 2.0])])
        >>> w
        array([2.5, 0. ])
    """
    return Rule(function)


class Rule:
    """What ``@oxistep.rule`` makes of a function: called, it makes an optimizer.

    ``torch`` and ``numpy`` are the classes of the optimizers, ``program()`` lists what they do.

    Args:
        function: the rule; :func:`oxistep.rule` says how it looks.

    Raises:
        TypeError: if the function cannot be a rule.

    Example:
        >>> import oxistep
        >>> @oxistep.rule
        ... def descent(p, g, s, lr=0.01):
        ...     return p - lr * g
        >>> isinstance(descent, oxistep.rules.Rule), descent.torch.__name__
        (True, 'descent')
    """

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any]) -> None:
        """Args:
        function: the rule; ``rule`` says how it looks.
        """
        self._source = Source(function, getattr(function, "__name__", type(function).__name__))
        self.__wrapped__ = function
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__
        self.__module__, self.__doc__ = function.__module__, function.__doc__

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes an optimizer.

        Args:
            params: torch's parameters, ``(name, parameter)`` pairs or param groups; or NumPy's arrays, in a list, a
                dict or param groups.
            args: hyperparameters in the order of the function's arguments.
            kwargs: hyperparameters by name, and settings.

        Returns:
            an optimizer of the class ``torch`` or ``numpy``.
        """
        if isinstance(params, Value):  # within another rule
            return self.__wrapped__(params, *args, **kwargs)
        params = _listed(params)
        return (self.torch if _is_torchs(params) else self.numpy)(params, *args, **kwargs)

    @cached_property
    def torch(self) -> type[Any]:
        """The class of its optimizers for torch's parameters: a subclass of ``torch.optim.Optimizer``."""
        try:
            from oxistep.rules._optimizer import Optimizer
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(
                f"{self.__name__}.torch needs PyTorch: pip install 'torch>=2.10'. "
                f"{self.__name__}.numpy is for NumPy arrays.",
                name="torch",
            ) from error
        names = [name for name in OF_TENSORS if name not in self._source.hyperparameters]
        return self._class("torch", Optimizer, names, {"update": staticmethod(self.__wrapped__)})

    @cached_property
    def numpy(self) -> type[Any]:
        """The class of its optimizers for NumPy's arrays: a subclass of ``oxistep.numpy.Optimizer``."""
        from oxistep.numpy._rules import RuleOptimizer

        names = [name for name in OF_ARRAYS if name not in self._source.hyperparameters]
        return self._class("numpy", RuleOptimizer, names, {"_oxistep_source": self._source})

    def program(self, **hyperparameters: Any) -> Listing:
        """Lists what the rule does: passes over memory, operations, the streams of each, bytes a parameter.

        Args:
            hyperparameters: by name; the others have their defaults. ``step=`` is the number of the step (default:
                None, which lists every branch that it decides), ``shape=`` the shape of the parameter (default:
                (64, 64)), which matters where the rule looks at it.

        Returns:
            Listing: a list of programs, one for each branch, which prints as text.

        Raises:
            TypeError: for an unknown hyperparameter, or one of another kind than its default; what the rule does that
                cannot be traced.
        """
        return Listing.of(self._source, hyperparameters)

    @property
    def __signature__(self) -> inspect.Signature:
        settings = [name for name in OF_TENSORS if name not in self._source.hyperparameters]
        shown = inspect.signature(
            constructor(self._source.name, self._source.hyperparameters.values(), settings, object)
        )
        return shown.replace(parameters=list(shown.parameters.values())[1:], return_annotation=Any)

    def __repr__(self) -> str:
        return f"<rule {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> str:
        return self.__qualname__

    def _class(self, kind: str, base: type, settings: list[str], members: dict[str, Any]) -> type[Any]:
        init = constructor(self._source.name, self._source.hyperparameters.values(), settings, base)
        qualname = f"{self.__qualname__}.{kind}"
        init.__module__, init.__qualname__ = self.__module__, f"{qualname}.__init__"
        return type(base)(
            self.__name__,
            (base,),
            {
                **members,
                "__init__": init,
                "__doc__": self.__doc__ or f"The optimizer of the rule {self.__name__}.",
                "__module__": self.__module__,
                "__qualname__": qualname,
            },
        )


def constructor(
    name: str, hyperparameters: Collection[Hyperparameter], settings: Iterable[str], base: type
) -> FunctionType:
    """A constructor that names its parameters itself: programs look at its signature, and at its code.

    Args:
        name: of the rule.
        hyperparameters: what it hands to the constructor of `base`, in a dict.
        settings: what it hands on as they are.
        base: the class whose constructor it calls.
    """

    def one(name: str, default: Any) -> str:
        return name if default is MISSING else f"{name}=_defaults[{name!r}]"

    before = [one(h.name, h.default) for h in hyperparameters if not h.by_name]
    after = [one(h.name, h.default) for h in hyperparameters if h.by_name]
    after += [one(name, SETTINGS[name]) for name in settings]
    given = ", ".join(f"{h.name!r}: {h.name}" for h in hyperparameters)
    handed = "".join(f", {name}={name}" for name in settings)
    text = f"def __init__({', '.join(['self', 'params', *before, *(['*', *after] if after else [])])}):\n"
    text += f"    _base.__init__(self, params, {{{given}}}{handed})\n"
    defaults = SETTINGS | {h.name: h.default for h in hyperparameters}
    names: dict[str, Any] = {"_base": base, "_defaults": defaults}
    exec(compile(text, f"<constructor of rule {name}>", "exec"), names)
    init: FunctionType = names["__init__"]
    init.__annotations__ = {"return": None}
    return init


def _listed(params: Any) -> Any:
    """Parameters that can be looked at before they are handed on: a generator ends after that."""
    if (
        isinstance(params, (str, Mapping, set, frozenset))
        or hasattr(params, "shape")
        or not isinstance(params, Iterable)
    ):
        return params
    # a dict of its own: torch puts into a group what it lacks
    return [
        {**one, "params": _listed(one["params"])} if isinstance(one, dict) and "params" in one else one
        for one in params
    ]


def _is_torchs(params: Any) -> bool:
    """Whether parameters are torch's: the first that there is tells."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"expected parameters, got the module {type(params).__name__}: give its .parameters()")
    while True:
        if isinstance(params, Mapping):
            params = params["params"] if "params" in params else next(iter(params.values()), None)
        elif isinstance(params, (list, tuple)) and params:
            # a pair of a name and a parameter is what it has second
            params = params[1] if len(params) == 2 and isinstance(params[0], str) else params[0]
        elif isinstance(params, (set, frozenset)) and params:  # of which torch says that it is not ordered
            params = next(iter(params))
        else:
            return isinstance(params, torch.Tensor)
