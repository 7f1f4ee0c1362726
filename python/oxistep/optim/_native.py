"""The step that all native optimizers share.

An optimizer class names its rule (``_rule``) and its class in torch (``_torch``), and makes states (``_new_state``);
everything else is here and in the native ``Plan``.
"""

import inspect
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.utils._device import DeviceContext

from oxistep import _core
from oxistep.optim._max_grad_norm import MaxGradNorm
from oxistep.optim._rehearsal import rehearse
from oxistep.optim._storages import check_storages

_LIBRARY = {"Darwin": "libtorch_cpu.dylib", "Windows": "torch_cpu.dll"}

# OXISTEP_BACKEND=torch leaves everything to torch.
_backend = os.environ.get("OXISTEP_BACKEND", "native")
if _backend not in ("native", "torch"):
    raise ValueError(f"OXISTEP_BACKEND: expected 'native' or 'torch', got {_backend!r}")
_FORCED = _backend == "torch"

_core.use_torch_threads(
    str(
        Path(torch.__file__).parent
        / "lib"
        / _LIBRARY.get(os.uname().sysname if hasattr(os, "uname") else "Windows", "libtorch_cpu.so")
    )
)

# States of fewer elements are not worth asking for large pages.
_LARGE = 1 << 20
# How often to try for a better place. Memory that nobody writes costs only addresses, if it is not set aside at once.
_OTHER_PLACES = 3

_is_compiling = torch.compiler.is_compiling
_profiler_enabled = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack


def scalar_dtype(group: dict[str, Any]) -> torch.dtype:
    """The dtype of ``step``: float32, or float64 where that is torch's default, unless fused."""
    if not group.get("fused") and torch.get_default_dtype() == torch.float64:
        return torch.float64
    return torch.float32


def zero_step(p: Tensor, group: dict[str, Any]) -> Tensor:
    """A step counter at zero; on the CPU whatever the default device, unless fused."""
    return torch.zeros((), dtype=scalar_dtype(group), device=p.device if group.get("fused") else "cpu")


def zeros(p: Tensor) -> Tensor:
    """A state of zeros laid out as its parameter; if it is large, on large pages and in nobody's way in the caches."""
    if p.device.type == "cpu" and p.numel() >= _LARGE:
        state = out_of_the_way(p, lambda: torch.empty_like(p, memory_format=torch.preserve_format))
        return state if _core.zero_large(state, p) else state.zero_()
    return torch.zeros_like(p, memory_format=torch.preserve_format)


def out_of_the_way(p: Tensor, empty: Callable[[], Tensor]) -> Tensor:
    """A state without values, which ``empty`` makes; if it is large, in nobody's way in the caches.

    Those that would be in the way are held until another place is found.
    """
    held = [empty()]
    # memory that torch may fill is not for holding: it would cost more than addresses
    if p.device.type != "cpu" or p.numel() < _LARGE or torch.are_deterministic_algorithms_enabled():
        return held[-1]
    tensors = [p] if p.grad is None else [p, p.grad]
    while len(held) <= _OTHER_PLACES and _core.in_the_way(held[-1], tensors):
        try:
            held.append(empty())
        except RuntimeError:
            break  # no memory is promised beyond what is there
    return held[-1]


class NativeStep(MaxGradNorm):
    """Replaces ``step`` of a torch optimizer by one native call; whatever that cannot serve takes torch's own step."""

    _rule: ClassVar[str]
    _torch: ClassVar[type[torch.optim.Optimizer]]

    # On CUDA-only attributes torch sets and reads: see GradScaler in torch.amp.
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def _new_state(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Makes the states that ``p`` starts with, under torch's names. Must not change anything."""
        raise NotImplementedError

    def _make_state(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """What the native plan calls for new states."""
        state = self._new_state(p, grad, group)
        state.update(self._in_state_dtype(p, state))
        return state

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
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or _profiler_enabled()
        ) and type(self).step is NativeStep.step:
            # a subclass that overrides `step` was given torch's wrapper, which has run the hooks already
            return self._observed_step((self, *args), kwargs)
        return self._plain_step(*args, **kwargs)

    # torch wraps `step` of every class for hooks and profiler, unless it says that it does so itself.
    step.hooked = True  # type: ignore[attr-defined]
    # Hooks are shown the arguments just as they were given, so `step` takes them as they come.
    step.__signature__ = inspect.signature(torch.optim.Optimizer.step)  # type: ignore[attr-defined]

    def _plain_step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if "found_inf" in self.__dict__ or "grad_scale" in self.__dict__:
            self._scaled_update()
        else:
            self._update()
        return loss

    def _update(self, unscale: Callable[[], None] | None = None) -> None:
        if _FORCED or ((_dispatch_modes() or _function_modes()) and _modes_want_operations()):
            self._refuse_if_torn()
            everything = self._everything()
            if self._guarded_by_torch(unscale):
                self._torch_step(everything)
            return
        try:
            plan = self.__dict__["_plan"]
        except KeyError:  # setdefault: two threads that come here must not get two plans
            plan = self.__dict__.setdefault("_plan", _core.Plan(self._rule))
        try:
            if not self._guarded and unscale is None:
                plan.step(self)
                return
            norm = plan.step(self, self._max_grad_norm, self._skip_nonfinite, unscale)
        except _core.KernelError as panic:
            message, params = panic.args
            raise self._tear(f"a kernel of oxistep panicked ({message}; please report this)", params) from None
        if self._guarded:
            self._note_norm(norm)

    def _everything(self) -> list[tuple[int, Tensor]]:
        """All parameters, checked as what is left to torch."""
        everything = [(g, p) for g, group in enumerate(self.param_groups) for p in group["params"]]
        if _FORCED:
            check_storages(self, everything)  # a mode would see these calls
        self._refuse_narrow_states(everything)
        return everything

    def _explain(self) -> list[tuple[int, int, str, str]]:
        rows = _core.Plan(self._rule).explain(self)
        if _FORCED:
            everything = "OXISTEP_BACKEND=torch"
        elif _modes_want_operations():
            everything = "a mode is active that wants to see torch's operations"
        else:
            return rows
        return [
            (g, i, path, reason) if path == "skipped" else (g, i, "torch", everything) for g, i, path, reason in rows
        ]

    def _observed_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """A step with hooks and a profiler record, as torch's wrapper does it."""
        with torch.autograd.profiler.record_function(f"Optimizer.step#{type(self).__name__}.step"):
            for pre_hook in chain(
                torch_optimizer._global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()
            ):
                result: Any = pre_hook(self, args, kwargs)
                if result is not None:
                    if not (isinstance(result, tuple) and len(result) == 2):
                        raise RuntimeError(
                            f"{type(self).step} must return None or a tuple of (new_args, new_kwargs), "
                            f"but got {result}."
                        )
                    args, kwargs = result
            loss = NativeStep._plain_step(*args, **kwargs)
            self._optimizer_step_code()
            for post_hook in chain(
                self._optimizer_step_post_hooks.values(), torch_optimizer._global_optimizer_post_hooks.values()
            ):
                post_hook(self, args, kwargs)
        return loss

    def _scaled_update(self) -> None:
        """The step inside ``GradScaler.step`` of an optimizer made with ``fused=True``.

        When everything has been checked gradients are unscaled in place, as torch's fused kernels leave them; with an
        infinity among them the step is skipped whole: no state is made and no counter moves.
        """
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return

        def unscale() -> None:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            with torch.no_grad():
                for grad in grads:
                    grad.div_(scale.to(grad.device))  # type: ignore[union-attr]

        scaling = ("grad_scale", "found_inf")
        hidden = {key: self.__dict__[key] for key in scaling if key in self.__dict__}
        try:
            for key in hidden:
                del self.__dict__[key]
            self._update(None if scale is None else unscale)
        finally:
            self.__dict__.update(hidden)

    def _torch_step(self, left: list[tuple[int, Tensor]]) -> None:
        """Runs torch's own step for the parameters in ``left``, given with the index of their group."""
        groups = self.param_groups
        copies: dict[tuple[int, bool], dict[str, Any]] = {}
        for g, p in left:
            # torch's fused CPU kernels are wrong on strided tensors, foreach is no faster than the loop; what they
            # refuse, they shall refuse
            grad = p.grad  # asked for first, so that what is no tensor raises as in torch
            by_loop = p.device.type == "cpu" and p.is_floating_point() and not (grad is not None and grad.is_sparse)
            if (g, by_loop) not in copies:
                copy = copies[g, by_loop] = {**groups[g], "params": []}
                if by_loop:
                    copy.update({flag: False for flag in ("foreach", "fused") if copy.get(flag)})
            copies[g, by_loop]["params"].append(p)
        try:
            self.param_groups = list(copies.values())
            _unwrapped(self._torch.step)(self)
        finally:
            self.param_groups = groups

    def _check_left(self, left: list[tuple[int, Tensor]]) -> None:
        """What the native plan calls before anything is written, with the parameters that torch will update."""
        check_storages(self, left)
        self._refuse_narrow_states(left)

    def _rehearse(self, g: int, p: Tensor, state: dict[str, Any] | None) -> None:
        """What the native plan calls, before it writes, where torch may refuse the hyperparameters."""
        rehearse(self, _unwrapped(self._torch.step), g, p, state)


def _unwrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's step without the wrapper that would run the hooks a second time."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def _modes_want_operations() -> bool:
    """Whether an active mode intercepts torch's operations, so that only torch's step shows it what it came for."""
    if _dispatch_modes():
        return True
    # `torch.set_default_device` is a mode too, but only of functions that make tensors
    return any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(_function_modes()))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _step_outside_graph(optimizer: NativeStep, *args: Any, **kwargs: Any) -> Any:
    return optimizer.step(*args, **kwargs)
