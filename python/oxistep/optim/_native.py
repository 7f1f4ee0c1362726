"""The step that all native optimizers share.

``_definition`` says how the step of each class is taken, ``_kept`` what is kept on each optimizer.
"""

import copy
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch._compile import _disable_dynamo

from oxistep import _core
from oxistep.optim import _averages, _modes
from oxistep.optim._all_or_nothing import loaded_whole, tear
from oxistep.optim._compact import check_parameters, forget_parameters
from oxistep.optim._definition import definition_of, plan_of
from oxistep.optim._digits import master_of
from oxistep.optim._hooks import observed, wrapper_is_at_work
from oxistep.optim._kept import (
    KEY,
    GradNormGroup,
    Setting,
    grad_norm_group_of,
    max_grad_norm_of,
    skip_nonfinite_of,
)
from oxistep.optim._state_dtype import loaded_in_their_dtypes, restore_dtypes
from oxistep.optim._telling import TELLS, told_at_first

# Where the mixin below stands, torch's class comes after it. It must be no subclass of Optimizer: programs make lists
# of all that are, and make one of each.
if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object

_LIBRARY = {"Darwin": "libtorch_cpu.dylib", "Windows": "torch_cpu.dll"}

_core.use_torch_threads(
    str(
        Path(torch.__file__).parent
        / "lib"
        / _LIBRARY.get(os.uname().sysname if hasattr(os, "uname") else "Windows", "libtorch_cpu.so")
    )
)

_is_compiling = torch.compiler.is_compiling
_profiler_enabled = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
_step_code = torch.optim.Optimizer._optimizer_step_code
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack


class DropIn(_Base):
    """Stands before torch's class in the line of classes of each of ours.

    A class that users subclass owns none of their names: what is no part of its interface is a function of a module.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        # `super(SGD, self).__init__(params, defaults)`, by which a subclass hands over defaults of its own, comes here:
        # it means what comes after torch's class
        after_torchs: Any = super(definition_of(type(self)).torch, self)
        after_torchs.__init__(params, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; whole or not at all, and with ``state_dtype`` in the dtypes of the states.

        Args:
            state_dict: what ``state_dict`` of this class, or of torch's class, returned.

        Raises:
            ValueError: if its groups are not those of this optimizer. The optimizer is then as it was.
        """
        load = super().load_state_dict
        definition = definition_of(type(self))
        scalars = definition.scalars_of(self)
        loaded_whole(self, lambda: loaded_in_their_dtypes(self, scalars, lambda: load(state_dict)))
        forget_parameters(self, lambda group: definition_of(type(self)).kinds_of_rule(self, group))
        synchronised(self)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        kept = self.__dict__.get(KEY)
        if kept is not None and kept.swapped:
            raise RuntimeError(
                "inside `with optimizer.averaged():` the optimizer holds the parameters in place of their averages; "
                "copy and pickle it outside"
            )
        if kept is not None and kept.is_worth_keeping:
            state[KEY] = copy.copy(kept)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        definition = definition_of(type(self))
        restore_dtypes(
            self, definition.scalars_of(self), lambda group: definition.kinds(self, group), definition.counts_for_noise
        )


def synchronised(optimizer: Any) -> None:
    """Where parameters are stepped in backward: those that there are now."""
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and kept.release is not None:
        kept.release.sync()


class NativeStep(DropIn):
    """Replaces ``step`` of a torch optimizer by one native call; whatever that cannot serve takes torch's own step."""

    max_grad_norm = Setting(
        None,
        max_grad_norm_of,
        "The largest norm of all gradients that a step uses; may be set between steps if the constructor was given it.",
    )
    skip_nonfinite = Setting(
        False,
        skip_nonfinite_of,
        "Whether a step with a NaN or an infinity among its gradients is skipped; may be set between steps if the "
        "constructor was given it.",
    )

    grad_norm_group: Setting[GradNormGroup] = Setting(
        None,
        grad_norm_group_of,
        "The ranks over which the norm is summed where each holds a part of the parameters; may be set between steps "
        "if the constructor was given it.",
    )

    last_grad_norm: Tensor | None = None
    """The norm of all gradients at the last step, before clipping, as a 0-dimensional tensor of the dtype that
    ``torch.nn.utils.get_total_norm`` returns. ``None`` before the first step with ``max_grad_norm`` or
    ``skip_nonfinite``."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as torch's does.

        Args:
            param_group: ``{"params": tensors}``, and hyperparameters of this group.

        Raises:
            ValueError: for what torch refuses, in its words; for parameters that cannot be kept as ``weights=`` says.
        """
        super().add_param_group(param_group)
        try:
            check_parameters(self, self.param_groups[-1])
            synchronised(self)
        except ValueError:
            self.param_groups.pop()
            raise
        forget_parameters(self, lambda group: definition_of(type(self)).kinds_of_rule(self, group))

    def master(self, p: Tensor) -> Tensor:
        """The number that a parameter stands for together with what is kept beside it.

        Args:
            p: a parameter of this optimizer, which was made with ``weights="residual16"``, ``"residual8"``,
                ``"kahan"`` or ``"master"``.

        Returns:
            Tensor: a copy in float32, of the parameter's shape; before the first step the parameter itself.

        Raises:
            RuntimeError: if the optimizer keeps nothing beside its parameters.
            ValueError: if ``p`` is none of its parameters.

        Example:
            >>> import torch, oxistep.optim as optim
            >>> w = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
            >>> optimizer = optim.SGD([w], lr=0.0001, weights="residual16")
            >>> w.grad = torch.ones_like(w)
            >>> optimizer.step()
            >>> w.item(), round(optimizer.master(w).item(), 6)
            (1.0, 0.9999)
        """
        return master_of(self, p)

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the averages of ``ema=`` in the place of the parameters for a while, to evaluate or to save the model.

        Parameters whose average has their dtype are exchanged with it, piece by piece; those of a half type become the
        average rounded to it, and what they were is held meanwhile. Parameters without a step yet stay as they are.

        Returns:
            A context manager. When it is left, also by an exception, the parameters have their own bits again.

        Raises:
            RuntimeError: if the optimizer was made without ``ema=``; inside another ``averaged()``. ``step``,
                ``state_dict`` and ``ema_state_dict`` raise it inside.

        Example:
            >>> import torch, oxistep.optim as optim
            >>> w = torch.tensor([1.0], requires_grad=True)
            >>> optimizer = optim.SGD([w], lr=1.0, ema=0.75)
            >>> w.grad = torch.ones(1)
            >>> optimizer.step()
            >>> with optimizer.averaged():
            ...     w.item()
            0.75
            >>> w.item()
            0.0
        """
        return _averages.averaged(self)

    def ema_state_dict(self) -> dict[str, Tensor]:
        """The averages of ``ema=``, by the names of the parameters.

        Returns:
            dict: the averages themselves, no copies: float32 for parameters of a half type, else of the parameter's
            dtype. The names are those given (``SGD(model.named_parameters(), ...)``), so that
            ``model.load_state_dict(optimizer.ema_state_dict(), strict=False)`` makes a model of them; without names
            ``"0"``, ``"1"``, ... in order. A parameter without a step yet stands for its average.

        Raises:
            RuntimeError: if the optimizer was made without ``ema=``; inside ``averaged()``.

        Example:
            >>> import torch, oxistep.optim as optim
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = optim.AdamW(model.named_parameters(), ema=0.999)
            >>> sorted(optimizer.ema_state_dict())
            ['bias', 'weight']
        """
        return _averages.ema_state_dict(self)

    # On CUDA-only attributes torch sets and reads: see GradScaler in torch.amp.
    if TYPE_CHECKING:
        grad_scale: Tensor | None
        found_inf: Tensor | None

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, *args: Any, **kwargs: Any) -> float | None:
        """Perform a single optimization step.

        Everything is checked before the first write: a step that raises has changed nothing of what oxistep updates.

        Args:
            closure: a function that evaluates the model again and returns the loss. Runs with grad enabled
                (default: None).

        Returns:
            The loss that ``closure`` returned, else ``None``.

        Raises:
            RuntimeError: for gradients or states that torch refuses, in its words.

        Example:
            >>> import torch, oxistep.optim as optim
            >>> w = torch.tensor([3.0], requires_grad=True)
            >>> optimizer = optim.SGD([w], lr=0.5)
            >>> w.grad = torch.ones(1)
            >>> optimizer.step()
            >>> w.item()
            2.5
        """
        if _is_compiling():
            return _step_outside_graph(self, *args, **kwargs)  # type: ignore[no-any-return]
        if (  # somebody wants to see the step, or to be called after it
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or _profiler_enabled()
            or type(self)._optimizer_step_code is not _step_code
            or "_optimizer_step_code" in self.__dict__
        ) and not wrapper_is_at_work(self):
            return observed(take_step, (self, *args), kwargs)  # type: ignore[no-any-return]
        if args or kwargs:
            return take_step(self, *args, **kwargs)
        return take_step(self)  # Python calls it without taking arguments apart and putting them together

    # torch wraps `step` of every class for hooks and profiler, unless it says that it does so itself.
    step.hooked = True  # type: ignore[attr-defined]
    # Hooks are shown the arguments just as they were given, so `step` takes them as they come.
    step.__signature__ = inspect.signature(torch.optim.Optimizer.step)  # type: ignore[attr-defined]


def take_step(optimizer: Any, closure: Callable[[], float] | None = None) -> float | None:
    """A step without hooks."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if "found_inf" in optimizer.__dict__ or "grad_scale" in optimizer.__dict__:
        _scaled_update(optimizer)
    else:
        update(optimizer)
    return loss


def _update(optimizer: Any, unscale: Callable[[], None] | None = None) -> None:
    """What a step does when the closure has been called. ``unscale`` is called when all has been checked."""
    attributes = optimizer.__dict__
    try:
        kept = attributes[KEY]
        plan = kept.plans[type(optimizer)]
    except KeyError:
        plan = plan_of(optimizer)
        kept = attributes[KEY]
        if plan is kept.release:
            plan.end(optimizer)
            return
    if (_modes.FORCED or _dispatch_modes() or _function_modes()) and _modes.because():
        if kept.ema is not None:
            _averages.begin(optimizer, plan, kept)
        norm = definition_of(type(optimizer)).leave_everything(optimizer, unscale)
    else:
        try:
            if kept.simple and unscale is None:
                plan.step(optimizer)
                return
            if kept.ema is not None:
                _averages.begin(optimizer, plan, kept)
            has_group = kept.grad_norm_group is not None
            norm = plan.step(optimizer, kept.max_grad_norm, kept.skip_nonfinite, unscale, has_group)
            if kept.ema is not None:
                _averages.end(optimizer, plan, kept)
        except _core.KernelError as panic:
            message, params = panic.args
            raise tear(optimizer, f"a kernel of oxistep panicked ({message}; please report this)", params) from None
    if kept.guarded:
        # not by `setattr`: a subclass may have made a property of the name
        attributes["last_grad_norm"] = torch.tensor(0.0) if norm is None else norm


update = told_at_first(_update) if TELLS else _update


def _scaled_update(optimizer: Any) -> None:
    """The step inside ``GradScaler.step`` of an optimizer made with ``fused=True``.

    When everything has been checked gradients are unscaled in place, as torch's fused kernels leave them; with an
    infinity among them the step is skipped whole: no state is made and no counter moves.
    """
    if (kept := optimizer.__dict__.get(KEY)) is not None and kept.release is not None:
        raise RuntimeError(
            "step_in_backward steps each parameter when its gradient is there, and a GradScaler tells only afterwards "
            "by what gradients were scaled and whether one overflowed: the parameters were stepped with scaled "
            "gradients. Load them from before, and train without GradScaler (bfloat16 needs none), or step after "
            "backward"
        )
    found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found_inf is not None and found_inf.item():
        return

    def unscale() -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            for grad in grads:
                grad.div_(scale.to(grad.device))  # type: ignore[union-attr]

    scaling = ("grad_scale", "found_inf")
    hidden = {key: optimizer.__dict__[key] for key in scaling if key in optimizer.__dict__}
    try:
        for key in hidden:
            del optimizer.__dict__[key]
        update(optimizer, None if scale is None else unscale)
    finally:
        optimizer.__dict__.update(hidden)


# As torch has it for its own functions: `torch.compiler.disable` imports the compiler at once, which takes as long as
# importing torch.
@_disable_dynamo
def _step_outside_graph(optimizer: NativeStep, *args: Any, **kwargs: Any) -> Any:
    return optimizer.step(*args, **kwargs)
