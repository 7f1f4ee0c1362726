"""The zoo's classes with norms, totals and numbers of groups: each flag, and how the original package is called.

A case compares ``oxistep.zoo.NAME(params, **ours)`` with what ``theirs(params)`` makes.
"""

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest

__all__ = ["CASES", "CLASSES", "Case", "class_of", "module_of_timm", "of", "timm"]


def module_of_timm(name):
    """A module of timm.optim by itself: timm imports models, which want torchvision and take seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    if "timms_optim" not in sys.modules:
        package = types.ModuleType("timms_optim")
        package.__path__ = [f"{place}/optim" for place in spec.submodule_search_locations]
        sys.modules["timms_optim"] = package
    return importlib.import_module(f"timms_optim.{name}")


def timm(module, name):
    return lambda: getattr(module_of_timm(module), name)


def of(package, name):
    return lambda: getattr(pytest.importorskip(package), name)


def class_of(module, name):
    """A class of a package; a module of timm.optim is taken by itself."""
    inner = module.removeprefix("timm.optim.")
    return timm(inner, name) if inner != module else of(module, name)


@dataclass
class Case:
    """One class with some flags, beside the package's."""

    name: str
    """Of the class in ``oxistep.zoo``."""
    ours: dict[str, Any]
    module: str
    """Of the package's class."""
    cls: str
    theirs: dict[str, Any] = field(default_factory=dict)
    """Arguments that the package's class has besides."""
    lacks: tuple[str, ...] = ()
    """Arguments of ours that it has not."""
    float64: float = 1e-9
    reason: str = ""
    """Why float64 is compared less closely: a float32 scalar that the package keeps."""
    late: bool = True
    """Whether parameters may have no gradient in some steps: not where the package counts for a group and we, as the
    package that the class is from, for a parameter.
    """
    same_rates: bool = False
    """Whether all groups must have one learning rate."""

    def make(self, params: Any) -> Any:
        """The package's optimizer; skips the test if the package is missing."""
        arguments = {key: value for key, value in {**self.ours, **self.theirs}.items() if key not in self.lacks}
        return class_of(self.module, self.cls)()(params, **arguments)

    def __str__(self) -> str:
        flags = [f"{key}={value}" for key, value in self.ours.items() if key not in ("lr", "weight_decay")]
        return "-".join([self.name, *flags])


def _timm(name: str, cls: str, module: str, base: dict[str, Any], *flags: dict[str, Any], **more: Any) -> list[Case]:
    return [Case(name, base | one, f"timm.optim.{module}", cls, **more) for one in ({}, *flags)]


DECAY = {"lr": 0.02, "weight_decay": 0.1}
FREE = {"lr": 0.02, "weight_decay": 0.1, "warmup_steps": 3, "r": 1.0}
V_IS_FLOAT32 = {"float64": 1e-6, "reason": "timm keeps its second moment, one number, in float32"}

CASES = [
    *_timm(
        "LAMB",
        "Lamb",
        "lamb",
        DECAY,
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"bias_correction": False},
        {"grad_averaging": False},
        {"max_grad_norm": None},
        {"max_grad_norm": 100.0},
        {"trust_clip": True},
        {"caution": True},
        {"decoupled_decay": True},
        {"decoupled_decay": True, "corrected_weight_decay": True},
        {"betas": (0.8, 0.95), "eps": 1e-3},
        {"foreach": True},
    ),
    *_timm(
        "LARS",
        "Lars",
        "lars",
        DECAY,
        {"weight_decay": 0.0, "momentum": 0.9},
        {"weight_decay": 0.0, "always_adapt": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "trust_clip": True, "trust_coeff": 0.01, "eps": 1e-3},
        {"momentum": 0.9, "foreach": True},
    ),
    *_timm(
        "NovoGrad",
        "NvNovoGrad",
        "nvnovograd",
        DECAY,
        {"weight_decay": 0.0},
        {"grad_averaging": True},
        {"amsgrad": True},
        {"decoupled_decay": True},
        {"decoupled_decay": True, "corrected_weight_decay": True, "grad_averaging": True},
        {"betas": (0.8, 0.5), "eps": 1e-3},
        **V_IS_FLOAT32,
    ),
    *_timm(
        "MARS",
        "Mars",
        "mars",
        DECAY,
        {"weight_decay": 0.0},
        {"mars_type": "lion"},
        {"caution": True},
        {"mars_type": "lion", "caution": True},
        {"optimize_1d": True},
        {"lr_1d_factor": 0.3, "betas_1d": (0.8, 0.9)},
        {"betas": (0.95, 0.98), "gamma": 0.1, "eps": 1e-3},
    ),
    *[
        Case("StableAdamW", DECAY | one, "optimi", "StableAdamW", {"triton": False})
        for one in (
            {},
            {"weight_decay": 0.0},
            {"decouple_lr": True, "weight_decay": 1e-4},
            {"decouple_lr": True, "max_lr": 0.1, "weight_decay": 1e-4},
            {"betas": (0.8, 0.95), "eps": 1e-3},
            {"kahan_sum": True},
            {"kahan_sum": False},
        )
    ],
    *[
        Case(
            "AdEMAMix",
            DECAY | one,
            "pytorch_optimizer",
            "AdEMAMix",
            {"weight_decouple": True, "t_alpha_beta3": one.get("t_alpha")},
            lacks=("t_alpha", "t_beta3"),
            late=False,
        )
        for one in (
            {},
            {"weight_decay": 0.0},
            {"t_alpha": 6, "t_beta3": 6},
            {"alpha": 2.0, "betas": (0.8, 0.95, 0.99), "eps": 1e-3},
        )
    ],
    *[
        Case("Prodigy", {"weight_decay": 0.1, "d0": 1e-3} | one, "prodigyopt", "Prodigy", same_rates=True)
        for one in (
            {},
            {"weight_decay": 0},
            {"lr": 0.5},
            {"decouple": False},
            {"beta3": 0.9},
            {"betas": (0.0, 0.9)},
            {"use_bias_correction": True},
            {"use_bias_correction": True, "safeguard_warmup": True, "lr": 0.7},
            {"d_coef": 2.0, "growth_rate": 1.5},
            {"d0": 1e-6, "eps": 1e-3},
        )
    ],
    *[
        Case("SGDScheduleFree", FREE | one, "schedulefree", "SGDScheduleFree")
        for one in (
            {},
            {"weight_decay": 0},
            {"warmup_steps": 0, "r": 0.0},
            {"momentum": 0.5, "weight_lr_power": 0},
            {"foreach": False},
        )
    ],
    *[
        Case("AdamWScheduleFree", FREE | one, "schedulefree", "AdamWScheduleFree")
        for one in (
            {},
            {"weight_decay": 0},
            {"warmup_steps": 0, "r": 0.0},
            {"betas": (0.5, 0.9), "eps": 1e-3, "weight_lr_power": 0.5},
            {"foreach": False},
        )
    ],
    *[
        Case("RAdamScheduleFree", DECAY | {"r": 1.0} | one, "schedulefree", "RAdamScheduleFree")
        for one in (
            {},
            {"weight_decay": 0, "r": 0.0},
            {"silent_sgd_phase": False},
            {"betas": (0.5, 0.9), "eps": 1e-3, "weight_lr_power": 0.5},
            {"foreach": False},
        )
    ],
]
"""Every class and flag."""

CLASSES = sorted({case.name for case in CASES})
