"""What gradient release refuses, each with its reason, before anything is changed."""

import gc
import sys
from typing import Any

import torch.distributed as dist

from oxistep._names import name_of
from oxistep.optim._definition import definition_of
from oxistep.optim._kept import KEY, Kept

__all__ = ["refuse_by_now", "refuse_optimizer", "refuse_reducers", "refuse_setting"]

_EACH = "step_in_backward steps each parameter by itself, as soon as its gradient is there"


def refuse_optimizer(optimizer: Any, clip: str | None) -> None:
    """Refuses an optimizer of which not every parameter can be stepped by itself.

    Raises:
        ValueError: with the reason and the remedy.
    """
    name = type(optimizer).__name__
    definition = definition_of(type(optimizer))
    if definition.rule in _WHOLE:
        raise ValueError(f"{name}: {_EACH}, and {_WHOLE[definition.rule]}; call step() after backward instead")
    if (reason := getattr(type(optimizer), "_zoo_not_alone", None)) is not None:
        raise ValueError(f"{name}: {_EACH}, and {reason}; call step() after backward instead")
    if definition.rule != "program" and (reason := definition.overridden(optimizer)) is not None:
        raise ValueError(
            f"{name}: {_EACH}, by oxistep's or torch's own step, and in this class {reason}; call step() after "
            "backward instead"
        )
    refuse_setting(optimizer.__dict__[KEY], clip, ValueError)
    for g, group in enumerate(optimizer.param_groups):
        _refuse_group(optimizer, group, g)
        for i, p in enumerate(group["params"]):
            if getattr(p, "_fsdp_flattened", False) or hasattr(p, "_unpadded_unsharded_size"):
                raise ValueError(
                    f"{name_of(optimizer.param_groups, g, i)} is FSDP1's, which reduces gradients over the ranks after "
                    f"they were accumulated, and {_EACH}; use fully_shard (FSDP2), or step after backward"
                )
    refuse_reducers(optimizer, ValueError)


_WHOLE = {
    "lbfgs": "L-BFGS takes all parameters for one vector, and evaluates the model several times in a step",
    "muon": "Muon makes the matrix products of all parameters together, in rounds",
}


def _refuse_group(optimizer: Any, group: dict[str, Any], g: int) -> None:
    if definition_of(type(optimizer)).rule == "program":
        refuse_by_now(optimizer, group, -1, ValueError)
    if definition_of(type(optimizer)).rule == "adafactor" and group["eps"][0] is None:
        if len({p.dtype for p in group["params"]}) > 1:
            raise ValueError(
                f"param_groups[{g}] has parameters of several dtypes, whose first says what eps[0]=None is for all of "
                f"them, and {_EACH}; give eps[0], or a group for each dtype"
            )


def refuse_setting(kept: Kept, clip: str | None, error: type[Exception] = RuntimeError) -> None:
    """Refuses settings that look at all gradients."""
    if kept.skip_nonfinite:
        raise error(
            f"skip_nonfinite: whether a step is skipped hangs on all gradients, and {_EACH}; nothing can be taken back "
            "then. Leave skip_nonfinite out, or step after backward"
        )
    if kept.max_grad_norm is not None and clip is None:
        raise error(
            f"max_grad_norm: the norm of all gradients is known when the last one is there, and {_EACH}. "
            'step_in_backward(optimizer, clip="parameter") clips each gradient by its own norm; for the norm of all, '
            "step after backward"
        )
    if kept.grad_norm_group is not None:
        raise error(
            f"grad_norm_group: ranks sum a norm in one order, and {_EACH}; leave it out, or step after backward"
        )


def refuse_by_now(optimizer: Any, group: dict[str, Any], known: int, error: type[Exception] = RuntimeError) -> int:
    """Refuses a rule whose programs so far have sums over all parameters.

    Args:
        optimizer: the optimizer.
        group: one of its groups.
        known: how many programs of the rule were looked at.
        error: what is raised.

    Returns:
        How many programs there are now.
    """
    from oxistep.rules._optimizer import source_of

    source = source_of(type(optimizer))
    if source.traced == known:
        return known
    try:
        reading = source.read(group, "")
        programs = [source.early_program(reading, tuple(p.shape), p.numel()) for p in group["params"]]
        programs += source.tree(reading).programs
    except Exception:  # the step says what is wrong
        return -1
    if any(program.totals for program in programs):
        raise error(
            f"rule {source.name} needs sums over all parameters (total), which are known when the last gradient is "
            f"there, and {_EACH}; call step() after backward instead"
        )
    return source.traced


def refuse_reducers(optimizer: Any, error: type[Exception] = RuntimeError) -> None:
    """Refuses parameters whose gradients DistributedDataParallel reduces.

    It leaves no mark on them, so its modules are looked for; only where there are process groups.
    """
    module = sys.modules.get("torch.nn.parallel.distributed")
    if module is None or not dist.is_available() or not dist.is_initialized():
        return
    ddp = module.DistributedDataParallel
    own = {id(p): (g, i) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])}
    for found in (one for one in gc.get_objects() if issubclass(type(one), ddp)):
        for p in found.parameters():
            if id(p) in own:
                raise error(
                    f"{name_of(optimizer.param_groups, *own[id(p)])} is in a DistributedDataParallel, which reduces "
                    f"gradients over the ranks after they were accumulated, and {_EACH}, before that; use fully_shard "
                    "(FSDP2), or step after backward"
                )
