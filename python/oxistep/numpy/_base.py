"""What the NumPy optimizers share: parameter groups and the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import is_, itemgetter
from typing import Any, ClassVar

import numpy as np

from oxistep._core import ArrayPlan, KernelError
from oxistep._names import names_of
from oxistep._torn import Torn, text_of
from oxistep.numpy._checkpoints import Checkpoints
from oxistep.numpy._clip import Clipping
from oxistep.numpy._containers import Containers, Live
from oxistep.numpy._functional import Functional
from oxistep.numpy._given import Given
from oxistep.numpy._hyper import Check, flag, max_norm
from oxistep.numpy._parameters import check_parameter, explained
from oxistep.numpy._rates import Rates
from oxistep.numpy._right_names import RightNames, right_names
from oxistep.numpy._structure import is_container
from oxistep.numpy._types import Array, Grad, Grads, Group, Params, State, kind


class Optimizer(Rates, Checkpoints, Containers, RightNames):
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

    # What a subclass declares: the native rule, and a checker for each hyperparameter.
    _oxistep_rule: ClassVar[str]
    _oxistep_checks: ClassVar[dict[str, Check]]

    # Reads all hyperparameters of a group but lr; each class has several.
    _oxistep_settings: ClassVar[itemgetter[Any]]

    _oxistep_checked_last: tuple[tuple[Any, ...], ...] = ()
    """For each group its hyperparameters but lr as they were when they were last found good."""

    _oxistep_clipping: Clipping | None = None
    """What is done with gradients before a step takes them, if anything is."""

    _oxistep_watch: Any = None
    """An `oxistep.diagnostics.UpdateMonitor` that wants to know what each step does."""

    _oxistep_plan: ArrayPlan | None = None
    """What is known from the last step. A copy of an optimizer, or one that was pickled, begins without."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_oxistep_checks" in cls.__dict__:
            cls._oxistep_settings = itemgetter(*(key for key in cls._oxistep_checks if key != "lr"))

    def __init__(
        self,
        params: Params,
        defaults: Group,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        follow: bool = False,
    ) -> None:
        self.defaults = self._oxistep_checked(defaults)
        self.param_groups: list[Group] = []
        self.state: list[list[State]] = []
        self.step_count = 0
        self._oxistep_grouped = False
        self._oxistep_live = Live([])
        self._oxistep_follow = flag("follow")(follow)
        self._oxistep_clip(max_norm(max_grad_norm), flag("skip_nonfinite")(skip_nonfinite))

        groups: list[Any]
        if isinstance(params, Mapping):
            if isinstance(params.get("params"), list | tuple | Mapping):
                raise TypeError("a group dict must be in a list: [{'params': ...}]")
            groups = [{"params": params}] if params else []
        elif isinstance(params, np.ndarray | str) or not isinstance(params, Iterable):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of arrays or dicts, "
                f"but got {kind(params)}; put a single array into a list"
            )
        else:
            groups = list(params)
            self._oxistep_grouped = _are_groups(groups)
            if groups and not self._oxistep_grouped:
                # what can be looked at again: a generator cannot
                groups = [{"params": iter(groups) if isinstance(params, Iterator) else params}]
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        for group in groups:
            self._oxistep_add(group)
        if not self._oxistep_grouped and not self.param_groups[0]["params"]:
            raise ValueError("optimizer got an empty parameter list")

    def step(self, grads: Grads) -> None:
        """Update every parameter that has a gradient, in place.

        Args:
            grads: the gradients in the structure of the parameters: a list for a list (or the values of a dict,
                or a generator, in the order of the parameters), a dict with the same keys for a dict, at any depth;
                for groups one of these per group, or one dict, if all of them were given as dicts. Each has its
                parameter's shape, any layout and any real dtype, from which it is rounded to the parameter's, and is
                only read; for a parameter without dimensions a number will do. A pair ``(indices, rows)`` or a matrix
                of ``scipy.sparse`` is the gradient of some rows, for SGD without momentum and weight decay, Adagrad
                and SparseAdam. None leaves that parameter, or all in that container, and its state as they are.

        Raises:
            TypeError: a gradient is neither an array nor a number, or not of real numbers, `grads` is of
                another kind than the parameters, or what was put into a group has a wrong type.
            ValueError: a gradient's shape, the number of gradients or a name does not fit; a parameter cannot
                be written or overlaps other memory of the step, or has been replaced by another array in the dict
                or list that was given; a learning rate or what was put into a group is out of range or NaN, a step
                counter is negative or NaN.
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
        clipping = self._oxistep_clipping
        guard = () if clipping is None else (clipping.max_norm, clipping.skip_nonfinite)
        listed: list[list[Grad]] | None = None
        try:
            # A step like the last one, which nearly every step is; otherwise nothing has been changed.
            left: Any = []
            if watch is None and self._oxistep_torn is None:
                if clipping is None:
                    left = plan.again(self, groups, self.state, grads, self._oxistep_live.seen)
                    if left is None:
                        self.step_count += 1
                        return
                else:
                    left = plan.again(self, groups, self.state, grads, self._oxistep_live.seen, *guard)
                if left is False:
                    left = self._oxistep_looked_again(plan, grads, guard)
                if not isinstance(left, list):
                    if clipping is not None:
                        clipping.norm = left
                        if clipping.skipped():
                            return
                    self.step_count += 1
                    return
            lrs: list[float] = left  # what functions returned, which are called once a step
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
            norm = plan.step(groups, lrs, listed, self.state, self._oxistep_new_state, updates, grads, *guard)
        except KernelError as panic:
            message, arrays = panic.args
            names = names_of(groups, arrays)
            self._oxistep_torn = Torn(text_of(f"a kernel of oxistep panicked ({message}; please report this)", names))
            raise RuntimeError(self._oxistep_torn.text) from None
        except (TypeError, ValueError) as error:
            if listed and (better := self._oxistep_explained(error, listed)) is not error:
                raise better from None
            raise
        if clipping is not None:
            clipping.norm = norm if isinstance(norm, float) else None
            if clipping.skipped():
                return
        self.step_count += 1
        if watch is not None:
            watch._history.commit(None)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters. From then on `step` takes one list (or dict) of gradients per group.

        Or one dict with the names of all, where all groups were given as dicts.

        Args:
            param_group: ``{"params": arrays}``, the arrays in a list, a dict or containers of these. Other
                entries are hyperparameters of this group; what is missing comes from `defaults`. The dict is
                copied.

        Raises:
            TypeError: not a dict, or something in it has a wrong type or an unknown key.
            ValueError: a hyperparameter is out of range or NaN, an array cannot be written or is there
                already. Whatever is raised, nothing has been changed.
        """
        self._oxistep_add(param_group)
        self._oxistep_grouped = True

    @classmethod
    def functional(cls, **hyperparameters: Any) -> Functional:
        """The optimizer as two functions, ``init`` and ``update``, for programs that keep no objects.

        Args:
            hyperparameters: what the constructor takes beside the parameters, by name.

        Returns:
            Functional: whose ``init(params)`` returns a state, and ``update(params, grads, state)`` parameters and
            state; in place, or with ``copy=True`` as new arrays.

        Raises:
            TypeError: for an argument of a wrong type or name; for a class with ``train`` and ``eval``.
            ValueError: for one that is out of range.

        Example:
            >>> import numpy as np
            >>> from oxistep.numpy import Adam
            >>> adam = Adam.functional(lr=0.1)
            >>> params = {"w": np.zeros(2)}
            >>> state = adam.init(params)
            >>> params, state = adam.update(params, {"w": np.array([1.0, -1.0])}, state)
            >>> params["w"].round(3)
            array([-0.1,  0.1])
        """
        return Functional(cls, hyperparameters)

    @property
    def max_grad_norm(self) -> float | None:
        """The norm that gradients are clipped to as the step takes them; None: they are not. It may be set."""
        return None if self._oxistep_clipping is None else self._oxistep_clipping.max_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._oxistep_clip(max_norm(value), self.skip_nonfinite)

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a step is left out if a gradient holds NaN or infinity. It may be set."""
        return self._oxistep_clipping is not None and self._oxistep_clipping.skip_nonfinite

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        self._oxistep_clip(self.max_grad_norm, flag("skip_nonfinite")(value))

    @property
    def last_grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, before clipping; None if it was not asked for."""
        return None if self._oxistep_clipping is None else self._oxistep_clipping.norm

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

    def _oxistep_group_numbers(self, group: Group) -> Group:
        """Return what a step has counted in the group itself."""
        return {}

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
            raise TypeError(f"param_group must be a dict, but got {kind(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"param_groups[{k}] has no 'params'; it has {list(param_group)}")
        # A misspelt hyperparameter must not be taken for a label. "name" is what people call their groups.
        if unknown := param_group.keys() - self._oxistep_checks.keys() - {"params", "name"}:
            raise TypeError(
                f"param_groups[{k}] has unknown keys {sorted(unknown, key=str)}; {type(self).__name__} takes "
                f"'params', 'name' and {list(self._oxistep_checks)}; put labels of your own into "
                f"optimizer.param_groups[{k}] afterwards{right_names(unknown, self._oxistep_checks)}"
            )

        params = param_group["params"]
        if isinstance(params, str) or not isinstance(params, Iterable):
            raise TypeError(f"params of param_groups[{k}] must be a list or a dict of arrays, got {params!r}")
        given = Given([params] if isinstance(params, np.ndarray) else params)
        group: Group = {"params": list(given.arrays)}
        if given.names is not None:
            group["param_names"] = given.names

        seen = {
            id(array): self._oxistep_name(other, j, i)
            for j, other in enumerate(self.param_groups)
            for i, array in enumerate(other["params"])
        }
        for i, array in enumerate(group["params"]):
            name = self._oxistep_name(group, k, i)
            check_parameter(array, name, given.expression(i) if given.names else "w")
            if id(array) in seen:
                raise ValueError(f"some parameters appear more than once: {name} is {seen[id(array)]}")
            seen[id(array)] = name

        group |= self._oxistep_checked({**self.defaults, **param_group}, f" in param_groups[{k}]")
        if "name" in param_group:
            group["name"] = param_group["name"]
        states = [self._oxistep_first_state(array, group) for array in group["params"]]
        self.param_groups.append(group)
        self.state.append(states)
        self._oxistep_live.given.append(given)
        self._oxistep_live.look()

    def _oxistep_looked_again(self, plan: ArrayPlan, grads: Grads, guard: tuple[Any, ...]) -> Any:
        """Tries a step like the last one where containers are others now, or of a kind that only Python looks into."""
        if not self._oxistep_live.is_as_it_was():
            self._oxistep_see_containers()
        return plan.again(self, self.param_groups, self.state, grads, None, *guard)

    def _oxistep_clipped(self, listed: list[list[Grad]]) -> list[list[Grad]] | None:
        """The gradients as the step is to take them; none, if it is to be left out."""
        if self._oxistep_clipping is None:
            return listed
        groups = self.param_groups
        return self._oxistep_clipping.applied(listed, lambda k, i: self._oxistep_name(groups[k], k, i))

    def _oxistep_clip(self, max_norm: float | None, skip_nonfinite: bool) -> None:
        """Settles what is done with gradients from now on."""
        last = self.last_grad_norm
        wanted = max_norm is not None or skip_nonfinite
        self._oxistep_clipping = Clipping(max_norm, skip_nonfinite) if wanted else None
        if self._oxistep_clipping is not None:
            self._oxistep_clipping.norm = last

    def _oxistep_explained(self, error: Exception, listed: list[list[Grad]]) -> Exception:
        """The error of a step that was refused, with a remedy that leads home."""
        stepped, grads = [], []
        for k, (group, given) in enumerate(zip(self.param_groups, self._oxistep_live.given, strict=False)):
            for i, (array, grad) in enumerate(zip(group["params"], listed[k], strict=False)):
                if grad is not None and i < len(given.arrays):
                    expression = given.expression(i) if given.names else "w"
                    stepped.append((self._oxistep_name(group, k, i), expression, array))
                    grads.append(grad)
        return explained(error, stepped, grads)

    def _oxistep_name(self, group: Group, k: int, i: int) -> str:
        if "param_names" in group:
            return f"params[{group['param_names'][i]!r}]"
        return f"param_groups[{k}]['params'][{i}]" if self._oxistep_grouped else f"params[{i}]"


def _are_groups(params: list[Any]) -> bool:
    """Whether these are param groups, and not arrays or the dicts of layers."""
    if any(isinstance(one, dict) and "params" in one for one in params):
        return True
    # a dict without anything that could be a parameter is a group whose "params" were forgotten
    first = params[0] if params else None
    values = first.values() if isinstance(first, dict) else ()
    return bool(values) and not any(isinstance(value, np.ndarray) or is_container(value) for value in values)
