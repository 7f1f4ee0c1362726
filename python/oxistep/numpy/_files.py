"""Checkpoints in files: arrays and text in an ``.npz``, and nothing that would have to be unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oxistep.numpy._functional import is_state, names_of
from oxistep.numpy._structure import Flat, is_container
from oxistep.numpy._types import Array, kind, short

__all__ = ["load", "save"]

_ABOUT = "oxistep"
"""The entry that says, as JSON, what the others are."""


def save(path: str | os.PathLike[str], params: Any, optimizer: Any = None) -> None:
    """Write parameters, and the optimizer's states and numbers, into an ``.npz`` file.

    The file appears whole or not at all: what was there before stays until the new one is written. It opens with
    ``np.load(path, allow_pickle=False)``: parameters are ``params/NAME``, states ``state/NUMBER/NAME``. A function as
    learning rate is not saved.

    Args:
        path: where to; ``.npz`` is appended if it is missing.
        params: arrays in a list, a dict, or containers of these at any depth; also such as are not trained.
        optimizer: an optimizer of ``oxistep.numpy``, or the state of one without an object, as ``init`` and ``update``
            return it (default: None, parameters alone).

    Raises:
        TypeError: for what is no array of numbers, or an entry of a param group that is no number, text or list; for
            arguments in another order.
        OSError: if the file cannot be written.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from oxistep.numpy import Adam, load, save
        >>> params = {"w": np.zeros(2)}
        >>> optimizer = Adam(params, lr=0.1)
        >>> optimizer.step({"w": np.ones(2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(os.path.join(folder, "model"), params, optimizer)
        ...     params["w"][...] = 7.0
        ...     load(os.path.join(folder, "model"), params, optimizer)
        >>> params["w"]
        array([-0.1, -0.1])
    """
    _check_order(path, params, "save")
    arrays = {f"params/{name}": array for name, array in _named(params).items()}
    about: dict[str, Any] = {"format": 1}
    if is_state(optimizer):
        for i, entry in enumerate(optimizer["state"].values()):
            arrays |= {f"state/{i}/{key}": np.asarray(value) for key, value in entry.items()}
        about["functional"] = {
            "names": list(optimizer["state"]),
            "group": _plain_group(optimizer["group"], 0),
            "step_count": int(optimizer["step_count"]),
        }
        if (bound := getattr(optimizer, "_bound", None)) is not None:
            about["functional"]["class"] = type(bound[2]).__name__
    elif optimizer is not None:
        _check_optimizer(optimizer)
        saved = optimizer.state_dict()
        for i, entry in saved["state"].items():
            arrays |= {f"state/{i}/{key}": np.asarray(value) for key, value in entry.items()}
        about["optimizer"] = {
            "class": type(optimizer).__name__,
            "param_groups": [_plain_group(group, k) for k, group in enumerate(saved["param_groups"])],
            "step_count": saved["step_count"],
        }
    target = _with_suffix(path)
    # beside it: a file can only be renamed within its file system
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **{_ABOUT: np.array(json.dumps(about))}, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], params: Any, optimizer: Any = None) -> None:
    """Read what `save` wrote, into the arrays that are there: the model and the optimizer go on using them.

    Args:
        path: of the file; ``.npz`` is appended if it is missing.
        params: the parameters, in a structure with the same names.
        optimizer: an optimizer of the same class, or of another that loads its states; or the state that ``init``
            returned for these parameters, which becomes the one that was saved (default: None, parameters alone).

    Raises:
        TypeError: for what is no array; for arguments in another order.
        ValueError: if names, shapes or types do not fit, an array cannot be written, or the file was not written by
            `save`. Whatever is raised, nothing has been changed.
        OSError: if the file cannot be read.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from oxistep.numpy import load, save
        >>> w = np.arange(3.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(os.path.join(folder, "weights.npz"), [w])
        ...     other = np.zeros(3)
        ...     load(os.path.join(folder, "weights.npz"), [other])
        >>> other
        array([0., 1., 2.])
    """
    _check_order(path, params, "load")
    named = _named(params)
    with np.load(_with_suffix(path), allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile) or _ABOUT not in file:
            raise ValueError(f"{os.fspath(path)} was not written by oxistep.numpy.save; np.load reads it")
        about = json.loads(str(file[_ABOUT]))
        found = {key.removeprefix("params/"): file[key] for key in file if key.startswith("params/")}
        states: dict[int, dict[str, Array]] = {}
        if optimizer is not None:
            for key in file:
                if key.startswith("state/"):
                    _, i, name = key.split("/", 2)
                    states.setdefault(int(i), {})[name] = file[key]
    if found.keys() != named.keys():
        raise ValueError(
            f"the file has the parameters {short(found)}, expected {short(named)}; give load the structure that save "
            "was given"
        )
    for name, array in named.items():
        _check_target(name, array, found[name])
    if is_state(optimizer):
        _load_functional(about, states, optimizer)
    elif optimizer is not None:
        _check_optimizer(optimizer)
        if "optimizer" not in about:
            raise ValueError(_other_kind(about, "an optimizer", "functional"))
        saved = about["optimizer"]
        try:
            optimizer.load_state_dict(
                {"state": states, "param_groups": saved["param_groups"], "step_count": saved["step_count"]}
            )
        except (TypeError, ValueError) as error:
            if saved["class"] == type(optimizer).__name__:
                raise
            told = f"the file was saved by {saved['class']}, and this optimizer is {type(optimizer).__name__}"
            raise type(error)(f"{error} ({told})") from None
    for name, array in named.items():
        array[...] = found[name]


def _load_functional(about: Mapping[str, Any], states: Mapping[int, Any], state: dict[str, Any]) -> None:
    """Makes a state of functions the one that was saved."""
    if "functional" not in about:
        raise ValueError(_other_kind(about, "the state of functions", "optimizer"))
    saved = about["functional"]
    if set(saved["names"]) != state["state"].keys():
        raise ValueError(
            f"the file has the state of {short(saved['names'])}, expected that of {short(state['state'])}; give load "
            "what init returned for these parameters"
        )
    loaded = {name: states.get(i, {}) for i, name in enumerate(saved["names"])}
    if (bound := getattr(state, "_bound", None)) is not None:
        loaded = _checked(loaded, bound[2], saved.get("class"))
    state["state"] = {name: loaded[name] for name in state["state"]}
    state["group"], state["step_count"] = saved["group"], saved["step_count"]


def _checked(loaded: Mapping[str, Any], optimizer: Any, saved_by: str | None) -> dict[str, Any]:
    """Loaded states as this optimizer has them, in the dtypes of its parameters."""
    group, checked = optimizer.param_groups[0], dict(loaded)
    try:
        for i, name in enumerate(names_of(optimizer)):
            if loaded[name]:
                checked[name] = optimizer._oxistep_loaded_state(loaded[name], group, 0, i)
    except (TypeError, ValueError) as error:
        if saved_by in (None, type(optimizer).__name__):
            raise
        told = f"the file was saved by {saved_by}, and this state is of {type(optimizer).__name__}"
        raise type(error)(f"{error} ({told})") from None
    return checked


def _other_kind(about: Mapping[str, Any], what: str, other: str) -> str:
    """What is said where a file does not have what is to be loaded."""
    if other in about:
        kinds = {"optimizer": "an optimizer's", "functional": "that of functions, as init and update return it"}
        return f"the file has another state than that of {what}: it is {kinds[other]}; give load one of the same kind"
    return f"the file has parameters alone: it was saved without {what}"


def _check_order(path: Any, params: Any, what: str) -> None:
    """Refuses arguments that stand where others should."""
    order = f"the order is {what}(path, params, optimizer)"
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {kind(path)}: {order}")
    if callable(getattr(params, "load_state_dict", None)) or is_state(params):
        raise TypeError(f"params is an optimizer or its state, expected arrays: {order}")
    if isinstance(params, str | os.PathLike):
        raise TypeError(f"params is a {kind(params)}, expected arrays: {order}")


def _named(params: Any) -> dict[str, Array]:
    flat = Flat(params if is_container(params) else [params])
    named = dict(zip(flat.names, flat.arrays, strict=True))
    for name, array in named.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"params[{name!r}] is a {kind(array)}, expected an array; np.array(value) makes one")
        if array.dtype.hasobject or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"params[{name!r}] is an array that no file can hold without pickle")
    return named


def _check_target(name: str, array: Array, read: Array) -> None:
    if read.shape != array.shape:
        raise ValueError(f"the file has params[{name!r}] of shape {read.shape}, expected {array.shape}")
    if not np.can_cast(read.dtype, array.dtype, "same_kind"):
        raise ValueError(f"the file has params[{name!r}] of dtype {read.dtype}, expected {array.dtype}")
    if not array.flags.writeable:
        raise ValueError(f"params[{name!r}] is read-only, so it cannot be loaded into")


def _check_optimizer(optimizer: Any) -> None:
    if not callable(getattr(optimizer, "load_state_dict", None)) or not hasattr(optimizer, "step_count"):
        raise TypeError(f"optimizer must be one of oxistep.numpy, got {kind(optimizer)}")


def _plain_group(group: Mapping[str, Any], k: int) -> dict[str, Any]:
    """A param group of a state dict as JSON can hold it."""
    plain = {}
    for key, value in group.items():
        value = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
        try:
            plain[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            raise TypeError(
                f"param_groups[{k}][{key!r}] is a {kind(value)}, which a file without pickle cannot hold; take it out, "
                "or save state_dict() in a way of your own"
            ) from None
    return plain


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
