"""What oxistep keeps on an optimizer beside what torch's class keeps: one attribute, ``_oxistep``.

Whoever subclasses an optimizer may use every other name, as with torch's classes. So the settings of ours are kept
here as well, and are attributes only where they were given to the constructor.
"""

import warnings
from collections.abc import Callable
from copy import copy
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from oxistep._torn import Torn

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import ProcessGroup
else:

    class ProcessGroup:
        """Of a torch without torch.distributed there are none."""


GradNormGroup: TypeAlias = Literal["world"] | ProcessGroup | Callable[[Tensor], Tensor | None] | None

StateDType: TypeAlias = torch.dtype | Literal["8bit"] | None
Weights: TypeAlias = Literal["stochastic", "kahan", "residual8", "residual16", "master"] | None
WEIGHTS = ("stochastic", "kahan", "residual8", "residual16", "master")

__all__ = [
    "KEY",
    "GradNormGroup",
    "Kept",
    "Setting",
    "StateDType",
    "Weights",
    "ema_of",
    "grad_norm_group_of",
    "keep_settings",
    "kept_of",
    "max_grad_norm_of",
    "skip_nonfinite_of",
    "state_dtype_of",
]

KEY = "_oxistep"

T = TypeVar("T")


class Kept:
    """Plans and settings of one optimizer. A copy, or what is pickled, has the settings; its plans are made anew."""

    __slots__ = (
        "ema",
        "ema_warmup",
        "given",
        "grad_norm_group",
        "guarded",
        "is_part",
        "kinds",
        "loading",
        "max_grad_norm",
        "plans",
        "release",
        "seed",
        "simple",
        "skip_nonfinite",
        "state_dtype",
        "swapped",
        "told",
        "torn",
        "tried",
        "weights",
    )

    def __init__(self) -> None:
        self.plans: dict[type, Any] = {}
        """What takes the steps, by the class that the optimizer had then: programs assign to ``__class__``."""
        self.torn: Torn | None = None
        """Set after a step that broke off half-way; there are no plans then."""
        self.release: Any = None
        """What steps the parameters in backward (``_release.Release``); there are no plans then."""
        self.tried: set[Any] = set()
        """Descriptions of tensors that torch's step was found to take: see ``_rehearsal``."""
        self.told: type | None = None
        """The class for which ``OXISTEP_EXPLAIN=1`` had its line."""
        self.kinds: dict[Any, Any] = {}
        """What the states of a rule that a user wrote are, as far as that was asked."""
        self.loading: dict[str, Any] | None = None
        """The state dict that is being loaded."""
        self.given: frozenset[str] = frozenset()
        """The settings that were given to the constructor."""
        self.state_dtype: StateDType = None
        """``None``: torch's own dtypes."""
        self.weights: Weights = None
        """``None``: rounded to nearest, as torch."""
        self.seed = 0
        """Of what is rounded with fair odds."""
        self.max_grad_norm: float | None = None
        self.skip_nonfinite = False
        self.grad_norm_group: GradNormGroup = None
        """``None``: this rank has all gradients, or DTensors."""
        self.guarded = False
        """Whether a step measures its gradients first."""
        self.ema: float | None = None
        """The decay of the averages of parameters; ``None``: there are none."""
        self.ema_warmup = False
        self.is_part = False
        """It is of a stand-in for an optimizer, which steps one parameter."""
        self.swapped = False
        """The parameters are their averages for a while."""
        self.simple = True
        """Whether a step is no more than that."""

    def settle(self) -> None:
        """After a setting has changed."""
        self.guarded = self.max_grad_norm is not None or self.skip_nonfinite
        self.simple = not self.guarded and self.ema is None

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a copy would differ without it."""
        return bool(self.given) or self.torn is not None

    def __copy__(self) -> "Kept":
        return _restored(*self._settings())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        return copy(self)  # of a process group there is one

    def __reduce__(self) -> tuple[Any, ...]:
        if not (
            self.grad_norm_group is None or isinstance(self.grad_norm_group, str) or callable(self.grad_norm_group)
        ):
            raise TypeError(
                "grad_norm_group: a process group cannot be pickled; if it is all ranks, give 'world' in its place"
            )
        return _restored, self._settings()

    def _settings(self) -> tuple[Any, ...]:
        return (
            self.given,
            self.state_dtype,
            self.max_grad_norm,
            self.skip_nonfinite,
            self.grad_norm_group,
            self.torn,
            self.weights,
            self.seed,
            self.ema,
            self.ema_warmup,
        )


def _restored(
    given: frozenset[str],
    state_dtype: StateDType,
    max_grad_norm: float | None,
    skip_nonfinite: bool,
    grad_norm_group: GradNormGroup,
    torn: Torn | None,
    weights: Weights = None,
    seed: int = 0,
    ema: float | None = None,
    ema_warmup: bool = False,
) -> Kept:
    kept = Kept()
    kept.weights, kept.seed, kept.ema, kept.ema_warmup = weights, seed, ema, ema_warmup
    kept.given, kept.state_dtype, kept.torn = given, state_dtype, torn
    kept.max_grad_norm, kept.skip_nonfinite, kept.grad_norm_group = max_grad_norm, skip_nonfinite, grad_norm_group
    kept.settle()
    return kept


def kept_of(optimizer: Any) -> Kept:
    """What is kept on an optimizer; made if there is nothing yet."""
    try:
        return optimizer.__dict__[KEY]  # type: ignore[no-any-return]
    except KeyError:  # setdefault: two threads that come here must not get two
        return optimizer.__dict__.setdefault(KEY, Kept())  # type: ignore[no-any-return]


def keep_settings(
    optimizer: Any,
    state_dtype: StateDType,
    max_grad_norm: float | None,
    skip_nonfinite: bool,
    grad_norm_group: GradNormGroup = None,
    weights: Weights = None,
    seed: int = 0,
    ema: float | None = None,
    ema_warmup: bool = False,
    *,
    element_wise: bool = True,
) -> None:
    """What each constructor does first with the settings that torch's class does not have."""
    if not element_wise and state_dtype not in (None, torch.float32):
        raise ValueError(
            "state_dtype: expected torch.float32 (for parameters of a half type) or None, since this optimizer does "
            f"not update element by element, got {state_dtype!r}"
        )
    values = {
        "weights": weights_of(weights),
        "seed": seed_of(seed),
        "ema": ema_of(ema),
        "ema_warmup": ema_warmup_of(ema_warmup),
        "state_dtype": state_dtype_of(state_dtype),
        "max_grad_norm": max_grad_norm_of(max_grad_norm),
        "skip_nonfinite": skip_nonfinite_of(skip_nonfinite),
        "grad_norm_group": grad_norm_group_of(grad_norm_group),
    }
    if ema_warmup and ema is None:
        raise ValueError("ema_warmup: expected a decay with it, such as ema=0.999")
    others = {name for name, value in values.items() if value not in (None, False, 0)}
    given = frozenset(others if ema is None else {*others, "ema"})
    if not given and KEY not in optimizer.__dict__:
        return  # the attributes of a plain optimizer are torch's
    kept = kept_of(optimizer)
    kept.given = given
    for name, value in values.items():
        setattr(kept, name, value)
    kept.settle()


def state_dtype_of(value: Any) -> StateDType:
    """Checks ``state_dtype``."""
    if value is None or (isinstance(value, str) and value == "8bit"):
        return value  # type: ignore[return-value]
    if not isinstance(value, torch.dtype) or value not in (torch.float32, torch.bfloat16):
        raise ValueError(f"state_dtype: expected torch.float32, torch.bfloat16, '8bit' or None, got {value!r}")
    return value


def weights_of(value: Any) -> Weights:
    """Checks ``weights``."""
    if value is not None and (not isinstance(value, str) or value not in WEIGHTS):
        raise ValueError(f"weights: expected one of {', '.join(map(repr, WEIGHTS))} or None, got {value!r}")
    return value  # type: ignore[return-value]


def seed_of(value: Any) -> int:
    """Checks ``seed``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"seed: expected an int, got {type(value).__name__}")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"seed: expected a number from 0 to 2**64 - 1, got {value}")
    return value


def ema_of(value: Any) -> float | None:
    """Checks ``ema``."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"ema: expected a number from 0 to below 1, or None, got {type(value).__name__}")
    if not 0.0 <= float(value) < 1.0:
        raise ValueError(f"ema: expected a decay from 0 to below 1, or None, got {value}")
    return float(value)


def ema_warmup_of(value: Any) -> bool:
    """Checks ``ema_warmup``."""
    if not isinstance(value, bool):
        raise TypeError(f"ema_warmup: expected True or False, got {type(value).__name__}")
    return value


def max_grad_norm_of(value: Any) -> float | None:
    """Checks ``max_grad_norm``."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"max_grad_norm: expected a positive number or None, got {type(value).__name__}")
    if not float(value) > 0:
        raise ValueError(f"max_grad_norm: expected a positive number or None, got {value}")
    return float(value)


def skip_nonfinite_of(value: Any) -> bool:
    """Checks ``skip_nonfinite``."""
    if not isinstance(value, bool):
        raise TypeError(f"skip_nonfinite: expected True or False, got {type(value).__name__}")
    return value


def grad_norm_group_of(value: Any) -> GradNormGroup:
    """Checks ``grad_norm_group``."""
    if value is None or callable(value) or isinstance(value, ProcessGroup):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str):
        raise TypeError(
            f"grad_norm_group: expected 'world', a process group, a function or None, got {type(value).__name__}"
        )
    if value != "world":
        raise ValueError(f"grad_norm_group: expected 'world', a process group, a function or None, got {value!r}")
    return "world"


class Setting(Generic[T]):
    """A setting that may change between steps, if the constructor was given it.

    Else the name is the user's: an attribute like any other, whatever it holds.
    """

    def __init__(self, default: T, check: Callable[[Any], T], doc: str) -> None:
        self.default = default
        self.check = check
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    @overload
    def __get__(self, optimizer: None, cls: type | None = None) -> "Setting[T]": ...
    @overload
    def __get__(self, optimizer: object, cls: type | None = None) -> T: ...
    def __get__(self, optimizer: Any, cls: type | None = None) -> Any:
        if optimizer is None:
            return self
        if (kept := self._kept(optimizer)) is not None:
            return getattr(kept, self.name)
        if self.name in optimizer.__dict__:
            return optimizer.__dict__[self.name]
        other = self._behind(optimizer)
        if other is None:
            return self.default
        return other.__get__(optimizer, type(optimizer)) if hasattr(type(other), "__get__") else other

    def __set__(self, optimizer: Any, value: T) -> None:
        if (kept := self._kept(optimizer)) is not None:
            setattr(kept, self.name, self.check(value))
            kept.settle()
            return
        other = self._behind(optimizer)
        if hasattr(type(other), "__set__"):
            other.__set__(optimizer, value)
            return
        is_ours = type(optimizer).__module__.startswith("oxistep.optim.")
        if is_ours and value is not self.default:
            warnings.warn(
                f"{self.name} was not given to the constructor of this {type(optimizer).__name__}, so it is an "
                f"attribute that no step reads. To set it between steps, give {self.name}= to the constructor",
                stacklevel=2,
            )
        optimizer.__dict__[self.name] = value

    def __delete__(self, optimizer: Any) -> None:
        if self._kept(optimizer) is not None or self.name not in optimizer.__dict__:
            raise AttributeError(f"{type(optimizer).__name__!r} object has no attribute {self.name!r} to delete")
        del optimizer.__dict__[self.name]

    def _kept(self, optimizer: Any) -> Kept | None:
        """What holds the setting, if it was given."""
        kept = optimizer.__dict__.get(KEY)
        return kept if type(kept) is Kept and self.name in kept.given else None

    def _behind(self, optimizer: Any) -> Any:
        """What a class further down the line has under this name."""
        line = type(optimizer).__mro__
        return next((vars(c)[self.name] for c in line[line.index(self.owner) + 1 :] if self.name in vars(c)), None)
