"""Steps worth failing in: each scenario makes an optimizer that stands before a step, the same at every call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import oxistep.optim
from oxistep import zoo
from scenarios import NATIVE, draw, make, params_of, set_gradients
from seeing import Seeing
from snapshots import snapshot

SHAPES = [(4, 3), (5,), (), (7, 2)]


@dataclass
class Scenario:
    """An optimizer about to step."""

    optimizer: torch.optim.Optimizer
    ready: Callable[[], None]  # sets the gradients of the step
    left: list[torch.Tensor]  # those that torch updates
    changes_gradients: bool = False
    changed_by_hand: list[torch.Tensor] = field(default_factory=list)  # since the last step

    @property
    def ours(self) -> list[torch.Tensor]:
        """The native parameters."""
        return [p for p in params_of(self.optimizer) if not any(p is q for q in self.left)]

    def snapshot(self) -> dict[str, Any]:
        """What a step that raises must leave alone.

        Digits beside a parameter that was changed by hand belong to what it was before. A step drops them before it is
        sure to be taken, so they are left out; that the next step is the same with or without a failure before it
        is asserted beside this.
        """
        ours = self.ours
        seen = snapshot(self.optimizer, ours, not self.changes_gradients)
        for p, state in zip(ours, seen["states"], strict=True):
            if any(p is q for q in self.changed_by_hand):
                for name in {"residual", "compensation"} & set(state):
                    state[name] = "dropped or not"
        return seen


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


def half_states():
    params = draw(*SHAPES, dtype=torch.bfloat16)
    optimizer = grouped("Adam", params, state_dtype=torch.float32)
    set_gradients(params[:1], 0)
    optimizer.step()
    return Scenario(optimizer, lambda: set_gradients(params, 50), [])


@oxistep.rule
def accumulating(p, g, s, lr=0.1):
    s.m = 0.9 * s.m + 0.1 * g
    s.v = s.v + g * g
    return p - lr * s.m / (s.v**0.5 + 1e-8)


FEWER_BYTES = [(33, 130), (5,), ()]  # the first is kept in codes, its last block is not full


def compact(make_one, steps, frozen_until_now=(), edited=False, **settings):
    """States in fewer bytes, digits beside bfloat16 weights, or both."""
    params = draw(*FEWER_BYTES, dtype=torch.bfloat16 if "weights" in settings else torch.float32)
    optimizer = make_one([{"params": params[:2]}, {"params": params[2:], "lr": 0.002}], lr=0.01, **settings)
    for k in range(steps):
        set_gradients([p for i, p in enumerate(params) if i not in frozen_until_now], k)
        optimizer.step()
    old = params[2].detach()  # its memory must not become a gradient's: where such a step ends would depend on that
    if edited:
        with torch.no_grad():
            params[0].mul_(2.0)
            params[2].data = old + 1.0
    return Scenario(
        optimizer,
        lambda _old=old: set_gradients(params, 50),
        [],
        changed_by_hand=[params[0], params[2]] if edited else [],
    )


def compact_and_scaled(steps, **settings):
    scenario = compact(oxistep.optim.AdamW, steps, fused=True, **settings)
    scenario.optimizer.grad_scale, scenario.optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    scenario.changes_gradients = True
    return scenario


MODES = ("stochastic", "kahan", "residual8", "residual16", "master")
KEPT = {
    "8-bit states": {"state_dtype": "8bit"},
    "bfloat16 states": {"state_dtype": torch.bfloat16},
    **{mode: {"weights": mode, "state_dtype": torch.float32} for mode in MODES},
    "residual8, 8-bit states": {"weights": "residual8", "state_dtype": "8bit"},
    "master, bfloat16 states": {"weights": "master", "state_dtype": torch.bfloat16},
}
SOME_KEPT = {kept: KEPT[kept] for kept in ("8-bit states", "stochastic", "residual8, 8-bit states")}
AdamW = oxistep.optim.AdamW

COMPACT = {
    **{
        f"{name}, {kept}, {step} step": partial(compact, make_one, steps, **settings)
        for name, make_one, of in (
            ("AdamW", AdamW, KEPT),  # has loops of its own
            ("SGD", partial(oxistep.optim.SGD, momentum=0.9), SOME_KEPT),  # a counter where something is drawn
            ("Lion", zoo.Lion, SOME_KEPT),
        )
        for kept, settings in of.items()
        for step, steps in (("first", 0), ("third", 2))
    },
    **{
        f"{name}, 8-bit states, third step": partial(compact, make_one, 2, state_dtype="8bit")
        for name, make_one in (
            ("Adadelta", oxistep.optim.Adadelta),  # one of its states is bfloat16
            ("RMSprop", partial(oxistep.optim.RMSprop, centered=True, momentum=0.9)),  # some stay in float32
            ("ASGD", oxistep.optim.ASGD),  # counters of its own
            ("LAMB", zoo.LAMB),  # looks at norms first
            ("a rule", accumulating.torch),
        )
    },
    **{f"{mode}, changed by hand": partial(compact, AdamW, 2, edited=True, weights=mode) for mode in MODES},
    **{f"{kept}, unfrozen late": partial(compact, AdamW, 2, [0], **settings) for kept, settings in SOME_KEPT.items()},
    **{
        f"{kept}, clipping and averages": partial(compact, AdamW, 2, ema=0.9, max_grad_norm=0.1, **settings)
        for kept, settings in SOME_KEPT.items()
    },
    **{f"{kept}, GradScaler": partial(compact_and_scaled, 2, **settings) for kept, settings in SOME_KEPT.items()},
}

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
    "state_dtype": half_states,
    "averages, first step": lambda: stepped("AdamW", 0, ema=0.9),
    "averages, fourth step": lambda: stepped("AdamW", 3, ema=0.9),
    "averages, part torch's": lambda: mixed(2, ema=0.9),
    **COMPACT,
}
