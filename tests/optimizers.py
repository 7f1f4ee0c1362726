"""The table that drives the tests: every native optimizer with the hyperparameters worth trying."""

from dataclasses import dataclass, field
from typing import Any

import torch

import oxistep.optim


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of hyperparameters."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    uses_sqrt: bool = True

    @property
    def ours(self) -> type[torch.optim.Optimizer]:
        return getattr(oxistep.optim, self.name)

    @property
    def theirs(self) -> type[torch.optim.Optimizer]:
        return getattr(torch.optim, self.name)

    @property
    def id(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


def _sgd(label: str, **kwargs: Any) -> Case:
    return Case("SGD", {"lr": 0.05, **kwargs}, label, uses_sqrt=False)


CASES = [
    _sgd("plain"),
    _sgd("decay", weight_decay=0.1),
    _sgd("maximize", maximize=True),
    _sgd("momentum", momentum=0.9),
    _sgd("dampening", momentum=0.9, dampening=0.3, weight_decay=0.01),
    _sgd("nesterov", momentum=0.9, nesterov=True),
    _sgd("nesterov-decay-maximize", momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True),
    Case("Adagrad", {"lr": 0.05}, "plain"),
    Case("Adagrad", {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.1}, "all"),
    Case("Adagrad", {"lr": 0.05, "eps": 1e-3, "maximize": True}, "maximize"),
    Case("RMSprop", {"lr": 0.01}, "plain"),
    Case("RMSprop", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}, "decay-maximize"),
    Case("RMSprop", {"lr": 0.01, "momentum": 0.9}, "momentum"),
    Case("RMSprop", {"lr": 0.01, "centered": True, "alpha": 0.9}, "centered"),
    # eps this large keeps the centered variance, a difference that may cancel, from deciding everything
    Case("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5, "weight_decay": 0.1, "eps": 0.1}, "all"),
    # a weight of the running mean above one half takes lerp's other branch
    Case("RMSprop", {"lr": 0.01, "centered": True, "alpha": 0.3, "eps": 0.1}, "short-memory"),
    Case("Adam", {"lr": 0.01}, "plain"),
    Case("Adam", {"lr": 0.01, "weight_decay": 0.1}, "decay"),
    Case("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}, "amsgrad-maximize"),
    Case("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1, "eps": 1e-4}, "amsgrad-decay"),
    Case("Adam", {"lr": 0.01, "betas": (0.3, 0.6)}, "short-memory"),
    Case("Adam", {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1}, "decoupled"),
    Case("AdamW", {"lr": 0.01}, "plain"),
    Case("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True, "maximize": True}, "all"),
    Case("Adadelta", {"lr": 0.5}, "plain"),
    Case("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1, "maximize": True}, "all"),
    Case("Adamax", {"lr": 0.01}, "plain"),
    Case("Adamax", {"lr": 0.01, "betas": (0.4, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}, "all"),
    Case("NAdam", {"lr": 0.01}, "plain"),
    Case("NAdam", {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.1, "maximize": True}, "decay-maximize"),
    Case("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}, "decoupled"),
    Case("RAdam", {"lr": 0.01}, "plain"),
    Case("RAdam", {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True}, "decay-maximize"),
    Case("RAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}, "decoupled"),
    Case("ASGD", {"lr": 0.01}, "plain", uses_sqrt=False),
    # t0 below the number of steps: averaging begins
    Case("ASGD", {"lr": 0.01, "lambd": 0.01, "t0": 3, "weight_decay": 0.1, "maximize": True}, "all", uses_sqrt=False),
    Case("Rprop", {"lr": 0.01}, "plain", uses_sqrt=False),
    Case(
        "Rprop", {"lr": 0.01, "etas": (0.4, 1.5), "step_sizes": (1e-3, 0.1), "maximize": True}, "all", uses_sqrt=False
    ),
]

# The seven rules that the tutorials teach, as they are usually set.
TUTORIAL_RULES = {
    "gradient descent": Case("SGD", {"lr": 0.1}, uses_sqrt=False),
    "momentum": Case("SGD", {"lr": 0.01, "momentum": 0.9}, uses_sqrt=False),
    "Nesterov": Case("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}, uses_sqrt=False),
    "AdaGrad": Case("Adagrad", {"lr": 0.1, "eps": 1e-8}),
    "RMSProp": Case("RMSprop", {"lr": 0.1, "alpha": 0.9, "eps": 1e-8}),
    "Adam": Case("Adam", {"lr": 0.1}),
    "AdamW": Case("AdamW", {"lr": 0.1}),
}
