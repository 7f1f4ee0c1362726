"""timm: its registry of optimizers by name."""

import dataclasses
import importlib
from typing import Any

__all__ = ["register_timm"]

_PREFIX = "oxistep"


def register_timm() -> list[str]:
    """Registers oxistep's classes with timm, so that ``opt="oxistepadamw"`` makes ``oxistep.optim.AdamW``.

    Each name in timm's registry that stands for a class of ``torch.optim`` gets a second one with ``oxistep`` before
    it, and keeps timm's defaults (``oxistepsgd`` is SGD with Nesterov's momentum, as ``sgd`` is). The names have no
    ``_``: timm takes what follows the last one, so that ``lookahead_oxistepadamw`` works as well. A second call changes
    nothing.

    Returns:
        list: the names that ``timm.optim.create_optimizer_v2(model, opt=...)`` takes now for oxistep's classes.

    Raises:
        ModuleNotFoundError: if timm, or the registry of timm 1.0.12 and later, is not installed.

    Example:
        >>> import oxistep.integrations
        >>> names = oxistep.integrations.register_timm()  # doctest: +SKIP
        >>> "oxistepadamw" in names  # doctest: +SKIP
        True
    """
    registry = _registry()
    ours = _ours()
    names = registry.list_optimizers()
    registered = []
    for name in names:
        info = registry.get_optimizer_info(name)
        if not isinstance(info.opt_class, type) or info.opt_class not in ours:
            continue
        new = _PREFIX + name
        if new not in names:
            path = f"oxistep.optim.{ours[info.opt_class]}"
            registry.register(dataclasses.replace(info, name=new, opt_class=path))
        registered.append(new)
    return registered


def _registry() -> Any:
    """timm's registry."""
    try:
        importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModuleNotFoundError(
            "oxistep.integrations.register_timm needs timm: pip install 'timm>=1.0.12'", name="timm"
        ) from error
    try:
        return importlib.import_module("timm.optim._optim_factory").default_registry
    except (ModuleNotFoundError, AttributeError) as error:
        raise ModuleNotFoundError(
            "this timm has no registry of optimizers where oxistep looks for it: pip install 'timm>=1.0.12'",
            name="timm.optim._optim_factory",
        ) from error


def _ours() -> dict[type, str]:
    """The names of our classes, by torch's class and by our own: timm may have been imported under `oxistep.swap`."""
    import oxistep.optim
    from oxistep.optim._definition import definition_of
    from oxistep.optim._native import DropIn

    names: dict[type, str] = {}
    for name, value in vars(oxistep.optim).items():
        if isinstance(value, type) and issubclass(value, DropIn):
            names[value] = names[definition_of(value).torch] = name
    return names
