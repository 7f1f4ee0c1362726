"""Optimizer states in a file: which class they look like, and what `oxistep.explain` says of stand-ins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from oxistep._memory import Memory, in_words

# The states each class of torch.optim keeps for a parameter, all but `step` tensors.
STATES: dict[str, set[str]] = {
    "SGD": {"momentum_buffer"},
    "Adagrad": {"step", "sum"},
    "RMSprop": {"step", "square_avg", "momentum_buffer", "grad_avg"},
    "Adam": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "Adadelta": {"step", "square_avg", "acc_delta"},
    "NAdam": {"step", "mu_product", "exp_avg", "exp_avg_sq"},
    "RAdam": {"step", "exp_avg", "exp_avg_sq"},
    "Adamax": {"step", "exp_avg", "exp_inf"},
    "ASGD": {"step", "eta", "mu", "ax"},
    "Rprop": {"step", "prev", "step_size"},
    "SparseAdam": {"step", "exp_avg", "exp_avg_sq"},
    "Adafactor": {"step", "row_var", "col_var", "variance"},
    "Muon": {"momentum_buffer"},
    "LBFGS": {
        "func_evals",
        "n_iter",
        "d",
        "t",
        "old_dirs",
        "old_stps",
        "ro",
        "H_diag",
        "prev_flat_grad",
        "prev_loss",
        "al",
    },
}
# And each class of oxistep.zoo, which has them from the packages that people take such optimizers from.
ZOO_STATES: dict[str, set[str]] = {
    "ADOPT": {"step", "exp_avg", "exp_avg_sq"},
    "AdEMAMix": {"step", "exp_avg", "exp_avg_slow", "exp_avg_sq"},
    "AdaBelief": {"step", "exp_avg", "exp_avg_var", "max_exp_avg_var"},
    "AdaBound": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "AdamAtan2": {"step", "steps", "exp_avg", "exp_avg_sq", "param_init"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "AdamWScheduleFree": {"step", "z", "exp_avg_sq"},
    "Adan": {"step", "exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"},
    "LAMB": {"step", "exp_avg", "exp_avg_sq"},
    "LARS": {"step", "momentum_buffer"},
    "LaProp": {"step", "exp_avg", "exp_avg_sq", "exp_avg_lr_1", "exp_avg_lr_2"},
    "Lion": {"step", "exp_avg"},
    "MADGRAD": {"step", "grad_sum_sq", "s", "x0"},
    "MARS": {"step", "exp_avg", "exp_avg_sq", "last_grad"},
    "NAdamW": {"step", "exp_avg", "exp_avg_sq"},
    "NovoGrad": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "Prodigy": {"step", "exp_avg", "exp_avg_sq", "p0", "s"},
    "RAdamScheduleFree": {"step", "z", "exp_avg_sq"},
    "RMSpropTF": {"step", "square_avg", "grad_avg", "momentum_buffer"},
    "SGDScheduleFree": {"step", "z"},
    "SGDW": {"step", "momentum_buffer"},
    "SignSGD": {"step", "momentum_buffer"},
    "SophiaG": {"step", "exp_avg", "hessian"},
    "StableAdamW": {"step", "exp_avg", "exp_avg_sq", "eps_sq", "kahan_comp"},
    "Tiger": {"step", "exp_avg"},
}
# What `weights=` keeps beside a parameter of a half type, and `ema=` beside any.
BESIDE = ("residual", "compensation", "master")
AVERAGE = "param_ema"
CODES, HEADERS = "_codes", "_headers"
_NUMBERS = ("step", "eta", "mu", "mu_product")
# What schedulers note in groups, and the zoo has a setting of the same name.
_NOTED = {"max_lr"}
_DEPTH = 4  # how deep dicts are searched


@dataclass(frozen=True)
class Parameter:
    """One parameter, as far as its states tell."""

    group: int
    name: str
    shape: list[int] | None
    dtype: str | None  # of the parameter
    states: str | None  # what these are kept in: a dtype, or 8bit
    step: int | None
    bytes: int
    path: str  # native, torch, or unknown
    reason: str

    def cells(self) -> list[str]:
        """In words."""
        shape = "?" if self.shape is None else " × ".join(map(str, self.shape)) or "scalar"
        step = "?" if self.step is None else f"{self.step:,}"
        return [str(self.group), self.name, shape, self.dtype or "?", step, self.path, self.reason]


@dataclass(frozen=True)
class Report:
    """What is known of one optimizer's state_dict."""

    where: str  # its place in the file
    optimizers: list[str]  # classes whose states these can be, the likeliest first; several if nothing decides
    groups: list[dict[str, Any]]  # the numbers among the settings
    parameters: list[Parameter]
    setting: dict[str, Any]  # what `weights=`, `state_dtype=` and `ema=` were, as far as the states tell
    memory: Memory | None = None  # of the parameters with their gradients and states, if the class is known

    @property
    def title(self) -> str:
        """The class, or those it may be."""
        return " or ".join(self.optimizers) if self.optimizers else "no class of torch.optim or oxistep.zoo"

    @property
    def bytes_a_parameter(self) -> float | None:
        """Bytes an element of a parameter with its gradient, its states and what stands beside it."""
        elements = 0 if self.memory is None else sum(group.elements for group in self.memory.groups)
        return round(self.memory.total / elements, 2) if self.memory is not None and elements else None

    def lines(self) -> Iterator[str]:
        """In words, without the list of parameters."""
        with_state = [p for p in self.parameters if p.bytes or p.step is not None]
        groups = "1 group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        yield f"parameters: {len(self.parameters)} in {groups}, {len(with_state)} with a state"
        steps = sorted({p.step for p in self.parameters if p.step is not None})
        if steps:
            yield f"steps: {steps[0]:,}" + (f" to {steps[-1]:,}" if len(steps) > 1 else "")
        kept = Counter(p.states for p in with_state if p.states)
        if kept:
            yield f"states: {', '.join(f'{n} of {what}' for what, n in kept.items())}"
        if self.setting:
            unsure = "" if "weights" in self.setting else " (if the parameters are float32: the states do not tell)"
            yield f"settings: {', '.join(_written(key, value) for key, value in self.setting.items())}{unsure}"
        yield f"memory of the states: {in_words(sum(p.bytes for p in self.parameters))}"
        if self.memory is not None:
            memory = self.memory
            yield (
                f"memory in training: {in_words(memory.total)}, of that parameters {in_words(memory.parameters)} and "
                f"gradients {in_words(memory.gradients)}; {self.bytes_a_parameter} bytes a parameter"
            )
        for g, group in enumerate(self.groups):
            yield f"group {g}: " + ", ".join(f"{key} {value}" for key, value in group.items())
        paths = Counter(p.path for p in self.parameters)
        yield "next step: " + ", ".join(f"{n} {path}" for path, n in paths.items())

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        memory = {"memory": None if self.memory is None else self.memory.to_dict()}
        more = {"state_bytes": sum(p.bytes for p in self.parameters), "bytes_a_parameter": self.bytes_a_parameter}
        return asdict(self) | memory | more


def state_dicts(content: Any, where: str = "", depth: int = _DEPTH) -> list[tuple[str, dict[str, Any]]]:
    """Every state_dict of an optimizer in nested dicts and lists, with its place."""
    if isinstance(content, dict):
        if _is_state_dict(content):
            return [(where or "the file", content)]
        items = [(f"{where}[{key!r}]", value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        items = [(f"{where}[{i}]", value) for i, value in enumerate(content)]
    else:
        return []
    return [found for place, value in items if depth for found in state_dicts(value, place, depth - 1)]


def _is_state_dict(content: dict[Any, Any]) -> bool:
    state, groups = content.get("state"), content.get("param_groups")
    return (
        isinstance(state, dict)
        and all(isinstance(one, dict) for one in state.values())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    )


def report_of(where: str, saved: dict[str, Any]) -> Report:
    """All that can be told of one state_dict."""
    import torch

    optimizers = recognized(saved)
    groups = [
        {key: value for key, value in ((k, _number(v)) for k, v in group.items()) if value is not None}
        for group in saved["param_groups"]
    ]
    setting = _setting_of(saved, optimizers[0] if optimizers else "")
    paths, memory = _told(optimizers[0], saved, setting) if optimizers else ({}, None)
    parameters = []
    for g, group in enumerate(saved["param_groups"]):
        names = group.get("param_names") or [str(number) for number in group.get("params", [])]
        for number, name in zip(group.get("params", []), names, strict=False):
            state = saved["state"].get(number, {})
            path, reason = paths.get(number, ("unknown", "it has no state, so its shape is not known"))
            if not optimizers:
                path, reason = "unknown", "its class is not known"
            shape, dtype = _like(state, setting)
            parameters.append(
                Parameter(
                    group=g,
                    name=name,
                    shape=None if shape is None else list(shape),
                    dtype=_named(dtype),
                    states=_kept_in(state),
                    step=_step(state),
                    bytes=sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state)),
                    path=path,
                    reason=reason,
                )
            )
    told = {key: _named(value) if isinstance(value, torch.dtype) else value for key, value in setting.items()}
    return Report(where, optimizers, groups, parameters, told, memory)


def recognized(saved: dict[str, Any]) -> list[str]:
    """The classes that keep such states and know all these settings; of these, those that share most settings.

    torch's go before those of ``oxistep.zoo``, which are called ``zoo.Lion``.
    """
    import torch

    from oxistep import zoo

    kept = {key for state in saved["state"].values() for key in _plain_names(state)}
    ones = [torch.nn.Parameter(torch.ones(2, 2))]
    of_torch = {name: set(getattr(torch.optim, name)(ones).defaults) for name in STATES if hasattr(torch.optim, name)}
    of_zoo = {f"zoo.{name}": set(getattr(zoo, name)(ones, lr=1e-3).defaults) for name in ZOO_STATES}
    # Groups may hold more: what schedulers note, and what users like to.
    known_to_any = set().union(*of_torch.values(), *of_zoo.values()) - _NOTED
    settings = {key for group in saved["param_groups"] for key in group} & known_to_any
    states = STATES | {f"zoo.{name}": keys for name, keys in ZOO_STATES.items()}
    states |= {"SGD": states["SGD"] | {"step"}}  # which it counts where something is rounded at random
    for defaults in (of_torch, of_zoo):
        scores = {
            name: len(settings) / len(known)
            for name, known in defaults.items()
            if kept <= states[name] and settings <= known  # a checkpoint may be older than a setting, hardly newer
        }
        if scores:
            break
    decoupled = {bool(group.get("decoupled_weight_decay")) for group in saved["param_groups"]}
    if "decoupled_weight_decay" in settings and {"Adam", "AdamW"} <= set(scores):
        del scores["Adam" if decoupled == {True} else "AdamW"]
    best = max(scores.values(), default=0.0)
    return [name for name, score in scores.items() if score == best]


def _plain_names(state: dict[Any, Any]) -> set[Any]:
    """The names that states have as numbers, without what stands beside the parameter."""
    names = {key for key in state if not isinstance(key, str)}  # a file can hold anything
    for key in filter(lambda key: isinstance(key, str), state):
        base = key.removesuffix(CODES).removesuffix(HEADERS)
        is_coded = base + CODES in state and base + HEADERS in state
        names.add(base if is_coded else key)
    return names - {*BESIDE, AVERAGE}


def _is_coded(state: dict[str, Any]) -> bool:
    """Whether a state is there in 8 bits."""
    return bool(state.keys() - _plain_names(state) - {*BESIDE, AVERAGE})


def _beside(state: dict[str, Any]) -> str | None:
    """What `weights=` keeps such a tensor beside a parameter, if one is there."""
    import torch

    of_residual = {torch.int16: "residual16", torch.uint8: "residual8"}
    if (residual := state.get("residual")) is not None:
        return of_residual.get(residual.dtype) if hasattr(residual, "dtype") else None
    return "master" if "master" in state else "kahan" if "compensation" in state else None


def _setting_of(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a constructor that make such states, as far as they tell."""
    import torch

    states = list(saved["state"].values())
    setting: dict[str, Any] = {}
    is_coded = any(map(_is_coded, states))
    if weights := next(filter(None, map(_beside, states)), None):
        setting["weights"] = weights
    elif name == "SGD" and not is_coded and any("step" in state for state in states):
        setting["weights"] = "stochastic"
    if is_coded:
        setting["state_dtype"] = "8bit"
    elif "weights" in setting and torch.float32 in (dtypes := set().union(*map(_dtypes_of_states, states))):
        # what must not be rounded stays float32 beside others
        setting["state_dtype"] = torch.float32 if dtypes == {torch.float32} else torch.bfloat16
    if any(AVERAGE in state for state in states):
        setting["ema"] = True
    return setting


def _told(
    name: str, saved: dict[str, Any], setting: dict[str, Any]
) -> tuple[dict[Any, tuple[str, str]], Memory | None]:
    """What `oxistep.explain` and `oxistep.memory` say once states are loaded for stand-ins of their shape and dtype."""
    import oxistep.optim
    import oxistep.zoo

    library, own = (oxistep.zoo if name.startswith("zoo.") else oxistep.optim), name.removeprefix("zoo.")
    given = setting | ({"ema": 0.999} if "ema" in setting else {})
    made, numbers = [], []
    for group in saved["param_groups"]:
        params = [
            _stand_in(saved["state"].get(number, {}), name == "SparseAdam", setting) for number in group["params"]
        ]
        made.append({"params": params})
        numbers += list(group["params"])
    try:
        optimizer = getattr(library, own)(made, lr=1e-3, **given)
        optimizer.load_state_dict(saved)
        rows, memory = oxistep.explain(optimizer), oxistep.memory(optimizer)
    except Exception as error:  # a file can hold anything
        why = f"{library.__name__}.{own} cannot load it: {type(error).__name__}: {error}".splitlines()[0]
        return dict.fromkeys(numbers, ("unknown", why)), None
    shapes_are_known = [_like(saved["state"].get(number, {}), setting)[0] is not None for number in numbers]
    paths = {
        number: (row.path, row.reason)
        for number, row, is_known in zip(numbers, rows, shapes_are_known, strict=True)
        if is_known
    }
    return paths, memory if all(shapes_are_known) else None


def _stand_in(state: dict[str, Any], sparse: bool, setting: dict[str, Any]) -> Any:
    """A parameter with a gradient; memory that is never touched costs nothing."""
    import torch

    shape, dtype = _like(state, setting)
    if dtype is None and "weights" in setting:  # which take half types alone
        dtype = torch.bfloat16
    usable = dtype is not None and (dtype.is_floating_point or dtype.is_complex)
    parameter = torch.nn.Parameter(torch.empty(shape or (), dtype=dtype if usable else None))
    if shape is not None:
        parameter.grad = torch.empty_like(parameter)
        if sparse and shape:  # no row is named, as if no word of an embedding had come up
            rows, values = torch.empty((1, 0), dtype=torch.int64), parameter.detach()[:0]
            parameter.grad = torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)
    return parameter


def _like(state: dict[str, Any], setting: dict[str, Any]) -> tuple[tuple[int, ...] | None, Any]:
    """Shape and dtype of the parameter that has this state."""
    if "row_var" in state and "col_var" in state:  # Adafactor: means of rows, and of columns
        *outer, rows, _ = state["row_var"].shape
        return (*outer, rows, state["col_var"].shape[-1]), state["row_var"].dtype
    if "func_evals" in state:  # L-BFGS: one vector for all parameters
        return None, None
    arrays = _arrays(state)
    beside = [state[key] for key in (*BESIDE, AVERAGE) if hasattr(state.get(key), "shape")]
    if not arrays and not beside:
        return None, None
    like = max([*arrays.values(), *beside], key=lambda t: len(t.shape))  # others are numbers, or lie flat
    return tuple(like.shape), _dtype_of(state, like.dtype, setting)


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    """The states of a parameter's shape, as numbers or in codes; some may lie flat, or be numbers."""
    known = _plain_names(state) - set(_NUMBERS)
    known |= {name + CODES for name in known if name not in state}
    return {key: t for key, t in state.items() if key in known and hasattr(t, "shape")}


def _dtypes_of_states(state: dict[str, Any]) -> set[Any]:
    """The dtypes of the states of a parameter's shape."""
    shape, _ = _like(state, {})
    return {t.dtype for t in _arrays(state).values() if tuple(t.shape) == shape}


def _dtype_of(state: dict[str, Any], of_states: Any, setting: dict[str, Any]) -> Any:
    """The dtype of a parameter: of states as numbers, if nothing else tells."""
    import torch

    if hasattr(state.get("compensation"), "dtype"):
        return state["compensation"].dtype
    if "weights" in setting or _beside(state) is not None:  # which are for half types
        return torch.float16 if of_states == torch.float16 else torch.bfloat16
    return torch.float32 if _is_coded(state) else of_states


def _kept_in(state: dict[str, Any]) -> str | None:
    """What the states of a parameter are kept in."""
    arrays = _arrays(state)
    if not arrays:
        return None
    if _is_coded(state):
        return "8bit"
    return _named(max(arrays.values(), key=lambda t: len(t.shape)).dtype)


def _written(key: str, value: Any) -> str:
    """A setting as it is written in a call. (No file tells the decay of averages.)"""
    if key == "ema":
        return "ema=..."
    return f"{key}={value!r}" if key == "weights" or value == "8bit" else f"{key}=torch.{value}"


def _named(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _tensors(state: Any) -> Iterator[Any]:
    if hasattr(state, "element_size"):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _step(state: dict[str, Any]) -> int | None:
    step = state.get("step", state.get("n_iter"))
    try:
        return None if step is None else int(step)
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> Any:
    """Settings that can be shown in a line: numbers, also as tensors, and pairs of them."""
    if hasattr(value, "item") and getattr(value, "numel", lambda: 0)() == 1:
        value = value.item()
    if isinstance(value, float | int) and not isinstance(value, bool):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, tuple | list) and value and all(isinstance(v, float) for v in value):
        return list(value)
    return True if value is True else None
