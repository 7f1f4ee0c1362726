"""Everything that a short training changes, put back bit for bit."""

from __future__ import annotations

import copy
import random
import sys
from types import TracebackType
from typing import Any

import numpy as np

from oxistep.diagnostics._named import is_tensor


class Snapshot:
    """Remembers an optimizer with its parameters, a model and random numbers on entry, and restores them on exit.

    Objects stay the same objects: tensors and arrays get their old contents back, dicts their old entries.
    """

    def __init__(self, optimizer: Any, model: Any, generators: tuple[Any, ...]) -> None:
        self._optimizer, self._model = optimizer, model
        self._generators = [_Generator(generator) for generator in generators]

    def __enter__(self) -> Snapshot:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        self._base_rates = [_rate(group) for group in groups]
        self._group_dicts = list(groups)
        self._groups = [_Kept(group) for group in groups]
        objects: dict[int, Any] = {id(p): p for group in groups for p in group["params"]}
        if self._model is not None:
            from itertools import chain

            objects |= {id(x): x for x in chain(self._model.parameters(), self._model.buffers())}
        self._tensors = [_Kept(x) for x in objects.values()]
        self._grads = [(p, p.grad, _Kept(p.grad)) for p in objects.values() if is_tensor(p) and _is_leaf(p)]
        self._state = None if self._optimizer is None else _Kept(self._optimizer.state)
        self._wrappers, self._steps = _wrappers_of(self._optimizer)
        self._as_stepped = _as_stepped(self._steps, [p for group in groups for p in group["params"]])
        own = {} if self._optimizer is None else vars(self._optimizer)
        self._own = {key: own[key] for key in ("step_count", "last_grad_norm") if key in own}
        self._random = _random_states()
        return self

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of every group, in proportion to what it was."""
        largest = max(self._base_rates, default=0.0)
        for group, base in zip(self._group_dicts, self._base_rates, strict=True):
            new = rate * base / largest if largest > 0 else rate
            if is_tensor(group["lr"]):
                group["lr"].fill_(new)
            else:
                group["lr"] = new

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for kept in (*self._tensors, *self._groups):
            kept.restore()
        for p, grad, kept in self._grads:
            kept.restore()
            p.grad = grad
        if self._optimizer is not None:
            self._optimizer.param_groups[:] = self._group_dicts
            if self._state is not None:
                self._optimizer.state = self._state.restore()
            for key in ("step_count", "last_grad_norm"):
                if key in self._own:
                    setattr(self._optimizer, key, self._own[key])
                elif key in vars(self._optimizer):
                    delattr(self._optimizer, key)
        for kept in self._wrappers:
            kept.restore()
        if self._as_stepped:
            from oxistep.optim._digits import note

            note(self._steps, self._as_stepped)
        for generator in self._generators:
            generator.restore()
        _set_random_states(self._random)


def _wrappers_of(optimizer: Any) -> tuple[list[_Kept], Any]:
    """What wrappers of ``oxistep.zoo`` keep of the parameters, and the optimizer in the innermost."""
    kept = []
    while optimizer is not None and "base_optimizer" in vars(optimizer):
        kept.append(_Kept(vars(optimizer).get("_kept")))
        optimizer = optimizer.base_optimizer
    return kept, optimizer


def _as_stepped(optimizer: Any, params: list[Any]) -> list[Any]:
    """The parameters to which what is kept beside them belongs (``weights=``)."""
    if not any(is_tensor(p) for p in params):
        return []
    from oxistep.optim._digits import unedited

    return unedited(optimizer, params)


class _Kept:
    """A value with a copy of its contents; of containers, recursively."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.parts: Any = None
        if is_tensor(value):
            self.parts = value.detach().clone()
        elif isinstance(value, np.ndarray):
            self.parts = value.copy()
        elif isinstance(value, dict):
            self.parts = [(key, _Kept(item)) for key, item in value.items()]
        elif isinstance(value, list):
            self.parts = [_Kept(item) for item in value]

    def restore(self) -> Any:
        """The value as it was."""
        value = self.value
        if is_tensor(value):
            _restore_tensor(value, self.parts)
        elif isinstance(value, np.ndarray):
            value[...] = self.parts
        elif isinstance(value, dict):
            items = [(key, kept.restore()) for key, kept in self.parts]
            value.clear()
            value.update(items)
        elif isinstance(value, list):
            value[:] = [kept.restore() for kept in self.parts]
        return value


def _restore_tensor(value: Any, old: Any) -> None:
    import torch

    with torch.no_grad():
        if value.layout != torch.strided:
            value.data = old
        elif not (value.dtype == old.dtype and value.shape == old.shape):
            value.data = old
        else:
            value.copy_(old)


def _is_leaf(p: Any) -> bool:
    return bool(p.is_leaf)


def _rate(group: dict[str, Any]) -> float:
    lr = group["lr"]
    return float(lr) if not callable(lr) and lr is not None else 0.0


class _Generator:
    """A source of random numbers with its state."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        if isinstance(generator, np.random.Generator):
            self.state: Any = copy.deepcopy(generator.bit_generator.state)
        elif isinstance(generator, random.Random):
            self.state = generator.getstate()
        elif callable(getattr(generator, "get_state", None)):
            self.state = generator.get_state()
        else:
            raise TypeError(
                "generators: expected torch.Generator, numpy.random.Generator or random.Random, "
                f"got {type(generator).__name__}"
            )

    def restore(self) -> None:
        """Puts the state back."""
        if isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = self.state
        elif isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        else:
            self.generator.set_state(self.state)


def _random_states() -> tuple[Any, ...]:
    torch = sys.modules.get("torch")
    of_torch = None
    if torch is not None:
        of_torch = (torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None)
    return random.getstate(), np.random.get_state(), of_torch


def _set_random_states(states: tuple[Any, ...]) -> None:
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    if of_torch is not None:
        import torch

        torch.set_rng_state(of_torch[0])
        if of_torch[1] is not None:
            torch.cuda.set_rng_state_all(of_torch[1])
