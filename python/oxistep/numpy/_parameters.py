"""What can be a parameter, and what is said of what cannot.

A remedy must lead to a model that trains. A copy that only the optimizer has is no such thing: whoever writes
``SGD([w.astype(float)])`` goes on to use ``w``. So the remedy is always another array for the model, made before the
optimizer is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oxistep.numpy._types import Array, kind

_FOREIGN = {
    "torch": "oxistep.optim is for torch's tensors",
    "cupy": "it lies on a GPU, and oxistep.numpy is for arrays of NumPy's",
    "jax": "its arrays cannot be changed in place; train NumPy arrays, w = np.array(w)",
    "jaxlib": "its arrays cannot be changed in place; train NumPy arrays, w = np.array(w)",
    "scipy": "let the model have a dense array instead, w = w.toarray(), before the optimizer is made",
    "pandas": "let the model have an array instead, w = w.to_numpy(float, copy=True), before the optimizer is made",
}


def check_parameter(array: Any, name: str, expression: str = "w") -> None:
    """Refuses what no step could take; what depends on gradients or other arrays is for the step to find.

    Args:
        array: what was given as a parameter.
        name: what errors call it.
        expression: how the user's code reaches it.

    Raises:
        TypeError: for what is no array of a type that is served.
        ValueError: for an array that cannot be changed in place.
    """
    before = "before the optimizer is made, and let the model use that array"
    if isinstance(array, np.generic):
        raise TypeError(
            f"{name} is a NumPy scalar, which cannot be updated in place; make it a 0-dimensional array, "
            f"{expression} = np.array({expression}), {before}"
        )
    if not isinstance(array, np.ndarray):
        raise TypeError(f"optimizer can only optimize NumPy arrays, but {name} is {_what(array, expression, before)}")
    # np.ma takes milliseconds to load, so ask for it only when the array is not a plain one.
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask a step would ignore; give its .data, which shares its memory"
        )
    if array.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        if array.dtype.kind in "iub":
            remedy = f"the model's array must be of floats: {expression} = {expression}.astype(np.float64) {before}"
        elif array.dtype.kind == "f":
            remedy = f"float64 is the widest that is served: {expression} = {expression}.astype(np.float64) {before}"
        elif array.dtype.kind == "c":
            remedy = f"give its parts, which share its memory: {expression}.real and {expression}.imag"
        elif array.dtype.kind == "O":
            remedy = "arrays belong into a list or a dict, not into an array of objects"
        else:
            remedy = "expected float64, float32 or float16"
        raise TypeError(f"{name} has dtype {array.dtype}; {remedy}")
    if not array.dtype.isnative:
        native = array.dtype.newbyteorder("=").name
        raise ValueError(f"{name} is byte-swapped; {expression} = {expression}.astype(np.{native}) {before}")
    if not array.flags.writeable:
        raise ValueError(
            f"{name} is read-only, so it cannot be updated in place; {expression} = {expression}.copy() {before}"
        )
    if not array.flags.aligned:
        raise ValueError(f"{name} is not aligned in memory; {expression} = {expression}.copy() {before}")


def _what(value: Any, expression: str, before: str) -> str:
    """What was given instead of an array, with the remedy."""
    a = "an" if kind(value)[0] in "aeiou" else "a"
    for library in _libraries(value):
        if library in _FOREIGN:
            return f"{a} {kind(value)}; {_FOREIGN[library]}"
    if isinstance(value, float | int):
        return f"a {kind(value)}; {expression} = np.array({float(value)!r}) {before}"
    if isinstance(value, list | tuple):
        return f"a {kind(value)} of numbers; {expression} = np.array({expression}, np.float64) {before}"
    return f"{a} {kind(value)}"


def _libraries(value: Any) -> list[str]:
    return [cls.__module__.partition(".")[0] for cls in type(value).__mro__]


def explained(error: Exception, stepped: list[tuple[str, str, Array]], grads: list[Any]) -> Exception:
    """The error of a step that was refused, with a remedy that leads home where the kernels know none.

    Args:
        error: what the step raised.
        stepped: for each parameter with a gradient its name, how the user's code reaches it, and the array.
        grads: their gradients.

    Returns:
        The error to be raised: this one, or another of the same type.
    """
    from oxistep.numpy._accepted import overlaps_itself, span_overlaps

    for (name, expression, array), grad in zip(stepped, grads, strict=True):
        try:
            check_parameter(array, name, expression)
        except (TypeError, ValueError) as better:
            return better
        if overlaps_itself(array):
            return ValueError(
                f"several elements of {name} share memory (a broadcast or window view), so a step would write them "
                "more than once; give the array that it is a view of"
            )
        if isinstance(error, TypeError) and not isinstance(grad, np.ndarray | np.generic | int | float):
            libraries = _libraries(grad)
            if "scipy" in libraries and hasattr(grad, "toarray"):
                return TypeError(f"the gradient of {name} is sparse ({kind(grad)}): give it as grad.toarray()")
            for library, remedy in _GRADIENTS.items():
                if library in libraries:
                    return TypeError(f"the gradient of {name} is a {kind(grad)}, not a NumPy array: give {remedy}")
    if isinstance(error, ValueError) and "memory" in str(error):
        named = [(name, array) for name, _, array in stepped]
        pair = span_overlaps(named) or ("between its rows" in str(error) and span_overlaps(named, rows_too=True))
        if pair:
            return ValueError(
                f"{pair[1]} shares memory with {pair[0]}, or lies between its rows, so one step cannot write both: "
                "give each of them an optimizer of its own, or one array that holds both"
            )
    return error


_GRADIENTS = {
    "torch": "grad.numpy()",
    "cupy": "grad.get()",
    "jax": "np.asarray(grad)",
    "jaxlib": "np.asarray(grad)",
    "pandas": "grad.to_numpy()",
}
