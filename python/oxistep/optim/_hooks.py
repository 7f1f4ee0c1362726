"""Step hooks and the profiler's record, as torch's wrapper of ``step`` does them.

torch wraps the ``step`` of a class when one of its optimizers is made, unless it bears the mark ``hooked``. Ours bears
it, since the wrapper costs as much as three small steps. Whether a wrapper is at work all the same, around the ``step``
of a subclass, cannot be told from marks: ``step`` may have been replaced after construction, or been given a copied
mark, or the class of the optimizer may have changed. So the callers of a step are looked at, where there is a hook or a
profiler.
"""

import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer

__all__ = ["observed", "wrapper_is_at_work"]

_wrapper = torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__


def wrapper_is_at_work(optimizer: Any) -> bool:
    """Whether this step was called, near or far, by torch's wrapper around a step of the same optimizer."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _wrapper and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def observed(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Takes a step; ``args`` begin with the optimizer, and are shown to the hooks as they came."""
    optimizer = args[0]
    with torch.autograd.profiler.record_function(f"Optimizer.step#{type(optimizer).__name__}.step"):
        for pre_hook in chain(
            torch_optimizer._global_optimizer_pre_hooks.values(), optimizer._optimizer_step_pre_hooks.values()
        ):
            result: Any = pre_hook(optimizer, args, kwargs)
            if result is not None:
                if not (isinstance(result, tuple) and len(result) == 2):
                    raise RuntimeError(
                        f"{type(optimizer).step} must return None or a tuple of (new_args, new_kwargs), "
                        f"but got {result}."
                    )
                args, kwargs = result
        loss = step(*args, **kwargs)
        optimizer._optimizer_step_code()
        for post_hook in chain(
            optimizer._optimizer_step_post_hooks.values(), torch_optimizer._global_optimizer_post_hooks.values()
        ):
            post_hook(optimizer, args, kwargs)
    return loss
