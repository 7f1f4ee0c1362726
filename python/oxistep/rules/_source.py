"""What a rule's function says of itself: its hyperparameters, of which kind each is, and the programs that it has."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from oxistep.rules._encode import Encoded, encode
from oxistep.rules._graph import finite_or_not, is_number
from oxistep.rules._program import Program
from oxistep.rules._run import Given, Run
from oxistep.rules._trace import Facts, State
from oxistep.rules._tree import MOST, Tree

__all__ = ["MISSING", "Hyperparameter", "Source", "Unknown", "numbers_alone"]

MISSING = inspect.Parameter.empty

# Of floats.
LARGEST = int(sys.float_info.max)

# What a constructor has beside the rule's own arguments, and what its bodies use.
RESERVED = ("params", "self", "param_names")


@dataclass(frozen=True)
class Hyperparameter:
    """One argument of a rule after ``p, g, s``."""

    name: str
    default: Any
    by_name: bool
    """Whether it can be given by its name alone."""


@dataclass(frozen=True)
class Reading:
    """The hyperparameters of a group at one step."""

    words: tuple[Any, ...]
    """What is no number, with its type: what a trace holds for."""
    values: dict[str, Any]
    """All of them, by name."""
    numbers: dict[str, float]
    """The numbers in them, by name; ``betas[0]`` is the first of several."""


class Unknown(Exception):  # noqa: N818 (no error: the step asks further)
    """A condition cannot be told from numbers alone."""

    def __init__(self, program: Program) -> None:
        self.program = program


class Source:
    """A rule: its function, its hyperparameters, and what was traced of it.

    Attributes:
        name: what it is called in messages.
        function: ``function(p, g, s, lr, ...)``, which returns the new parameter.
        hyperparameters: by name, in order.
    """

    def __init__(self, function: Callable[..., Any], name: str, defaults: Mapping[str, Any] | None = None) -> None:
        """Args:
        function: the rule.
        name: what it is called in messages.
        defaults: those that stand elsewhere; None: each must have one in the function.

        Raises:
            TypeError: if it cannot be a rule, with its line.
        """
        self.function = function
        self.name = name
        self.hyperparameters = {one.name: one for one in _hyperparameters(function, name, defaults)}
        self._trees: dict[tuple[Any, ...], Tree] = {}
        self._calls: dict[Any, int] = {}
        self._encoded: dict[Program, Encoded] = {}
        self.native: Any = None
        """What finds programs for kernels, if there is one: see ``_native``."""

    @property
    def traced(self) -> int:
        """How often the function has been run."""
        return sum(tree.runs for tree in self._trees.values())

    @property
    def takes_maximize(self) -> bool:
        """Whether ``maximize`` is a hyperparameter of its own."""
        return "maximize" in self.hyperparameters

    def checked(self, values: Mapping[str, Any], where: str = "") -> None:
        """Checks each hyperparameter among these against the kind of its default.

        Args:
            values: some by name; others are passed over.
            where: ends the text of an error.

        Raises:
            TypeError: for one of another kind.
            ValueError: for NaN.
        """
        for name, hyperparameter in self.hyperparameters.items():
            if name in values:
                check(name, values[name], hyperparameter.default, where)

    def read(self, group: Mapping[str, Any], where: str) -> Reading:
        """The hyperparameters that a group has now.

        Raises:
            KeyError: if the group lacks one.
            TypeError: for one of another kind than its default.
        """
        words: list[Any] = []
        values: dict[str, Any] = {}
        numbers: dict[str, float] = {}
        for name, hyperparameter in self.hyperparameters.items():
            value = group[name]
            if type(value) is not float or type(hyperparameter.default) is not float:
                check(name, value, hyperparameter.default, where, now=True)
            if isinstance(value, (tuple, list)):
                words.append((name, len(value)))
                numbers.update((f"{name}[{i}]", _float(one)) for i, one in enumerate(value))
            elif is_word(value):
                value = bool(value) if not isinstance(value, str) and value is not None else value
                words.append((name, type(value), value))
            else:
                numbers[name] = _float(value)
            values[name] = value
        return Reading(tuple(words), values, numbers)

    def tree(self, reading: Reading) -> Tree:
        """What was traced for these words."""
        tree = self._trees.get(reading.words)
        if tree is None:
            if len(self._trees) >= MOST:  # words that are others each time
                self._trees = {}
            tree = self._trees.setdefault(reading.words, Tree(self.function, self.name, reading.values))
        return tree

    def encoded(self, program: Program) -> Encoded:
        """A program of this rule as the kernels take it; calls of ``total`` have the same numbers in all of them.

        Raises:
            TypeError: if it has more states than the kernels take.
        """
        encoded = self._encoded.get(program)
        if encoded is None:
            if len(self._encoded) >= MOST:
                self._encoded = {}
            encoded = self._encoded[program] = encode(program, self._calls)
        return encoded

    def states(self) -> dict[str, State]:
        """All states that any trace so far has come to, by name."""
        trees = list(self._trees.values())
        return {name: state for tree in trees for program in tree.programs for name, state in program.states.items()}

    def strangers(self, entry: Mapping[str, Any], states: Iterable[str]) -> str | None:
        """What is said of a parameter whose states are those of another rule; None if they are not.

        Args:
            entry: its states.
            states: the names of those that the rule wants of it.
        """
        kept, states = entry.keys() - {"step"}, list(states)
        if not kept or not states or not kept.isdisjoint(states) or not kept.isdisjoint(self.states()):
            return None
        return (
            f"has the states {', '.join(sorted(kept))}, and the rule's are {', '.join(states)}: "
            "was its state saved by another optimizer?"
        )

    def early_program(self, reading: Reading, shape: tuple[int, ...], numel: int) -> Program:
        """The program of a first step, as far as hyperparameters and shape tell it."""
        given = numbers_alone(reading.numbers, 1.0, float(numel))
        try:
            return self.tree(reading).program(Facts(tuple(shape)), lambda program: told(program, given(program)))
        except Unknown as unknown:
            return unknown.program


def told(program: Program, given: Given) -> float:
    """The answer to a question from numbers alone.

    Raises:
        Unknown: if it needs more.
    """
    assert program.question is not None
    if program.needs_elements(program.question):
        raise Unknown(program)
    (answer,) = Run(program, given).values([program.question])
    return float(answer)


def numbers_alone(
    numbers: Mapping[str, float],
    step: float,
    numel: float,
    of_group: Mapping[str, float] | None = None,
    of_param: Mapping[str, float] | None = None,
) -> Callable[[Program], Given]:
    """What programs start from where no memory is looked at; what is not kept yet is what it begins as."""

    def given(program: Program) -> Given:
        group = {name: state.initial for name, state in program.of_group.items()} | dict(of_group or {})
        own = {n: state.initial for n, state in program.states.items() if not state.kind.has_elements}
        return Given({}, numbers, step, numel, group, own | dict(of_param or {}))  # type: ignore[arg-type]

    return given


def is_word(value: Any) -> bool:
    """Whether a hyperparameter reaches the function as itself."""
    return value is None or isinstance(value, (str, bool, np.bool_))


def is_one_number(value: Any) -> bool:
    """Whether a hyperparameter is one real number: Python's, NumPy's, or a tensor or array of one element."""
    if is_word(value):
        return False
    if is_number(value):
        return True
    numel = value.numel if hasattr(value, "numel") else None
    if callable(numel):
        return numel() == 1 and not value.is_complex()
    return getattr(value, "shape", None) == () and getattr(getattr(value, "dtype", None), "kind", "") in "iuf"


def check(name: str, value: Any, default: Any, where: str = "", *, now: bool = False) -> None:
    """Checks a hyperparameter against the kind of its default.

    Args:
        name: what it is called.
        value: what it is.
        default: of its kind it must be; None or nothing: anything that a hyperparameter may be.
        where: ends the text of an error.
        now: in a step, where NaN is a number like others: the step says what becomes of it.

    Raises:
        TypeError: for one of another kind.
        ValueError: for NaN.
        OverflowError: for an integer beyond the range of a float.
    """
    if default is None or default is MISSING:
        fits = is_word(value) or is_one_number(value) or _are_numbers(value)
        expected = "a number, a word, True, False or None"
    elif isinstance(default, bool):
        fits, expected = is_word(value) and value is not None and not isinstance(value, str), "True or False"
    elif isinstance(default, str):
        fits, expected = isinstance(value, str), "a str"
    elif isinstance(default, tuple):
        fits = _are_numbers(value) and len(value) == len(default)
        expected = f"a tuple of {len(default)} numbers"
    else:
        fits, expected = is_one_number(value), "a number"
    if not fits:
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}: {value!r}{where}")
    for one in (value, *_several(value)):
        if isinstance(one, int) and abs(one) > LARGEST:
            raise OverflowError(f"{name}: expected a number that a float holds, got an integer beyond them{where}")
    if not now and any(isinstance(one, float) and math.isnan(one) for one in (value, *_several(value))):
        raise ValueError(f"Invalid {name}: {value}{where}")


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else ()


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(is_one_number, value))


def _float(value: Any) -> float:
    return finite_or_not(value.item() if hasattr(value, "item") else value)


def _hyperparameters(
    function: Callable[..., Any], name: str, defaults: Mapping[str, Any] | None
) -> list[Hyperparameter]:
    """The arguments of a rule after ``p, g, s``."""
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"rule {name}: expected a function (p, g, s, lr=0.01, ...), got {type(function).__name__}")

    def wrong(what: str) -> TypeError:
        code = function.__code__
        return TypeError(f"rule {name} ({code.co_filename}, line {code.co_firstlineno}): {what}")

    found: list[Hyperparameter] = []
    first: list[inspect.Parameter] = []
    others = list(inspect.signature(function).parameters.values())
    while others and len(first) < 3 and others[0].kind in (others[0].POSITIONAL_ONLY, others[0].POSITIONAL_OR_KEYWORD):
        first.append(others.pop(0))
    if len(first) < 3 or any(p.default is not MISSING for p in first):
        raise wrong("a rule begins with the parameter, the gradient and the states: write (p, g, s, lr=0.01, ...)")
    for p in others:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise wrong(
                f"{'*' if p.kind is p.VAR_POSITIONAL else '**'}{p.name} names no hyperparameters: write each "
                "with its default, lr=0.01"
            )
        if p.name in RESERVED or p.name.startswith("_"):
            raise wrong(f"a hyperparameter cannot be called {p.name!r}")
        default = p.default if p.default is not MISSING else (defaults or {}).get(p.name, MISSING)
        if default is MISSING and defaults is None:
            raise wrong(f"{p.name} needs a default, of the kind that it is: {p.name}=0.01")
        if not (default is MISSING or is_word(default) or is_one_number(default) or _are_numbers(default)):
            raise wrong(
                f"{p.name}: a hyperparameter is a number, several numbers, a word, True, False or None, not "
                f"{type(default).__name__} {default!r}; what does not change can be a constant outside the rule"
            )
        found.append(Hyperparameter(p.name, default, p.kind is p.KEYWORD_ONLY))
    return found
