"""What type checkers and editors know of oxistep. Never run: `make types` reads it, against the installed wheel.

A line that must be refused says so with `type: ignore`; both checkers report one that ignores nothing.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable
from types import ModuleType
from typing import Any, assert_type

import numpy as np
import torch
import torch.optim.lr_scheduler

import oxistep
import oxistep.numpy
import oxistep.optim as optim
from oxistep.optim.adam import Adam as AdamOfItsModule
from oxistep.optim.adam import adam
from oxistep.optim.lr_scheduler import StepLR

model = torch.nn.Linear(2, 1)
params = list(model.parameters())

# ---- the classes are ours, wherever they are taken from ----

a_class: type[AdamOfItsModule] = optim.Adam
assert_type(optim.Adam(params), AdamOfItsModule)
assert_type(oxistep.Adam(params), AdamOfItsModule)
assert_type(oxistep.optim.Adam(params), AdamOfItsModule)
torchs: torch.optim.Adam = optim.Adam(params)
a_base: torch.optim.Optimizer = optim.AdamW(params)
ours: optim.Adam = torch.optim.Adam(params)  # type: ignore[assignment]

# ---- constructors: torch's parameters, then ours by name only ----

optim.Adam(params, 1e-3, (0.9, 0.999), 1e-8, 0, False, maximize=True, fused=None, decoupled_weight_decay=True)
optim.Adam([("weight", model.weight), ("bias", model.bias)], lr=torch.tensor(0.1))
optim.AdamW(params, state_dtype=torch.float32, max_grad_norm=1.0, skip_nonfinite=True)
optim.Adam(params, learning_rate=0.1)  # type: ignore[call-arg]
optim.Adam(params, 1e-3, (0.9, 0.999), 1e-8, 0, False, None)  # type: ignore[call-arg]
optim.Adam(params, max_grad_norm="1")  # type: ignore[arg-type]
optim.SGD(params, betas=(0.9, 0.999))  # type: ignore[call-arg]

keywords: list[Callable[[list[torch.nn.Parameter]], object]] = [
    lambda p: optim.ASGD(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Adadelta(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Adafactor(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Adagrad(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Adam(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Adamax(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.AdamW(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.NAdam(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.RAdam(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.RMSprop(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Rprop(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.SGD(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.SparseAdam(p, max_grad_norm=1.0, skip_nonfinite=True, state_dtype=torch.float32),
    lambda p: optim.Muon(p, max_grad_norm=1.0, skip_nonfinite=True),
]
optim.LBFGS(params, max_grad_norm=1.0)  # type: ignore[call-arg]

# ---- steps and what they leave ----

optimizer = optim.AdamW(params, max_grad_norm=1.0)
assert_type(optimizer.last_grad_norm, torch.Tensor | None)
assert_type(optimizer.step(), None)
assert_type(optimizer.step(lambda: 1.0), float)
optimizer.step(1.0)  # type: ignore[call-overload]
assert_type(oxistep.explain(optimizer), oxistep.Explanation)
optimizer.no_such_thing  # type: ignore[attr-defined]  # noqa: B018 - a base class that is Any would have it


class Mine(optim.AdamW):
    def __init__(self, params: list[torch.nn.Parameter], size: int) -> None:
        super().__init__(params, lr=1.0 / size, max_grad_norm=1.0)


assert_type(Mine(params, 4).last_grad_norm, torch.Tensor | None)

# ---- what is torch's is handed on; what is nowhere is nowhere ----

scheduler: torch.optim.lr_scheduler.StepLR = StepLR(optimizer, 1)
another: torch.optim.lr_scheduler.StepLR = optim.lr_scheduler.StepLR(optimizer, 1)
averaged = optim.swa_utils.AveragedModel(model)
assert_type(optim.Optimizer, type[torch.optim.Optimizer])
a_module: ModuleType = optim.functional
a_function: Callable[..., None] = adam
optim.Adamm  # type: ignore[attr-defined]  # noqa: B018
oxistep.Adamm  # type: ignore[attr-defined]  # noqa: B018
optim.Any  # type: ignore[attr-defined]  # noqa: B018

# ---- NumPy ----

w, b = np.zeros(3), np.zeros(())
descent = oxistep.numpy.SGD([w, b], lr=lambda step: 0.1 / (1 + step), momentum=0.9)
descent.step([np.ones(3), None])
descent.step((np.ones(3), np.float64(1.0)))
named = oxistep.numpy.Adam({"w": w, "b": b})
named.step({"w": np.ones(3), "b": None})
grouped = oxistep.numpy.AdamW([{"params": [np.ones((2, 2))]}, {"params": [np.ones(2)], "lr": 0.5}])
grouped.step([[np.ones((2, 2))], [np.ones(2)]])
assert_type(named.state_dict(), dict[str, Any])
oxistep.numpy.Adam([w], weights="master")  # type: ignore[call-arg]
descent.step(1.0)  # type: ignore[arg-type]
descent.no_such_thing  # type: ignore[attr-defined]  # noqa: B018
