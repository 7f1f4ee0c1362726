"""What torch optimizers do when a step or a load goes wrong: see ``oxistep._torn``."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from oxistep._names import names_of
from oxistep._torn import Torn, text_of
from oxistep.optim._kept import KEY, kept_of

__all__ = ["loaded_whole", "refuse_if_torn", "tear"]


def tear(optimizer: Any, cause: str, params: Iterable[Tensor]) -> RuntimeError:
    """Lets no step be taken from now on; returns the error that says why.

    Plans are gone with it, so that asking for it costs no step anything.
    """
    text = text_of(cause, names_of(optimizer.param_groups, params))
    kept = kept_of(optimizer)
    kept.torn = Torn(text)
    kept.plans.clear()
    return RuntimeError(text)


def refuse_if_torn(optimizer: Any) -> None:
    """Raises if the last step broke off half-way."""
    kept = optimizer.__dict__.get(KEY)
    if kept is not None and kept.torn is not None:
        kept.torn.step()


def loaded_whole(optimizer: Any, load: Callable[[], None]) -> None:
    """Loads a state dict. One that is refused, or fails to load, leaves the optimizer as it was."""
    before = {
        key: optimizer.__dict__[key] for key in ("state", "param_groups", "defaults") if key in optimizer.__dict__
    }
    try:
        load()
    except BaseException:
        optimizer.__dict__.update(before)
        raise
    if (kept := optimizer.__dict__.get(KEY)) is not None:
        kept.torn = None
