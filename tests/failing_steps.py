"""Steps worth failing in: each scenario makes an optimizer that stands before a step, the same at every call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import oxistep.optim
from scenarios import NATIVE, draw, make, params_of, set_gradients
from seeing import Seeing

SHAPES = [(4, 3), (5,), (), (7, 2)]


@dataclass
class Scenario:
    """An optimizer about to step."""

    optimizer: torch.optim.Optimizer
    ready: Callable[[], None]  # sets the gradients of the step
    left: list[torch.Tensor]  # those that torch updates
    changes_gradients: bool = False

    @property
    def ours(self) -> list[torch.Tensor]:
        """The native parameters."""
        return [p for p in params_of(self.optimizer) if not any(p is q for q in self.left)]


class Plain(Seeing, torch.Tensor):
    """A subclass that is torch's to update."""


def grouped(name, params, **kwargs):
    groups = [{"params": params[:2], "lr": NATIVE.get(name, {}).get("lr", 0.01) / 2}, {"params": params[2:]}]
    return (make if name in NATIVE else plainly)(oxistep.optim, name, groups, **kwargs)


def plainly(optim, name, params, **kwargs):
    return getattr(optim, name)(params, **kwargs)


def stepped(name, steps, **kwargs):
    params = draw(*SHAPES)
    optimizer = grouped(name, params, **kwargs)

    def ready():
        set_gradients(params, 50)

    for k in range(steps):
        set_gradients(params, k)
        optimizer.step()
    return Scenario(optimizer, ready, [])


def counting_in_integers():
    scenario = stepped("Adam", 1)
    for state in scenario.optimizer.state.values():
        state["step"] = state["step"].long()
    for _ in range(2):
        scenario.ready()
        scenario.optimizer.step()
    return scenario


def mixed(steps, **kwargs):
    params = [*draw((4, 3), (5,)), draw((3,), seed=1)[0].detach().as_subclass(Plain).requires_grad_()]
    optimizer = oxistep.optim.Adam([{"params": [params[0], params[2]]}, {"params": [params[1]]}], lr=0.1, **kwargs)

    def ready():
        set_gradients(params[:2], 50)
        params[2].grad = torch.ones(3).as_subclass(Plain)

    for _ in range(steps):
        ready()
        optimizer.step()
    return Scenario(optimizer, ready, [params[2]])


def strided():
    base = torch.arange(80.0).reshape(8, 10)
    params = [
        base.clone()[::2, ::3].requires_grad_(),
        base.clone().t().requires_grad_(),
        torch.ones(3).requires_grad_(),
    ]
    optimizer = oxistep.optim.RMSprop(params, lr=0.1, momentum=0.5, centered=True)

    def ready():
        set_gradients(params, 50)

    ready()
    optimizer.step()
    return Scenario(optimizer, ready, [])


def sparse(name, steps, **kwargs):
    params = draw((6, 3), (4, 2))
    optimizer = getattr(oxistep.optim, name)(params, lr=0.1, **kwargs)

    def ready():
        for k, p in enumerate(params):
            rows = torch.tensor([[k, 2, k]])
            p.grad = torch.sparse_coo_tensor(rows, torch.ones(3, p.shape[1]), p.shape)

    for _ in range(steps):
        ready()
        optimizer.step()
    return Scenario(optimizer, ready, [])


def unfrozen():
    """A parameter gets its first gradient after others have been stepped."""
    params = draw(*SHAPES)
    optimizer = grouped("Adam", params)
    set_gradients(params[1:], 0)
    optimizer.step()
    return Scenario(optimizer, lambda: set_gradients(params, 50), [])


def buffer_of_none():
    """As old checkpoints have it: an entry in the state that holds None."""
    params = draw(*SHAPES)
    optimizer = grouped("SGD", params)
    optimizer.state[params[1]]["momentum_buffer"] = None
    optimizer.state[params[2]] = {}
    return Scenario(optimizer, lambda: set_gradients(params, 50), [])


def scaled(steps, **kwargs):
    """Inside GradScaler.step: gradients are unscaled in place."""
    scenario = stepped("Adam", steps, fused=True, **kwargs)
    scenario.optimizer.grad_scale, scenario.optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    scenario.changes_gradients = True
    return scenario


def hooked():
    scenario = stepped("AdamW", 3)
    scenario.optimizer.register_step_pre_hook(lambda *_: None)
    scenario.optimizer.register_step_post_hook(lambda *_: None)
    return scenario


def unusual():
    """Numbers that torch is asked about first."""
    scenario = stepped("Adam", 2)
    scenario.optimizer.param_groups[1]["lr"] = 1e30
    return Scenario(scenario.optimizer, scenario.ready, scenario.optimizer.param_groups[1]["params"])


def large():
    """Enough elements for several threads."""
    params = draw((300_000,), (5,))
    optimizer = oxistep.optim.SGD(params, lr=0.1, momentum=0.9)
    set_gradients(params, 0)
    return Scenario(optimizer, lambda: set_gradients(params, 50), [])


SCENARIOS = {
    **{f"{name}, first step": lambda name=name: stepped(name, 0) for name in NATIVE},
    **{f"{name}, fourth step": lambda name=name: stepped(name, 3) for name in NATIVE},
    "int64 counters": counting_in_integers,
    "first step, part torch's": lambda: mixed(0),
    "third step, part torch's": lambda: mixed(2),
    "part torch's, clipping": lambda: mixed(2, max_grad_norm=0.1),
    "strided": strided,
    "SparseAdam, first step": lambda: sparse("SparseAdam", 0),
    "SparseAdam, third step": lambda: sparse("SparseAdam", 2),
    "Adagrad, sparse": lambda: sparse("Adagrad", 1),
    "SGD, sparse": lambda: sparse("SGD", 1),
    "unfrozen late": unfrozen,
    "a buffer that is None": buffer_of_none,
    "max_grad_norm": lambda: stepped("Adam", 3, max_grad_norm=0.1),
    "skip_nonfinite, first step": lambda: stepped("Adam", 0, skip_nonfinite=True),
    "GradScaler, first step": lambda: scaled(0),
    "GradScaler, third step": lambda: scaled(2),
    "GradScaler and clipping": lambda: scaled(2, max_grad_norm=0.1),
    "hooks": hooked,
    "unusual numbers": unusual,
    "large": large,
    "state_dtype": lambda: half_states(),
    "averages, first step": lambda: stepped("AdamW", 0, ema=0.9),
    "averages, fourth step": lambda: stepped("AdamW", 3, ema=0.9),
    "averages, part torch's": lambda: mixed(2, ema=0.9),
}


def half_states():
    params = draw(*SHAPES, dtype=torch.bfloat16)
    optimizer = grouped("Adam", params, state_dtype=torch.float32)
    set_gradients(params[:1], 0)
    optimizer.step()
    return Scenario(optimizer, lambda: set_gradients(params, 50), [])
