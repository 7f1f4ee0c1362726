"""The optimizers of the zoo: variants of each, the package that each is compared with, and the judge in float64.

A class of the zoo is added by cases, by its signature, and by what its package calls it.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import brief
from oxistep import zoo
from oxistep.rules._optimizer import source_of
from oxistep.rules._run import Given, Run
from oxistep.rules._together import Member, group_numbers, settle
from oxistep.rules._trace import Facts
from zoo_cases_b import CASES as OF_GROUPS
from zoo_cases_b import class_of, of, timm

# What each is called in the package that people take it from.
PACKAGE_CLASS: dict[str, Callable[[], type]] = {
    "ADOPT": timm("adopt", "Adopt"),
    "AdaBelief": timm("adabelief", "AdaBelief"),
    "AdaBound": of("adabound", "AdaBound"),
    "AdamAtan2": of("adam_atan2_pytorch.adam_atan2", "AdamAtan2"),
    "AdamW": timm("adamw", "AdamWLegacy"),
    "Adan": timm("adan", "Adan"),
    "LaProp": timm("laprop", "LaProp"),
    "Lion": timm("lion", "Lion"),
    "MADGRAD": timm("madgrad", "MADGRAD"),
    "NAdamW": timm("nadamw", "NAdamW"),
    "RMSpropTF": timm("rmsprop_tf", "RMSpropTF"),
    "SGDW": timm("sgdw", "SGDW"),
    "SignSGD": of("pytorch_optimizer", "SignSGD"),
    "SophiaG": of("sophia_opt", "SophiaG"),
    "Tiger": of("pytorch_optimizer", "Tiger"),
} | {case.name: class_of(case.module, case.cls) for case in OF_GROUPS}

# Which checkpoints do not move between us and the package, and why.
LOADS: dict[str, dict[str, str]] = {
    "AdEMAMix": dict.fromkeys(("ours", "theirs"), "bitsandbytes' keys, and pytorch_optimizer has others"),
    "AdamAtan2": {"theirs": "the counter is called steps there; ours reads both"},
    "MARS": {"theirs": "timm wants last_grad of parameters whose rule does not look at it"},
    "Prodigy": {"theirs": "prodigyopt wants fsdp_in_use in the groups, which ours has not"},
    "StableAdamW": {"theirs": "optimi wants triton and gradient_release in the groups, which ours has not"},
}

# Arguments of the package that choose an implementation or a storage, and are left out.
LEFT_OUT = ("fsdp_in_use", "gradient_release", "triton")

# Whose signature is not the package's that results are compared with.
OTHER_SIGNATURE = {"AdEMAMix": "it is that of bitsandbytes, whose rule pytorch_optimizer has as well"}

# Whole signatures, without what all have beside them.
SIGNATURES = {
    "ADOPT": "lr=0.001, betas=(0.9, 0.9999), eps=1e-06, clip_exp=0.333, weight_decay=0.0, decoupled=False, "
    "corrected_weight_decay=False, *, caution=False, foreach=None, maximize=False, capturable=False, "
    "differentiable=False",
    "AdaBelief": "lr=0.001, betas=(0.9, 0.999), eps=1e-16, weight_decay=0, amsgrad=False, decoupled_decay=True, "
    "fixed_decay=False, rectify=True, degenerated_to_sgd=True, foreach=None, maximize=False",
    "AdaBound": "lr=0.001, betas=(0.9, 0.999), final_lr=0.1, gamma=0.001, eps=1e-08, weight_decay=0, amsbound=False, "
    "maximize=False, foreach=None",
    "AdamAtan2": "lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, regen_reg_rate=0.0, decoupled_wd=False, "
    "cautious_wd=False, cautious_factor=1.0, a=1.27, b=1.0, maximize=False, foreach=None",
    "AdamW": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, caution=False, "
    "corrected_weight_decay=False, maximize=False, foreach=None, capturable=False, clipping_threshold=None",
    "Adan": "lr=0.001, betas=(0.98, 0.92, 0.99), eps=1e-08, weight_decay=0.0, no_prox=False, caution=False, "
    "foreach=None, maximize=False",
    "LaProp": "lr=0.0004, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0, caution=False, "
    "corrected_weight_decay=False, foreach=None, maximize=False",
    "AdEMAMix": "lr=0.001, betas=(0.9, 0.999, 0.9999), alpha=5.0, t_alpha=None, t_beta3=None, eps=1e-08, "
    "weight_decay=0.01, maximize=False, foreach=None",
    "AdamWScheduleFree": "lr=0.0025, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, warmup_steps=0, r=0.0, "
    "weight_lr_power=2.0, foreach=True, maximize=False",
    "LAMB": "lr=0.001, bias_correction=True, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.01, grad_averaging=True, "
    "max_grad_norm=1.0, trust_clip=False, always_adapt=False, caution=False, decoupled_decay=False, "
    "corrected_weight_decay=False, foreach=None, maximize=False",
    "LARS": "lr=1.0, momentum=0, dampening=0, weight_decay=0, nesterov=False, trust_coeff=0.001, eps=1e-08, "
    "trust_clip=False, always_adapt=False, foreach=None, maximize=False",
    "MARS": "lr=0.003, betas=(0.9, 0.99), eps=1e-08, weight_decay=0.0, gamma=0.025, mars_type='adamw', "
    "optimize_1d=False, lr_1d_factor=1.0, betas_1d=None, caution=False, maximize=False, foreach=None",
    "NovoGrad": "lr=0.001, betas=(0.95, 0.98), eps=1e-08, weight_decay=0, grad_averaging=False, amsgrad=False, "
    "decoupled_decay=False, corrected_weight_decay=False, maximize=False, foreach=None",
    "Prodigy": "lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-08, weight_decay=0, decouple=True, "
    "use_bias_correction=False, safeguard_warmup=False, d0=1e-06, d_coef=1.0, growth_rate=inf, slice_p=1, "
    "maximize=False, foreach=None",
    "RAdamScheduleFree": "lr=0.0025, betas=(0.9, 0.999), eps=1e-08, weight_decay=0, r=0.0, weight_lr_power=2.0, "
    "foreach=True, silent_sgd_phase=True, maximize=False",
    "SGDScheduleFree": "lr=1.0, momentum=0.9, weight_decay=0, warmup_steps=0, r=0.0, weight_lr_power=2, foreach=True, "
    "maximize=False",
    "StableAdamW": "lr, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-06, decouple_lr=False, max_lr=None, "
    "kahan_sum=None, foreach=None, maximize=False",
    "Lion": "lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, caution=False, corrected_weight_decay=False, "
    "maximize=False, foreach=None",
    "MADGRAD": "lr=0.01, momentum=0.9, weight_decay=0, eps=1e-06, decoupled_decay=False, maximize=False, foreach=None",
    "NAdamW": "lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, caution=False, "
    "corrected_weight_decay=False, maximize=False, foreach=None, capturable=False, clipping_threshold=None",
    "RMSpropTF": "lr=0.01, alpha=0.9, eps=1e-10, weight_decay=0, momentum=0.0, centered=False, decoupled_decay=False, "
    "corrected_weight_decay=False, lr_in_momentum=True, caution=False, foreach=None, maximize=False",
    "SGDW": "lr=0.001, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, *, caution=False, "
    "corrected_weight_decay=False, maximize=False, foreach=None, differentiable=False",
    "SignSGD": "lr=0.001, momentum=0.9, weight_decay=0.0, weight_decouple=True, foreach=None, maximize=False",
    "SophiaG": "lr=0.0001, betas=(0.965, 0.99), rho=0.04, weight_decay=0.1, *, maximize=False, capturable=False, "
    "foreach=None",
    "Tiger": "lr=0.001, beta=0.965, weight_decay=0.01, weight_decouple=True, fixed_decay=False, foreach=None, "
    "maximize=False",
}
# What steps with another optimizer's rule has tests of its own.
WRAPPERS = ("Grokfast", "Lookahead", "SAM")
NAMES = [name for name in zoo.__all__ if name not in WRAPPERS]
SIGNS = ("Lion", "SignSGD", "SophiaG", "Tiger")
SETTINGS = (
    "state_dtype=None",
    "weights=None",
    "seed=0",
    "ema=None",
    "ema_warmup=False",
    "max_grad_norm=None",
    "skip_nonfinite=False",
    "grad_norm_group=None",
)


@dataclass(frozen=True)
class Case:
    """A class of the zoo with some of its flags."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Any, int], None] = lambda optimizer, k: None
    """Done before the k-th step, when gradients are there: to ours, the package's, the judge."""
    step: dict[str, Any] = field(default_factory=dict)
    """What ``step`` is given."""
    close: float = 1e-9
    """How near ours is to the package's in float64."""
    because: str = ""
    """Why not nearer."""
    half: float = 1.1
    """How many times the package's error ours may be in bfloat16."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the package's is given besides."""
    lacks: tuple[str, ...] = ()
    """What the package's is not given."""
    late: bool = True
    """Whether a parameter's first gradient may come late: not where we count otherwise than the package."""
    no_float16: str = ""
    """Why float16 does not come near to float64."""
    moves_anyway: str = ""
    """Why a parameter moves under lr = 0 and zero gradients."""

    @property
    def turns(self):
        """Whether the sign of what is near zero decides: rounded to a half type it may be the other one."""
        signs = self.name in SIGNS or self.kwargs.get("mars_type") == "lion"
        return signs or bool(self.kwargs.get("caution")) or self.kwargs.get("cautious_factor", 1) < 1

    def ours(self, params, **more):
        return getattr(zoo, self.name)(params, **self.kwargs | more)

    def theirs(self, params, **more):
        given = {name: value for name, value in (self.kwargs | self.extra | more).items() if name not in self.lacks}
        return PACKAGE_CLASS[self.name]()(params, **given)

    def take(self, optimizer, k):
        """The k-th step, counted from 0, of parameters that have gradients."""
        self.before(optimizer, k)
        optimizer.step(**self.step)

    def __str__(self):
        flags = [name if value is True else f"{name}={value}" for name, value in self.kwargs.items() if name != "lr"]
        return "-".join([self.name, *flags])


def variants(name, shared, *flags, **of_case):
    """A case for each set of flags, each with what they share."""
    return [Case(name, {**shared, **more}, **of_case) for more in ({}, *flags)]


DECAY = {"lr": 0.02, "weight_decay": 0.1}
CAUTION, CORRECTED, MAXIMIZE = {"caution": True}, {"corrected_weight_decay": True}, {"maximize": True}
FLOAT32 = {"close": 1e-6, "because": "timm keeps exp_avg_lr_2 in float32"}
MASK = {"close": 1e-6, "because": "adam_atan2_pytorch makes the factor of cautious_wd in float32"}
FIXED = {"moves_anyway": "fixed_decay is decay that does not depend on the learning rate"}
SOPHIA = {"step": {"bs": 8}, "before": lambda optimizer, k: optimizer.update_hessian() if k % 3 == 1 else None}

CASES: list[Case] = [
    *variants("ADOPT", DECAY, CAUTION, MAXIMIZE, {"decoupled": True}, {"decoupled": True, **CORRECTED, **CAUTION}),
    *variants("ADOPT", {"lr": 0.02}, {"clip_exp": None}, {"clip_exp": 0.1, "eps": 0.5}),
    *variants("AdaBelief", {**DECAY, "eps": 1e-3}, {"rectify": False}, {"degenerated_to_sgd": False}),
    *variants("AdaBelief", {"lr": 0.02}, {"amsgrad": True}, {"amsgrad": True, "rectify": False}),
    *variants("AdaBelief", {**DECAY, "decoupled_decay": False}, {"rectify": False}),
    Case("AdaBelief", {**DECAY, "fixed_decay": True}, **FIXED),
    *variants("AdaBound", {"lr": 0.02}, {"weight_decay": 0.1}, {"amsbound": True}, {"gamma": 0.5, "final_lr": 0.01}),
    *variants("AdamAtan2", DECAY, {"cautious_factor": 0.0}, {"cautious_factor": 0.3, "a": 1.0}),
    Case("AdamAtan2", {**DECAY, "cautious_wd": True}, **MASK),
    Case("AdamAtan2", {"lr": 0.02, "decoupled_wd": True, "weight_decay": 1e-3, "cautious_wd": True}, **MASK),
    Case("AdamAtan2", {"lr": 0.02, "decoupled_wd": True, "weight_decay": 1e-3}),
    *variants("AdamAtan2", {"lr": 0.02, "b": 0.7}, {"regen_reg_rate": 0.3}),
    Case("AdamAtan2", {"lr": 0.02, "regen_reg_rate": 1e-3, "decoupled_wd": True}),
    *variants("AdamW", DECAY, CAUTION, CORRECTED, MAXIMIZE, {"amsgrad": True}, {"clipping_threshold": 0.7}),
    Case("AdamW", {**DECAY, **CAUTION, **CORRECTED, "amsgrad": True, "clipping_threshold": 0.3}),
    *variants("Adan", DECAY, CAUTION, {"no_prox": True}, {"no_prox": True, **CAUTION}),
    *variants("LaProp", DECAY, CAUTION, CORRECTED, **FLOAT32),
    *variants("Lion", DECAY, CAUTION, CORRECTED, MAXIMIZE, {"weight_decay": 0.0}),
    *variants("MADGRAD", DECAY, {"decoupled_decay": True}),
    # timm computes back to where the parameter began in bfloat16, which the sum is rounded to by chance
    *variants("MADGRAD", {**DECAY, "momentum": 0.0}, {"decoupled_decay": True}, half=1.6),
    *variants("NAdamW", DECAY, CAUTION, CORRECTED, MAXIMIZE, {"clipping_threshold": 0.7}),
    *variants("RMSpropTF", DECAY, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "lr_in_momentum": False}),
    *variants("RMSpropTF", {**DECAY, "momentum": 0.9, "decoupled_decay": True}, CAUTION, CORRECTED),
    Case("RMSpropTF", {**DECAY, **CAUTION, "momentum": 0.9, "lr_in_momentum": False, "centered": True}),
    *variants("SGDW", DECAY, MAXIMIZE, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}),
    *variants("SGDW", {**DECAY, "momentum": 0.9, "nesterov": True}, CAUTION, CORRECTED),
    Case("SGDW", {**DECAY, **CAUTION, "momentum": 0.9, "dampening": 0.3}),
    *variants("SignSGD", DECAY, MAXIMIZE, {"momentum": 0.0}, {"weight_decouple": False}),
    *variants("SophiaG", DECAY, MAXIMIZE, {"rho": 0.5}, **SOPHIA),
    *variants("Tiger", DECAY, MAXIMIZE, {"weight_decouple": False}),
    Case("Tiger", {**DECAY, "fixed_decay": True}, **FIXED),
]


def trains(optimizer, _):
    if hasattr(optimizer, "train"):
        optimizer.train()


CASES += [
    Case(
        case.name,
        case.ours,
        before=trains,
        close=case.float64,
        because=case.reason,
        extra=case.theirs,
        lacks=case.lacks,
        late=case.late,
        no_float16="squares of small numbers are zero in it" if case.name in ("LAMB", "Prodigy") else "",
    )
    for case in OF_GROUPS
]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
# One of each class, with the flags that use most of its states.
ONE_OF_EACH = {case.name: case for case in sorted(CASES, key=lambda case: len(case.kwargs))}
# In the brief run what concerns a class and its flags little is tried with some classes.
SOME = brief.some(ONE_OF_EACH.values(), 4)
each_case_or_class = pytest.mark.parametrize("case", SOME if brief.ASKED else CASES, ids=str)
each_class = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)


def signature_of(cls):
    """The signature of a constructor, without annotations and without its first parameter."""
    signature = inspect.signature(cls)
    params = list(signature.parameters.values())[1:]
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in params]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))[1:-1]


class Judge:
    """Steps with the rule of an optimizer by NumPy in float64; torch's and the kernels' part in it is none."""

    def __init__(self, case, params):
        made = case.ours(params)
        self.source, self.group = source_of(type(made)), dict(made.param_groups[0])
        self.second = getattr(sys.modules[type(made).__module__], "HESSIAN", None)
        self.params = [p.detach().double().numpy().copy() for p in self.group.pop("params")]
        self.states = [{} for _ in self.params]
        self.steps = [0] * len(self.params)
        self.grads = [None] * len(self.params)

    def step(self, **given):
        self.group.update(given)
        self._take(self.source)
        self.steps = [n + (g is not None) for n, g in zip(self.steps, self.grads, strict=True)]

    def update_hessian(self):
        self._take(self.second)

    def train(self):
        if "train_mode" in self.group:
            self.group["train_mode"] = True

    def _take(self, source):
        reading = source.read(self.group, "")
        tree = source.tree(reading)
        members = {
            i: Member(Facts(p.shape), tree, lambda program, totals, i=i: self._run(i, reading, program, totals))
            for i, p in enumerate(self.params)
            if self.grads[i] is not None
        }
        settle(list(members.values()), source.name)
        shared = group_numbers(source.name, [(0, member) for member in members.values()])
        for i, member in members.items():
            values = member.run.values(member.program.writes.values())
            kept = member.run.values(member.program.numbers.values())
            for name, value in zip(member.program.writes, values, strict=True):
                if name == "p":
                    self.params[i] = np.array(value)
                else:
                    self.states[i][name] = np.array(value)
            named = dict(zip(member.program.numbers, kept, strict=True))
            self.states[i].update((name, v) for name, v in named.items() if name in member.program.states)
        for numbers in shared.values():
            self.group.update(numbers)

    def _run(self, i, reading, program, totals):
        p, states = self.params[i], self.states[i]
        for name, state in program.states.items():
            begin = state.initial
            if state.kind.has_elements:
                begin = p.copy() if begin == "p" else np.full_like(p, begin)
            states.setdefault(name, begin)
        g = -self.grads[i] if self.group.get("maximize") and not self.source.takes_maximize else self.grads[i]
        group = {name: float(self.group.get(name, state.initial)) for name, state in program.of_group.items()}
        own = {name: states[name] for name, state in program.states.items() if not state.kind.has_elements}
        given = Given(
            {"p": p, "g": g, **states},
            reading.numbers,
            self.steps[i] + 1.0,
            float(p.size),
            group,
            own,
            dtype=np.float64,
        )
        return Run(program, given, totals)
