"""How many bytes the states of a parameter take, or would take under other settings. Makes and reads no data."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oxistep.optim._averages import AVERAGE
from oxistep.optim._compact import COMPANIONS, DRAWN, EXACT, Kinds, blocks_of, dtype_kept, plain_names
from oxistep.optim._definition import definition_of
from oxistep.optim._kept import KEY, WEIGHTS, StateDType, Weights, kept_of
from oxistep.optim._storages import local_of

__all__ = [
    "Setting",
    "Sizes",
    "bytes_of_average",
    "bytes_of_gradient",
    "bytes_of_tensor",
    "default_state_dtype",
    "kept_now",
    "settings_for",
]

_BESIDE = {"residual16": 2, "residual8": 1, "kahan": 2, "master": 4}
"""How many bytes for each element that is."""

_HALF = (torch.float16, torch.bfloat16)
_HEADER = 4
_WHOLE = ("adafactor", "muon", "sparse_adam")
"""Rules that are not element-wise, whose states have one setting."""


class Setting(NamedTuple):
    """How states and weights may be kept."""

    state_dtype: StateDType
    weights: Weights


class Sizes:
    """The states of the parameters of one optimizer, as if they were kept as numbers."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._definition = definition_of(type(optimizer))
        self._known: dict[tuple[int, Any], dict[str, tuple[int, torch.dtype | None, bool]]] = {}

    def under(self, g: int, p: Tensor, setting: Setting) -> tuple[int, int]:
        """Bytes of the states of a parameter, and of what stands beside it."""
        group = self._under(self._optimizer.param_groups[g], setting.weights)
        local, blocks = local_of(p), blocks_of(p, estimates=True) if setting.state_dtype == "8bit" else 0
        kinds: Kinds = self._definition.kinds(self._optimizer, group) if self._is_element_wise else {}
        applies = local.device.type == "cpu" and local.dtype in (torch.float32, *_HALF)
        states, draws = 0, setting.weights in ("stochastic", "residual8")
        plain = self._plain(g, group, p)
        for name, (numel, dtype, has_elements) in plain.items():
            if not applies or not has_elements or dtype is None:
                states += numel * (8 if dtype is None else dtype.itemsize)
                continue
            kind = kinds.get(name, EXACT)
            wanted = dtype_kept(setting.state_dtype, local, kind, blocks) if kinds else self._narrow(dtype, setting)
            if wanted is None:
                states += numel + _HEADER * blocks
            else:
                states += numel * wanted.itemsize
            draws |= (wanted is None and kind[0] != "relative") or (
                wanted == torch.bfloat16 and setting.state_dtype is not None and kind[0] in DRAWN
            )
        if applies and draws and "step" not in plain:
            states += 4
        beside = _BESIDE.get(setting.weights or "", 0) if local.dtype in _HALF and applies else 0
        return states, beside * local.numel()

    def will_have(self, p: Tensor) -> bool:
        """Whether a parameter has states, or gets them when it has a gradient."""
        if self._definition.rule == "lbfgs" and self._optimizer.state:
            return False  # all are in the entry of the first parameter
        return p.requires_grad or p.grad is not None or bool(self._optimizer.state.get(p))

    @property
    def has_single_steps(self) -> bool:
        """Whether each parameter may be stepped by itself."""
        return self._definition.rule not in ("lbfgs", "muon")

    @property
    def _is_element_wise(self) -> bool:
        return self._definition.rule not in (*_WHOLE, "lbfgs")

    def _narrow(self, dtype: torch.dtype, setting: Setting) -> torch.dtype:
        """Where ``state_dtype`` can be float32 alone."""
        return torch.float32 if setting.state_dtype == torch.float32 and dtype in _HALF else dtype

    def _plain(self, g: int, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, torch.dtype | None, bool]]:
        """How many elements each state has, of which dtype, and whether it has the parameter's shape."""
        local = local_of(p)
        now = self._optimizer.param_groups[g]
        known = self._of_rule(g, group, local)
        others = set() if group is now else self._of_rule(g, now, local).keys() - known.keys()
        entry = self._optimizer.state.get(p) or {}
        if self._is_element_wise:  # a rule's states may begin later than in the first step
            kinds = self._definition.kinds(self._optimizer, group)
            for name in plain_names(entry, kinds, kept_of(self._optimizer).weights):
                if name not in known and name not in others and name != AVERAGE:
                    known[name] = (local.numel() if name in kinds else 1, local.dtype, name in kinds)
        return known

    def _under(self, group: dict[str, Any], weights: Weights) -> dict[str, Any]:
        """A group as the constructor would settle it with this setting of ``weights``: the group itself, if alike."""
        settled = getattr(self._optimizer, "_zoo_under", None) if self._definition.rule == "program" else None
        if settled is None or (weights is None) == (kept_of(self._optimizer).weights is None):
            return group
        return settled(group, weights)  # type: ignore[no-any-return]

    def _of_rule(self, g: int, group: dict[str, Any], local: Tensor) -> dict[str, tuple[int, torch.dtype | None, bool]]:
        """The same, of the states that a first step makes."""
        is_now = group is self._optimizer.param_groups[g]
        key = (g, (tuple(local.shape), local.dtype, local.stride(), is_now))
        if key not in self._known:
            self._known[key] = dict(self._told(group, local))
        return dict(self._known[key])

    def _told(self, group: dict[str, Any], p: Tensor) -> Iterator[tuple[str, tuple[int, torch.dtype | None, bool]]]:
        if self._definition.rule == "lbfgs":
            vectors = 2 * group["history_size"] + 2  # two for each entry of the history, the direction, the gradient
            yield "history", (vectors * p.numel(), p.dtype, False)
            return
        if self._definition.rule == "program":
            from oxistep.rules._optimizer import source_of

            source = source_of(type(self._optimizer))
            program = source.early_program(source.read(group, ""), tuple(p.shape), p.numel())
            yield "step", (1, torch.float32, False)
            for name, state in program.states.items():
                yield name, (p.numel(), p.dtype, True) if state.kind.has_elements else (1, None, False)
            return
        like = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="meta")
        kinds = self._definition.kinds(self._optimizer, group) if self._is_element_wise else {}
        for name, state in self._definition.new_state(self._optimizer, like, like, group).items():
            if isinstance(state, Tensor):  # SparseAdam's counter is a number of Python's
                has_elements = name in kinds if self._is_element_wise else name != "step"
                yield name, (state.numel(), state.dtype, has_elements and state.is_floating_point())


def kept_now(optimizer: Any, p: Tensor) -> tuple[int, int] | None:
    """Bytes of the states that a parameter has, and of what stands beside it; None before its first step."""
    entry = optimizer.state.get(p)
    if not entry:
        return None
    kept = optimizer.__dict__.get(KEY)
    beside = COMPANIONS.values() if kept is not None and kept.weights is not None else ()
    residuals = sum(bytes_of_tensor(value) for name, value in entry.items() if name in beside)
    averages = _bytes_of_value(entry.get(AVERAGE))
    return sum(map(_bytes_of_value, entry.values())) - residuals - averages, residuals


def bytes_of_average(optimizer: Any, p: Tensor) -> int:
    """Bytes of the running average that a parameter has, or gets when it has a gradient."""
    kept = optimizer.__dict__.get(KEY)
    if kept is None or kept.ema is None:
        return 0
    average = (optimizer.state.get(p) or {}).get(AVERAGE)
    if average is not None:
        return bytes_of_tensor(average)
    local = local_of(p)
    return local.numel() * (4 if local.dtype in _HALF else local.element_size()) if p.requires_grad else 0


def settings_for(optimizer: Any) -> Iterator[Setting]:
    """Every setting that an optimizer's constructor would take for its parameters; the one it has is among them."""
    definition = definition_of(type(optimizer))
    dtypes = {local_of(p).dtype for group in optimizer.param_groups for p in group["params"]}
    kept = kept_of(optimizer)
    now = Setting(kept.state_dtype, kept.weights)
    if definition.rule == "lbfgs":
        yield now
        return
    state_dtypes: list[StateDType] = [default_state_dtype(optimizer)]
    if dtypes & set(_HALF):
        state_dtypes.append(torch.float32)
    weights: list[Weights] = [None]
    if definition.rule not in _WHOLE:
        state_dtypes += [torch.bfloat16, "8bit"]
        if dtypes == {torch.bfloat16}:
            weights += list(WEIGHTS)  # type: ignore[arg-type]
        elif dtypes and dtypes <= set(_HALF):
            weights += ["kahan", "master"]
    yield from dict.fromkeys([*(Setting(state_dtype, one) for one in weights for state_dtype in state_dtypes), now])


def default_state_dtype(optimizer: Any) -> StateDType:
    """What ``state_dtype`` is where a constructor is given none."""
    if definition_of(type(optimizer)).rule != "program":
        return None
    from oxistep.zoo._base import Optimizer, answer_of

    try:
        given = answer_of(type(optimizer), {"lr": 1e-3}) if isinstance(optimizer, Optimizer) else None
    except Exception:  # of a class that somebody made of one of ours
        given = None
    return None if given is None else given.settings.get("state_dtype")


def bytes_of_tensor(t: Any) -> int:
    """What a tensor takes in memory on this rank."""
    t = local_of(t)
    if t.layout in (torch.sparse_coo,):
        return bytes_of_tensor(t._indices()) + bytes_of_tensor(t._values())
    return int(t.numel() * t.element_size())


def bytes_of_gradient(p: Tensor) -> int:
    """What the gradient of a parameter takes, or would take: the parameter's bytes, if it is to be trained."""
    if p.grad is not None:
        return bytes_of_tensor(p.grad)
    return bytes_of_tensor(p) if p.requires_grad else 0


def _bytes_of_value(value: Any) -> int:
    if isinstance(value, Tensor):
        return bytes_of_tensor(value)
    return sum(map(_bytes_of_value, value)) if isinstance(value, (list, tuple)) else 0
