"""Whether gradients are right: central differences against what is claimed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxistep.diagnostics._named import callable_as, is_tensor, nested, real, whole
from oxistep.diagnostics._table import number, table
from oxistep.numpy._structure import rebuilt

Array = NDArray[Any]

# The step that balances both errors of a central difference, relative to the size of x: the cube root of float64's
# epsilon.
_STEP = float(np.finfo(np.float64).eps) ** (1 / 3)


class WrongGradientError(AssertionError):
    """What :meth:`GradientCheck.raise_if_wrong` raises; its text is the report."""


@dataclass(frozen=True)
class GradientEntry:
    """One derivative that was checked."""

    name: str
    """Name of the input: its key, ``x`` if there is one, else ``x[k]``."""
    index: tuple[int, ...]
    """Place of the element in the input."""
    output: tuple[int, ...] | None
    """Place of the element in the output; ``None`` if that is a single number."""
    analytic: float | complex
    """What was claimed."""
    numeric: float | complex
    """What the differences give."""
    error: float
    """Magnitude of the difference between the two."""
    relative: float
    """``error`` over the larger magnitude of the two; 0 if both are 0."""
    allowed: float
    """``atol + rtol * (the larger magnitude)``."""

    @property
    def wrong(self) -> bool:
        """Whether the error is larger than allowed, or not a number."""
        return not (self.error <= self.allowed and math.isfinite(self.error))


@dataclass(frozen=True)
class GradientCheck:
    """What :func:`check_gradients` found. True if all is right; ``print`` shows the worst entries."""

    checked: int
    """How many derivatives were compared."""
    wrong: int
    """How many of them were wrong."""
    entries: list[GradientEntry]
    """The worst of them, the worst first: by ``error / allowed``."""
    rtol: float
    atol: float
    """The absolute tolerance, the largest where it was chosen per element."""
    message: str = field(default="")
    """What ``torch.autograd.gradcheck`` objected to; empty if it did not, or was not asked."""

    def __bool__(self) -> bool:
        return self.wrong == 0 and not self.message

    def __str__(self) -> str:
        verdict = "right" if self else "WRONG"
        tolerances = f"rtol {self.rtol:g}, atol {self.atol:.2g}"
        title = f"Gradient {verdict}: {self.wrong} of {self.checked} derivatives differ ({tolerances})"
        columns = ["input", "analytic", "numeric", "error", "relative", ""]
        rows = [
            [
                _place(entry),
                _shown(entry.analytic),
                _shown(entry.numeric),
                number(entry.error),
                number(entry.relative),
                "wrong" if entry.wrong else "",
            ]
            for entry in self.entries
        ]
        text = table(title, columns, rows, ("input", ""))
        return f"{text}\ntorch.autograd.gradcheck: {self.message}" if self.message else text

    def raise_if_wrong(self) -> None:
        """Raise :class:`WrongGradientError` with the report unless all is right.

        Raises:
            WrongGradientError: an ``AssertionError``.
        """
        if not self:
            raise WrongGradientError(str(self))


def check_gradients(
    function: Callable[..., Any],
    x: Any,
    gradient: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float | None = None,
    step: float | None = None,
    elements: int | None = None,
    seed: int = 0,
    worst: int = 10,
) -> GradientCheck:
    """Compare gradients with central differences, ``(f(x + h) - f(x - h)) / 2h``, in float64.

    NumPy: ``function(x)`` gives a number, ``gradient`` is what you believe to be its gradient at ``x``. torch: with
    ``gradient`` the same; without it autograd's derivatives are checked, of every element of the output, and
    ``torch.autograd.gradcheck`` is asked as well (which also tries undefined gradients, and whether backward gives
    the same twice).

    The step is chosen for each element: ``h = eps^(1/3) max(|x|, 1)``, about 6e-6 near one, rounded to a power of two
    so that ``x + h`` and ``x - h`` are numbers exactly ``2h`` apart. Smaller ones lose digits in the difference,
    larger ones bend away from the tangent; this one leaves about ten digits of smooth functions. Where that does not
    confirm a derivative, a second difference over twice the distance takes the bend out (Richardson) before it is
    called wrong.

    A derivative is right if ``|analytic - numeric| <= atol + rtol max(|analytic|, |numeric|)``. ``rtol`` leaves room
    for the bend. ``atol`` is by default a hundred times what rounding alone does to the difference, ``100 eps
    max(|f|, 1) / h``: a derivative of zero comes out as large as that, and no relative tolerance could forgive it.
    Gradients computed in float32 have seven digits: give ``rtol=1e-3``. At kinks (``abs``, ReLU at 0) differences say
    nothing.

    Args:
        function: called as ``function(x)``; with a tuple or list of inputs as ``function(*x)``. Must not change its
            arguments, and must give the same for the same input. (NumPy arguments are float64 copies, changed in
            place between calls.)
        x: an array or tensor, a tuple or list of them, or a dict from name (then ``function`` gets a dict); arrays also
            in containers inside each other (then it gets such). float64 is used throughout whatever the dtype.
        gradient: in the structure of ``x``, or a function that gives it (default: None, with torch only).
        rtol: relative tolerance (default: 1e-5).
        atol: absolute tolerance (default: see above).
        step: ``h``, the same for all elements and without the second difference (default: see above).
        elements: check so many elements of all inputs, drawn by chance (default: all). Each costs two
            calls, or four where the first two do not confirm it.
        seed: of that draw (default: 0).
        worst: how many entries the report keeps (default: 10).

    Returns:
        GradientCheck: true if all is right.

    Raises:
        TypeError: NumPy inputs without ``gradient``; inputs or gradients of another kind; an output that is no number.
        ValueError: a gradient of another shape than its input; nothing to check; a tolerance out of range.

    Example:
        >>> import numpy as np
        >>> from oxistep.diagnostics import check_gradients
        >>> x = np.array([1.0, -2.0, 3.0])
        >>> def loss(w):
        ...     return (x @ w - 4.0) ** 2
        >>> w = np.array([0.5, 1.5, -1.0])
        >>> bool(check_gradients(loss, w, 2 * (x @ w - 4.0) * x))
        True
        >>> report = check_gradients(loss, w, (x @ w - 4.0) * x)  # the 2 was forgotten
        >>> bool(report), report.wrong, report.entries[0].index, round(report.entries[0].relative, 3)
        (False, 3, (2,), 0.5)

    Reference:
        Press and others, "Numerical recipes", 3rd edition, 2007, section 5.7 (the step).
    """
    callable_as(function, "function")
    inputs = _Inputs(x)
    rtol = real(rtol, "rtol", above=None)
    atol = None if atol is None else real(atol, "atol", above=None)
    step = None if step is None else real(step, "step")
    worst = whole(worst, "worst", least=0)
    if gradient is None and not inputs.of_torch:
        raise TypeError("gradient: expected arrays or a function that gives them; only torch can find it by itself")

    places = inputs.places(elements, seed)
    compare = _Compare(rtol, atol, step)
    message = ""
    if gradient is None:
        from oxistep.diagnostics import _torch_check

        entries = list(_torch_check.entries(function, inputs, places, compare))
        message = _torch_check.gradcheck_message(function, inputs, compare, fast=elements is not None)
    else:
        entries = list(_given(function, inputs, places, gradient, compare))
    largest_atol = compare.largest_atol
    entries.sort(key=_badness, reverse=True)
    wrong = sum(entry.wrong for entry in entries)
    return GradientCheck(len(entries), wrong, entries[:worst], rtol, largest_atol, message)


Place = tuple[int, tuple[int, ...]]


class _Inputs:
    """What the function is given, as float64 copies, with names."""

    def __init__(self, x: Any) -> None:
        self.x, self.flat = x, nested(x)
        if self.flat is not None:
            self.kind, self.names, values = "nested", self.flat.names, self.flat.arrays
        elif isinstance(x, Mapping):
            self.kind, self.names, values = "dict", [str(key) for key in x], list(x.values())
            self.keys = list(x)
        elif isinstance(x, tuple) or (isinstance(x, list) and x and all(hasattr(value, "shape") for value in x)):
            self.kind, self.names, values = "tuple", [f"x[{k}]" for k in range(len(x))], list(x)
        else:
            self.kind, self.names, values = "one", ["x"], [x]
        self.of_torch = bool(values) and all(map(is_tensor, values))
        for name, value in zip(self.names, values, strict=True):
            if not self.of_torch and (is_tensor(value) or isinstance(value, str)):
                raise TypeError(f"{name}: torch tensors and NumPy arrays cannot be mixed")
        if self.of_torch:
            from oxistep.diagnostics._torch_check import wide

            self.values: list[Any] = [wide(value) for value in values]
        else:
            self.values = [_wide(value, name) for name, value in zip(self.names, values, strict=True)]

    def call(self, function: Callable[..., Any], values: list[Any] | None = None) -> Any:
        """Calls with the inputs in the structure that they were given in."""
        values = self.values if values is None else values
        if self.kind == "nested":
            each = iter(values)
            return function(rebuilt(self.x, lambda _: next(each)))
        if self.kind == "dict":
            return function(dict(zip(self.keys, values, strict=True)))
        return function(*values)

    def listed(self, gradient: Any) -> list[Any]:
        """Gradients in the order of the inputs."""
        if self.flat is not None:
            found: list[Any] = []
            self.flat.branch.read(gradient, "gradient", found)
            return found
        if self.kind == "dict":
            if not isinstance(gradient, Mapping) or set(gradient) != set(self.keys):
                raise TypeError(f"gradient: expected a dict with the keys of x, {', '.join(self.names)}")
            return [gradient[key] for key in self.keys]
        if self.kind == "tuple":
            if not isinstance(gradient, (tuple, list)) or len(gradient) != len(self.values):
                raise TypeError(f"gradient: expected a list or tuple of {len(self.values)}, as x is one")
            return list(gradient)
        return [gradient]

    def along(self, k: int, index: tuple[int, ...], outputs: Callable[[], Array]) -> Callable[[float], Array]:
        """The outputs as a function of one element, which is put back after each call."""
        value = self.values[k]

        def evaluate(x: float) -> Array:
            before = value[index].item()
            try:
                value[index] = x
                return outputs()
            finally:
                value[index] = before

        return evaluate

    def places(self, elements: int | None, seed: int) -> list[Place]:
        """The elements to check: of which input, and where."""
        sizes = [int(np.prod(value.shape)) for value in self.values]
        chosen = np.arange(sum(sizes))
        if elements is not None:
            elements = whole(elements, "elements")
            if elements < len(chosen):
                chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), elements, replace=False))
        if not len(chosen):
            raise ValueError("x has no elements")
        ends = np.cumsum(sizes)
        places = []
        for flat in chosen:
            k = int(np.searchsorted(ends, flat, side="right"))
            shape = tuple(self.values[k].shape)
            index = np.unravel_index(int(flat - (ends[k] - sizes[k])), shape) if shape else ()
            places.append((k, tuple(int(i) for i in index)))
        return places


@dataclass
class _Compare:
    """Differences, and what they say of claimed derivatives."""

    rtol: float
    atol: float | None
    step: float | None
    largest_atol: float = 0.0

    def entries(
        self,
        evaluate: Callable[[float], Array],
        x: float,
        claimed: Array,
        name: str,
        index: tuple[int, ...],
        outputs: list[tuple[int, ...] | None],
    ) -> Iterator[GradientEntry]:
        """An entry for each output of ``evaluate``, a function of one number."""
        # Rounded to a power of two: both points are then exact, unless x is larger than h by all of float64's digits.
        h = 2.0 ** round(math.log2(_STEP * max(abs(x), 1.0))) if self.step is None else self.step
        numeric, rounding = _central(evaluate, x, h)
        with np.errstate(invalid="ignore", over="ignore"):
            confirmed = np.abs(claimed - numeric) <= self._allowed(claimed, numeric, rounding)
            if self.step is None and not confirmed.all():
                wider, wider_rounding = _central(evaluate, x, 2 * h)
                refined = (4 * numeric - wider) / 3
                numeric = np.where(confirmed | ~np.isfinite(refined), numeric, refined)
                rounding = (4 * rounding + wider_rounding) / 3
            allowed = self._allowed(claimed, numeric, rounding)
        self.largest_atol = max(self.largest_atol, float(rounding.max()) if self.atol is None else self.atol)
        for output, a, n, limit in zip(outputs, claimed.tolist(), numeric.tolist(), allowed.tolist(), strict=True):
            error = abs(a - n)
            relative = error / max(abs(a), abs(n)) if error else 0.0
            yield GradientEntry(name, index, output, a, n, error, relative, limit)

    def _allowed(self, claimed: Array, numeric: Array, rounding: Array) -> Array:
        sizes = np.maximum(np.abs(claimed), np.abs(numeric))
        allowed: Array = (rounding if self.atol is None else self.atol) + self.rtol * sizes
        return allowed


def _central(evaluate: Callable[[float], Array], x: float, h: float) -> tuple[Array, Array]:
    """The central difference of every output, and a hundred times the rounding error in it."""
    ahead, behind = x + h, x - h
    f_ahead, f_behind = evaluate(ahead), evaluate(behind)
    sizes = np.maximum(np.maximum(np.abs(f_ahead), np.abs(f_behind)), 1.0)
    with np.errstate(invalid="ignore"):
        return (f_ahead - f_behind) / (ahead - behind), 200 * np.finfo(np.float64).eps * sizes / (ahead - behind)


def _given(
    function: Callable[..., Any], inputs: _Inputs, places: list[Place], gradient: Any, compare: _Compare
) -> Iterator[GradientEntry]:
    """Given derivatives compared with differences."""
    grads = inputs.listed(inputs.call(gradient) if callable(gradient) else gradient)
    claimed = [
        _as_array(grad, value, name) for grad, value, name in zip(grads, inputs.values, inputs.names, strict=True)
    ]
    for k, index in places:
        evaluate = inputs.along(k, index, lambda: np.array([_as_number(inputs.call(function))]))
        x = float(inputs.values[k][index])
        yield from compare.entries(evaluate, x, claimed[k][index].reshape(1), inputs.names[k], index, [None])


def _wide(value: Any, name: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name}: expected an array, {error}") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected an array of real numbers, got {array.dtype}")
    return array.astype(np.float64)  # always a copy


def _as_array(grad: Any, value: Any, name: str) -> Array:
    array = _wide(grad.detach().cpu() if is_tensor(grad) else grad, f"the gradient of {name}")
    if array.shape != tuple(value.shape):
        raise ValueError(f"the gradient of {name} has shape {array.shape}, expected {tuple(value.shape)}")
    return array


def _as_number(value: Any) -> float:
    value = value.detach() if is_tensor(value) else np.asarray(value)
    if int(np.prod(value.shape)) != 1:
        raise TypeError(
            f"function must give a single number to compare a gradient with, got shape {tuple(value.shape)}"
        )
    return float(value)


def _badness(entry: GradientEntry) -> float:
    if entry.error == 0:
        return 0.0
    ratio = entry.error / entry.allowed if entry.allowed > 0 else math.inf
    return math.inf if math.isnan(ratio) else ratio


def _place(entry: GradientEntry) -> str:
    place = entry.name + (str(list(entry.index)) if entry.index else "")
    return place if entry.output is None else f"d output{list(entry.output) if entry.output else ''} / d {place}"


def _shown(x: float | complex) -> str:
    return f"{x:.8g}"
