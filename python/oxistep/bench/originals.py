"""The packages that people take the zoo's optimizers from, and how each is called there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Original:
    """One class of the zoo, and the class that it is beside."""

    package: str
    """As it is imported."""
    module: str
    cls: str
    arguments: dict[str, Any] = field(default_factory=dict)
    """Given to both: what people give, where a default leaves a part out."""
    theirs: dict[str, Any] = field(default_factory=dict)
    """Given to the package's class besides."""
    timed: dict[str, Any] = field(default_factory=dict)
    """Given to both where they are timed, on gradients that stay the same."""
    lr: float = 1e-3
    """A usual learning rate of small trainings; both train with it."""
    pip: str = ""
    """What pip calls the package, if not as it is imported."""

    def load(self) -> type[Any] | None:
        """The package's class; None where the package is not installed."""
        if importlib.util.find_spec(self.package) is None:
            return None
        module = _of_timm(self.module) if self.package == "timm" else importlib.import_module(self.module)
        found: type[Any] = getattr(module, self.cls)
        return found

    def variants(self) -> dict[str, dict[str, Any]]:
        """The package's own ways to step: its for-loop and foreach, where it has both."""
        cls = self.load()
        if cls is None:
            return {}
        if "foreach" not in inspect.signature(cls).parameters:
            return {self.package: self.theirs}
        return {f"{self.package}, {name}": self.theirs | {"foreach": on} for name, on in WAYS.items()}


WAYS = {"for-loop": False, "foreach": True}
MOMENTUM = {"momentum": 0.9}

ORIGINALS = {
    "ADOPT": Original("timm", "adopt", "Adopt"),
    "AdEMAMix": Original(
        "pytorch_optimizer", "pytorch_optimizer", "AdEMAMix", theirs={"weight_decouple": True, "weight_decay": 0.01}
    ),
    "AdaBelief": Original("timm", "adabelief", "AdaBelief", lr=3e-3),
    "AdaBound": Original("adabound", "adabound", "AdaBound"),
    "AdamAtan2": Original("adam_atan2_pytorch", "adam_atan2_pytorch.adam_atan2", "AdamAtan2", pip="adam-atan2-pytorch"),
    "AdamW": Original("timm", "adamw", "AdamWLegacy"),
    "AdamWScheduleFree": Original("schedulefree", "schedulefree", "AdamWScheduleFree", lr=2.5e-3),
    "Adan": Original("timm", "adan", "Adan", lr=3e-3),
    "LAMB": Original("timm", "lamb", "Lamb", lr=1e-2),
    "LARS": Original("timm", "lars", "Lars", {**MOMENTUM, "weight_decay": 1e-4}, lr=1.0),
    "LaProp": Original("timm", "laprop", "LaProp", lr=4e-4),
    "Lion": Original("timm", "lion", "Lion", lr=1e-3),
    "MADGRAD": Original("timm", "madgrad", "MADGRAD"),
    "MARS": Original("timm", "mars", "Mars", lr=3e-3),
    "NAdamW": Original("timm", "nadamw", "NAdamW"),
    "NovoGrad": Original("timm", "nvnovograd", "NvNovoGrad", lr=1e-2),
    "Prodigy": Original("prodigyopt", "prodigyopt", "Prodigy", timed={"growth_rate": 1.0}, lr=1.0),
    "RAdamScheduleFree": Original("schedulefree", "schedulefree", "RAdamScheduleFree", lr=2.5e-3),
    "RMSpropTF": Original("timm", "rmsprop_tf", "RMSpropTF", MOMENTUM, lr=1e-2),
    "SGDScheduleFree": Original("schedulefree", "schedulefree", "SGDScheduleFree", lr=1.0),
    "SGDW": Original("timm", "sgdw", "SGDW", {**MOMENTUM, "weight_decay": 1e-4}, lr=0.1),
    "SignSGD": Original("pytorch_optimizer", "pytorch_optimizer", "SignSGD", lr=1e-3),
    "SophiaG": Original("sophia_opt", "sophia_opt", "SophiaG", pip="sophia-opt", lr=1e-3),
    "StableAdamW": Original("optimi", "optimi", "StableAdamW", theirs={"triton": False}, pip="torch-optimi"),
    "Tiger": Original("pytorch_optimizer", "pytorch_optimizer", "Tiger", lr=1e-3),
}


def _of_timm(name: str) -> Any:
    """A module of timm.optim by itself: timm imports models, which want torchvision and take seconds."""
    if "oxistep_timms_optim" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None and spec.submodule_search_locations is not None
        package = types.ModuleType("oxistep_timms_optim")
        package.__path__ = [f"{place}/optim" for place in spec.submodule_search_locations]
        sys.modules["oxistep_timms_optim"] = package
    return importlib.import_module(f"oxistep_timms_optim.{name}")
