"""What the NumPy optimizers share: parameter groups, the step, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from operator import is_, itemgetter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from oxistep._core import ArrayPlan, KernelError
from oxistep._names import names_of
from oxistep._torn import Torn, text_of
from oxistep.numpy._hyper import Check, is_whole, real

Array = NDArray[Any]
Group = dict[str, Any]
State = dict[str, Array]
# One iterable and one sequence for all that may be in them: mypy does not look into a list where two kinds would do.
Params = Iterable[Array | Group] | Mapping[str, Array]
Grad = Array | np.generic | float | tuple[Array | Sequence[int], Array] | None
Grads = Sequence[Grad | Sequence[Grad] | Mapping[str, Grad]] | Mapping[str, Grad]

# How torch runs a step. It does not change what is computed, so a checkpoint loads without these.
_TORCH_ONLY = {"foreach", "fused", "capturable", "differentiable"}


class Optimizer:
    """Base of the NumPy optimizers; use `SGD`, `AdamW` or another of them.

    Attributes:
        param_groups: list of dicts, one per group: ``"params"`` (list of arrays), ``"param_names"`` (list of
            str, only where the arrays were given as a dict) and the hyperparameters, which may be changed
            between steps.
        state: for each group a list with one dict per parameter: ``state[k][i]`` belongs to
            ``param_groups[k]["params"][i]``; with all but Adagrad it is empty until the parameter's first
            gradient.
        step_count: how many steps this optimizer has done; what a learning rate function is called with.
        defaults: the hyperparameters of groups that do not bring their own.
    """

    # What a subclass declares: the native rule; a checker for each hyperparameter; every key a state may
    # have, and those of them that are one number; the hyperparameters that old checkpoints lack, because torch
    # had not invented them, with what their absence means.
    _oxistep_rule: ClassVar[str]
    _oxistep_checks: ClassVar[dict[str, Check]]
    _oxistep_state_keys: ClassVar[tuple[str, ...]]
    _oxistep_scalars: ClassVar[tuple[str, ...]] = ("step",)
    _oxistep_added_later: ClassVar[Group]

    # Reads all hyperparameters of a group but lr; each class has several.
    _oxistep_settings: ClassVar[itemgetter[Any]]

    _oxistep_checked_last: tuple[tuple[Any, ...], ...] = ()
    """For each group its hyperparameters but lr as they were when they were last found good."""

    _oxistep_rates: Sequence[float] = ()
    """The learning rates of the groups in the step under way: some states begin as those."""

    _oxistep_torn: Torn | None = None
    """Set when a step broke off half-way, which takes a defect in a kernel; cleared by `load_state_dict`."""

    _oxistep_watch: Any = None
    """An `oxistep.diagnostics.UpdateMonitor` that wants to know what each step does."""

    _oxistep_plan: ArrayPlan | None = None
    """What is known from the last step. A copy of an optimizer, or one that was pickled, begins without."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_oxistep_checks" in cls.__dict__:
            cls._oxistep_settings = itemgetter(*(key for key in cls._oxistep_checks if key != "lr"))

    def __init__(self, params: Params, defaults: Group) -> None:
        self.defaults = self._oxistep_checked(defaults)
        self.param_groups: list[Group] = []
        self.state: list[list[State]] = []
        self.step_count = 0
        # Whether gradients come as one list (or dict) per group, or as that of the only group.
        self._oxistep_grouped = False

        groups: list[Any]
        if isinstance(params, Mapping):
            if isinstance(params.get("params"), list | tuple | Mapping):
                raise TypeError("a group dict must be in a list: [{'params': ...}]")
            groups = [{"params": params}] if params else []
        elif isinstance(params, np.ndarray | str) or not isinstance(params, Iterable):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of arrays or dicts, "
                f"but got {_kind(params)}; put a single array into a list"
            )
        else:
            groups = list(params)
            self._oxistep_grouped = bool(groups) and isinstance(groups[0], dict)
            if groups and not self._oxistep_grouped:
                groups = [{"params": groups}]
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        for group in groups:
            self._oxistep_add(group)

    def step(self, grads: Grads) -> None:
        """Update every parameter that has a gradient, in place.

        Args:
            grads: the gradients in the structure of the parameters: a list for a list, a dict with the same
                keys for a dict, and for groups one of these per group. Each has its parameter's shape, any
                layout and any real dtype, from which it is rounded to the parameter's, and is only read; for a
                parameter without dimensions a number will do. A pair ``(indices, rows)`` or a matrix of
                ``scipy.sparse`` is the gradient of some rows, for SGD without momentum and weight decay, Adagrad
                and SparseAdam. None leaves that parameter and its state as they are.

        Raises:
            TypeError: a gradient is neither an array nor a number, or not of real numbers, `grads` is of
                another kind than the parameters, or what was put into a group has a wrong type.
            ValueError: a gradient's shape, the number of gradients or a name does not fit; a parameter cannot
                be written or overlaps other memory of the step; a learning rate or what was put into a group
                is out of range or NaN, a step counter is negative or NaN.
            IndexError: a gradient names a row that its parameter does not have.
            RuntimeError: a gradient is of some rows, and the optimizer moves every row; another thread is in a
                step on the same memory, or of this optimizer: hold a lock around the step.
                Whatever is raised, nothing has been changed.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> params = {"w": np.array([1.0, 2.0]), "b": np.array(0.0)}
            >>> optimizer = SGD(params, lr=lambda step: 0.1 / (1 + step))
            >>> optimizer.step({"w": np.array([5.0, 5.0]), "b": None})
            >>> params["w"]
            array([0.5, 1.5])
        """
        plan = self._oxistep_plan
        watch = self._oxistep_watch
        groups = self.param_groups
        if plan is None:
            self._oxistep_plan = plan = ArrayPlan(self._oxistep_rule)
        try:
            lrs: list[float] = []
            if watch is None and self._oxistep_torn is None:
                # A step like the last one, which nearly every step is; otherwise nothing has been changed.
                left = plan.again(self, groups, self.state, grads)
                if left.__class__ is not list:
                    self.step_count += 1
                    return
                lrs = left  # what functions returned, which are called once a step
            if not lrs:
                for k, group in enumerate(groups):
                    lr = group["lr"]
                    # The common case needs no further look. NaN fails the comparison.
                    lrs.append(lr if type(lr) is float and lr >= 0.0 else self._oxistep_learning_rate(lr, k))
            self._oxistep_rates = lrs
            if self._oxistep_torn is not None:
                self._oxistep_torn.step()
            updates = None if watch is None else watch._row()
            listed = self._oxistep_listed(grads)
            self._oxistep_check_settings()  # last, after learning rate functions, which may change groups
            plan.step(groups, lrs, listed, self.state, self._oxistep_new_state, updates, grads)
        except KernelError as panic:
            message, arrays = panic.args
            names = names_of(groups, arrays)
            self._oxistep_torn = Torn(text_of(f"a kernel of oxistep panicked ({message}; please report this)", names))
            raise RuntimeError(self._oxistep_torn.text) from None
        self.step_count += 1
        if watch is not None:
            watch._history.commit(None)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters. From then on `step` takes one list (or dict) of gradients per group.

        Args:
            param_group: ``{"params": arrays}``, the arrays as a list or as a dict from name to array. Other
                entries are hyperparameters of this group; what is missing comes from `defaults`. The dict is
                copied.

        Raises:
            TypeError: not a dict, or something in it has a wrong type or an unknown key.
            ValueError: a hyperparameter is out of range or NaN, an array cannot be written or is there
                already. Whatever is raised, nothing has been changed.
        """
        self._oxistep_add(param_group)
        self._oxistep_grouped = True

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state in the structure of torch.optim, with arrays for tensors.

        Returns:
            ``{"state": {0: {...}, ...}, "param_groups": [...], "step_count": n}``. Parameters are numbered
            through all groups; one without a state is left out. ``step_count`` is ours, torch passes over it.
            A function as learning rate cannot be saved: its group has ``"lr": None``.

        As in torch, the arrays are the optimizer's own and change with the next step: save them at once, or
        take a ``copy.deepcopy``. For ``torch.optim``'s ``load_state_dict`` turn each array into a tensor
        (``torch.as_tensor``); the other way needs nothing, because ours reads tensors.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import SGD
            >>> w = np.zeros(2)
            >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
            >>> optimizer.step([np.ones(2)])
            >>> optimizer.state_dict()["state"]
            {0: {'momentum_buffer': array([1., 1.])}}
        """
        packed_groups: list[Group] = []
        packed_state: dict[int, State] = {}
        first = 0
        for group, states in zip(self.param_groups, self.state, strict=True):
            packed = {key: value for key, value in group.items() if key != "params"}
            if callable(packed.get("lr")):
                packed["lr"] = None
            packed["params"] = list(range(first, first + len(group["params"])))
            packed_groups.append(packed)
            packed_state.update({i: dict(state) for i, state in enumerate(states, first) if state})
            first += len(group["params"])
        return {"state": packed_state, "param_groups": packed_groups, "step_count": self.step_count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of this class or of torch.optim's class of the same name.

        Everything is copied, and states get the dtype and layout of their parameter. The group dicts are
        replaced by new ones, as in torch. Parameters are matched by name where both sides have names, else by
        position. torch's ``foreach``, ``fused``, ``capturable`` and ``differentiable`` are left out: they do
        not change what is computed.

        Learning rates: a saved number replaces what the optimizer has. A function was saved as None; then the
        function that the optimizer has stays, and if it has none, `step` raises until
        ``param_groups[k]["lr"]`` is set. ``step_count``, if the dict lacks it (as torch's do), becomes the
        largest ``step`` of the states, or 0 where there is none; set it yourself if a learning rate function
        needs another.

        Args:
            state_dict: the dict. Its arrays may be anything that NumPy can read, also torch's CPU tensors.

        Raises:
            TypeError: an entry has a wrong type.
            ValueError: the number of groups or parameters, names, hyperparameters, states or shapes do not
                fit. Whatever is raised, nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {_kind(state_dict)}")
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(f"state_dict must have 'state' and 'param_groups', got {list(state_dict)}")
        saved_groups, saved_states = state_dict["param_groups"], state_dict["state"]
        if not isinstance(saved_groups, list | tuple) or not isinstance(saved_states, Mapping):
            raise TypeError("'state' of a state_dict must be a dict and its 'param_groups' a list")
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved_groups)}, the optimizer has {len(self.param_groups)}"
            )

        groups: list[Group] = []
        states: list[list[State]] = []
        known = set()
        for k, saved in enumerate(saved_groups):
            group = self._oxistep_loaded_group(saved, k)
            ids = _ids_in_our_order(self.param_groups[k], saved, k)
            groups.append(group)
            states.append([self._oxistep_loaded_state(saved_states.get(key), group, k, i) for i, key in enumerate(ids)])
            known.update(ids)
        if unknown := saved_states.keys() - known:
            raise ValueError(f"loaded state dict has states for {_short(unknown)}, which are in none of its groups")

        count = state_dict.get("step_count")
        if count is None:
            count = max((int(state["step"]) for row in states for state in row if "step" in state), default=0)
        elif not is_whole(count) or count < 0:
            raise ValueError(f"step_count must be a whole number, not negative, got {count!r}")

        self.param_groups = groups
        self.state = states
        self.step_count = int(count)
        self._oxistep_torn = None

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for k, group in enumerate(self.param_groups):
            lines += [f"Parameter Group {k}"] if k == 0 else ["", f"Parameter Group {k}"]
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    # What a subclass may say about its states and groups.

    def _oxistep_new_state(self, array: Array, group: Group) -> State:
        """Return the state with which `array` goes into its first step; called by the native step."""
        raise NotImplementedError

    def _oxistep_first_state(self, array: Array, group: Group) -> State:
        """Return the state of a parameter that has never had a gradient."""
        return {}

    def _oxistep_required_state(self, group: Group) -> tuple[str, ...]:
        """Return the keys that a state in `group` must have once it exists."""
        return self._oxistep_state_keys

    def _oxistep_saved_group(self, saved: Mapping[str, Any]) -> Group:
        """Return a group of a checkpoint in today's terms."""
        return {**self._oxistep_added_later, **{key: value for key, value in saved.items() if key not in _TORCH_ONLY}}

    def _oxistep_checked(self, given: Group, where: str = "") -> Group:
        """Return the hyperparameters in `given`, each checked; `where` ends the text of an error."""
        checked = {}
        for key, check in self._oxistep_checks.items():
            try:
                checked[key] = check(given[key])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{error}{where}") from None
        return checked

    def _oxistep_check_settings(self) -> None:
        """Refuse what was put into a group since the last step and the constructor would have refused."""
        last, now = self._oxistep_checked_last, []
        for k, group in enumerate(self.param_groups):
            try:
                settings = self._oxistep_settings(group)
            except KeyError:
                settings = ()
            # The same objects as last time, in most steps. Not equal ones: 1 is no bool, though it equals True.
            if not (settings and k < len(last) and last[k] and all(map(is_, settings, last[k]))):
                self._oxistep_checked({**self._oxistep_added_later, **group, "lr": 0.0}, f" in param_groups[{k}]")
                # A list can be changed in place, so it is looked at in every step.
                settings = () if any(isinstance(value, list) for value in settings) else settings
            now.append(settings)
        self._oxistep_checked_last = tuple(now)

    def _oxistep_add(self, param_group: Group) -> None:
        k = len(self.param_groups)
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {_kind(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"param_groups[{k}] has no 'params'; it has {list(param_group)}")
        # A misspelt hyperparameter must not be taken for a label. "name" is what people call their groups.
        if unknown := param_group.keys() - self._oxistep_checks.keys() - {"params", "name"}:
            raise TypeError(
                f"param_groups[{k}] has unknown keys {sorted(unknown, key=str)}; {type(self).__name__} takes "
                f"'params', 'name' and {list(self._oxistep_checks)}; put labels of your own into "
                f"optimizer.param_groups[{k}] afterwards"
            )

        params = param_group["params"]
        group: Group = {"params": []}
        if isinstance(params, np.ndarray):
            group["params"] = [params]
        elif isinstance(params, Mapping):
            for name in params:
                if not isinstance(name, str):
                    raise TypeError(f"names of parameters must be str, got {_kind(name)}: {name!r}")
            group["params"] = list(params.values())
            group["param_names"] = list(params)
        elif isinstance(params, str) or not isinstance(params, Iterable):
            raise TypeError(f"params of param_groups[{k}] must be a list or a dict of arrays, got {params!r}")
        else:
            group["params"] = list(params)

        seen = {
            id(array): self._oxistep_name(other, j, i)
            for j, other in enumerate(self.param_groups)
            for i, array in enumerate(other["params"])
        }
        for i, array in enumerate(group["params"]):
            name = self._oxistep_name(group, k, i)
            _check_parameter(array, name)
            if id(array) in seen:
                raise ValueError(f"some parameters appear more than once: {name} is {seen[id(array)]}")
            seen[id(array)] = name

        group |= self._oxistep_checked({**self.defaults, **param_group}, f" in param_groups[{k}]")
        if "name" in param_group:
            group["name"] = param_group["name"]
        states = [self._oxistep_first_state(array, group) for array in group["params"]]
        self.param_groups.append(group)
        self.state.append(states)

    def _oxistep_learning_rate(self, lr: Any, k: int) -> float:
        where = f" in param_groups[{k}]"
        if lr is None:
            raise ValueError(
                f"no learning rate{where}: the loaded one was a function, which is not saved; "
                f"set optimizer.param_groups[{k}]['lr']"
            )
        if callable(lr):
            lr = lr(self.step_count)
            where += f", returned by its function for step {self.step_count}"
            if isinstance(lr, np.ndarray) and lr.ndim == 0:
                lr = lr[()]
        try:
            lr = real(lr, "lr")
        except TypeError as error:
            raise TypeError(f"{error}{where}") from None
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}{where}")
        return float(lr)

    def _oxistep_rate(self, group: Group) -> float:
        """The learning rate of a group in the step under way."""
        k = next(k for k, other in enumerate(self.param_groups) if other is group)
        return self._oxistep_rates[k]

    def _oxistep_listed(self, grads: Any) -> list[list[Any]]:
        groups = self.param_groups
        if not self._oxistep_grouped:
            return [_list_of_group(grads, groups[0], "grads")]
        if not isinstance(grads, list | tuple):
            raise TypeError(
                f"grads must be a list with one list (or dict) of gradients for each of the {len(groups)} "
                f"groups, got {_kind(grads)}"
            )
        if len(grads) != len(groups):
            raise ValueError(
                f"grads must have one list (or dict) of gradients for each of the {len(groups)} groups, got "
                f"{len(grads)} entries"
            )
        return [_list_of_group(grads[k], group, f"grads[{k}]") for k, group in enumerate(groups)]

    def _oxistep_loaded_group(self, saved: Any, k: int) -> Group:
        where = f" in param_groups[{k}] of the loaded state dict"
        if not isinstance(saved, Mapping):
            raise TypeError(f"expected a dict{where}, got {_kind(saved)}")
        ours = self.param_groups[k]
        saved = self._oxistep_saved_group(saved)
        if missing := [key for key in ("params", *self._oxistep_checks) if key not in saved]:
            raise ValueError(f"{_short(missing)} missing{where}; was it saved by {type(self).__name__}?")
        if len(saved["params"]) != len(ours["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                f"group: {len(saved['params'])} parameters{where}, the optimizer has {len(ours['params'])}"
            )

        hyper = {key: _plain(saved[key]) for key in self._oxistep_checks}
        was_function = "lr" in hyper and hyper["lr"] is None
        hyper = self._oxistep_checked({**hyper, "lr": 0.0} if was_function else hyper, where)
        if was_function:
            hyper["lr"] = ours["lr"] if callable(ours["lr"]) else None
        names = {"param_names": ours["param_names"]} if "param_names" in ours else {}
        known = {"params", "param_names", *self._oxistep_checks}
        labels = {key: deepcopy(value) for key, value in saved.items() if key not in known}
        return {"params": ours["params"], **names, **hyper, **labels}

    def _oxistep_loaded_state(self, saved: Any, group: Group, k: int, i: int) -> State:
        array, name = group["params"][i], self._oxistep_name(group, k, i)
        if saved is not None and not isinstance(saved, Mapping):
            raise TypeError(f"loaded state of {name} must be a dict, got {_kind(saved)}")
        # torch's SGD saves None for a buffer that does not exist yet.
        saved = {key: value for key, value in (saved or {}).items() if value is not None}
        if not saved:
            return self._oxistep_first_state(array, group)
        if unknown := [key for key in saved if key not in self._oxistep_state_keys]:
            raise ValueError(
                f"loaded state of {name} has {_short(unknown)}, that of {type(self).__name__} has "
                f"{_short(self._oxistep_state_keys)}; was it saved by another optimizer?"
            )
        if missing := [key for key in self._oxistep_required_state(group) if key not in saved]:
            raise ValueError(f"loaded state of {name} lacks {_short(missing)}")
        return {key: loaded_array(value, key, array, name, self._oxistep_scalars) for key, value in saved.items()}

    def _oxistep_name(self, group: Group, k: int, i: int) -> str:
        if "param_names" in group:
            return f"params[{group['param_names'][i]!r}]"
        return f"param_groups[{k}]['params'][{i}]" if self._oxistep_grouped else f"params[{i}]"


def new_step() -> Array:
    """Return the step counter of a parameter."""
    return new_scalar(0.0)


def new_scalar(value: float) -> Array:
    """Return a state of one number: 0-dimensional float32, as torch has it."""
    return np.full((), value, np.float32)


def _check_parameter(array: Any, name: str) -> None:
    """Refuse what no step could take; what depends on gradients or other arrays is for the step to find."""
    if isinstance(array, np.generic):
        raise TypeError(
            f"{name} is a NumPy scalar, which cannot be updated in place; make it a 0-dimensional array with np.array"
        )
    if not isinstance(array, np.ndarray):
        of_torch = type(array).__module__.partition(".")[0] == "torch"
        remedy = "oxistep.optim is for torch's tensors" if of_torch else "np.array makes one, of float64"
        raise TypeError(f"optimizer can only optimize NumPy arrays, but {name} is a {_kind(array)}; {remedy}")
    # np.ma takes milliseconds to load, so ask for it only when the array is not a plain one.
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give its .data, or a copy with .filled")
    if array.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        raise TypeError(f"{name} has dtype {array.dtype}; use .astype to get float32, float64 or float16")
    if not array.dtype.isnative:
        raise ValueError(f"{name} is byte-swapped; use .astype({array.dtype.newbyteorder('=').name!r})")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only, so it cannot be updated in place; use .copy()")
    if not array.flags.aligned:
        raise ValueError(f"{name} is not aligned in memory; use .copy()")


def _list_of_group(grads: Any, group: Group, what: str) -> list[Grad]:
    """Return the gradients of one group as a list in the order of its parameters."""
    names = group.get("param_names")
    if names is None:
        n = len(group["params"])
        if not isinstance(grads, list | tuple):
            raise TypeError(
                f"{what} must be a list of {n} gradient{'s' * (n != 1)}, as the parameters are, got {_kind(grads)}"
                + ("; put a single one into a list" if n == 1 and isinstance(grads, np.ndarray) else "")
            )
        if len(grads) != n:
            raise ValueError(
                f"{what} must have {n} entries, one for each parameter, got {len(grads)}; None stands for no gradient"
            )
        return grads if isinstance(grads, list) else list(grads)

    if not isinstance(grads, Mapping):
        raise TypeError(
            f"{what} must be a dict, as the parameters are, with the keys {_short(names)}; got {_kind(grads)}"
        )
    try:
        listed = [grads[name] for name in names]
    except KeyError:
        missing = [name for name in names if name not in grads]
        raise ValueError(f"{what} lacks {_short(missing)}; None stands for no gradient") from None
    if len(grads) != len(names):
        unknown = [name for name in grads if name not in names]
        raise ValueError(f"{what} has {_short(unknown)}, but the parameters are {_short(names)}")
    return listed


def _ids_in_our_order(ours: Group, saved: Mapping[str, Any], k: int) -> list[Any]:
    """Return the saved ids of a group in the order of our parameters."""
    ids = list(saved["params"])
    our_names, saved_names = ours.get("param_names"), saved.get("param_names")
    if our_names is None or saved_names is None or our_names == list(saved_names):
        return ids
    if set(our_names) != set(saved_names) or len(saved_names) != len(ids):
        raise ValueError(
            f"the parameters in param_groups[{k}] of the loaded state dict are {_short(saved_names)}, those "
            f"of the optimizer {_short(our_names)}; delete 'param_names' there to match them by position"
        )
    by_name = dict(zip(saved_names, ids, strict=True))
    return [by_name[name] for name in our_names]


def _plain(value: Any) -> Any:
    """Turn what a checkpoint may have for numbers, 0-dimensional arrays and tensors, into numbers."""
    if isinstance(value, tuple | list):
        return tuple(_plain(element) for element in value)
    return value.item() if getattr(value, "shape", None) == () else value


def loaded_array(
    value: Any, key: str, parameter: Array, name: str, scalars: Sequence[str] = Optimizer._oxistep_scalars
) -> Array:
    """Return a copy of a loaded state, for a step counter and the like or else in the parameter's dtype and layout."""
    what = f"loaded {key} of {name}"
    try:
        read = np.asanyarray(value)
    except Exception as error:  # whatever a foreign __array__ raises: bfloat16, another device, a ragged list
        raise TypeError(f"{what} cannot be read as a NumPy array: {error}") from error
    if read.dtype.kind not in "fiu" or (type(read) is not np.ndarray and isinstance(read, np.ma.MaskedArray)):
        raise TypeError(f"{what} must be an array of numbers, got {_kind(read)} of {read.dtype}")
    loaded = new_step() if key in scalars else np.empty_like(parameter, subok=False)
    if read.shape != loaded.shape:
        raise ValueError(f"{what} has shape {read.shape}, expected {loaded.shape}")
    if key == "step" and not 0 <= read < np.inf:
        raise ValueError(f"{what} must be a number of steps, got {value!r}")
    loaded[...] = read
    return loaded


def _kind(value: object) -> str:
    return type(value).__name__


def _short(names: Iterable[Any]) -> str:
    """Return the names for an error text, the first few of many."""
    listed = [repr(name) for name in names]
    return ", ".join(listed if len(listed) <= 8 else [*listed[:8], f"... ({len(listed)} in all)"])
