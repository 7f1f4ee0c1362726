"""Rules that users write beside compiled ones, and beside the same written with torch's operations.

    oxistep bench rules

Contestants take turns, and are compared within each round. Three steps of each are compared before the clock runs. The
ceiling is the native probe: a loop over as many arrays, with next to no arithmetic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import oxistep
import oxistep.optim
from oxistep import rules

from .._options import count, positive
from . import results
from .beside import show_beside, show_floors
from .paired import Step, contestant, measure
from .probe import native_probe

Parameters = list[torch.nn.Parameter]
RULE, COMPILED, LOOP, FOREACH, PROBE = "rule", "compiled", "for-loop", "foreach", "probe"
B1, B2, EPS, LR, WARM_UP = 0.9, 0.999, 1e-8, 1e-3, 3


@oxistep.rule
def adam(p: Any, g: Any, s: Any, lr: float = LR, beta1: float = B1, beta2: float = B2, eps: float = EPS) -> Any:
    """As torch writes Adam."""
    s.exp_avg = rules.lerp(s.exp_avg, g, 1 - beta1)
    s.exp_avg_sq = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
    root = rules.sqrt(s.exp_avg_sq) / rules.sqrt(1 - beta2**s.step) + eps
    return p - lr / (1 - beta1**s.step) * s.exp_avg / root


@oxistep.rule
def momentum(p: Any, g: Any, s: Any, lr: float = LR, beta: float = B1) -> Any:
    """Gradient descent with a running sum of gradients."""
    s.v = beta * s.v + g
    return p - lr * s.v


@oxistep.rule
def lion(p: Any, g: Any, s: Any, lr: float = LR, beta1: float = B1, beta2: float = 0.99) -> Any:
    """The sign of a mean, and another mean."""
    direction = rules.sign(beta1 * s.exp_avg + (1 - beta1) * g)
    s.exp_avg = beta2 * s.exp_avg + (1 - beta2) * g
    return p - lr * direction


@oxistep.rule
def bounds(p: Any, g: Any, s: Any, lr: float = LR) -> Any:
    """Four operations, of which no two are one instruction of the kernels."""
    s.highest = rules.maximum(s.highest, g)
    s.lowest = rules.minimum(s.lowest, g)
    return rules.maximum(rules.minimum(p, s.highest), s.lowest)


@oxistep.rule
def lamb(p: Any, g: Any, s: Any, lr: float = LR, beta: float = B1) -> Any:
    """A mean of gradients, as long as the parameter: two norms of each tensor."""
    s.m = rules.lerp(s.m, g, 1 - beta)
    return p - lr * rules.norm(p) / rules.norm(s.m) * s.m


def adam_loop(ps: Parameters, states: list[list[Tensor]], t: int) -> None:
    for p, (m, v) in zip(ps, states, strict=True):
        g = _grad(p)
        m.lerp_(g, 1 - B1)
        v.mul_(B2).addcmul_(g, g, value=1 - B2)
        p.addcdiv_(m, v.sqrt().div_((1 - B2**t) ** 0.5).add_(EPS), value=-LR / (1 - B1**t))


def adam_foreach(ps: Parameters, states: list[list[Tensor]], t: int) -> None:
    gs, ms, vs = [_grad(p) for p in ps], [m for m, _ in states], [v for _, v in states]
    torch._foreach_lerp_(ms, gs, 1 - B1)
    torch._foreach_mul_(vs, B2)
    torch._foreach_addcmul_(vs, gs, gs, value=1 - B2)
    roots = torch._foreach_sqrt(vs)
    torch._foreach_div_(roots, (1 - B2**t) ** 0.5)
    torch._foreach_add_(roots, EPS)
    torch._foreach_addcdiv_(list(ps), ms, roots, value=-LR / (1 - B1**t))


def momentum_loop(ps: Parameters, states: list[list[Tensor]], t: int) -> None:
    for p, (v,) in zip(ps, states, strict=True):
        v.mul_(B1).add_(_grad(p))
        p.add_(v, alpha=-LR)


def momentum_foreach(ps: Parameters, states: list[list[Tensor]], t: int) -> None:
    vs = [v for (v,) in states]
    torch._foreach_mul_(vs, B1)
    torch._foreach_add_(vs, [_grad(p) for p in ps])
    torch._foreach_add_(list(ps), vs, alpha=-LR)


def _grad(p: torch.nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


ByHand = Callable[[Parameters, list[list[Tensor]], int], None]


@dataclass(frozen=True)
class Cell:
    """One rule, those it is compared with, and what is asked of it."""

    rule: Any
    states: int
    compiled: Callable[[Parameters], Any] | None = None
    loop: ByHand | None = None
    foreach: ByHand | None = None
    passes: float = 1.0
    """The time of its passes over that of the probe."""


RULES = {
    "Adam": Cell(adam, 2, lambda ps: oxistep.optim.Adam(ps, lr=LR), adam_loop, adam_foreach),
    "momentum": Cell(
        momentum, 1, lambda ps: oxistep.optim.SGD(ps, lr=LR, momentum=B1), momentum_loop, momentum_foreach
    ),
    "Lion": Cell(lion, 1),
    "plain operations": Cell(bounds, 2),
    # reads three streams for the norms, then three and writes two; the probe reads three and writes two
    "LAMB-like": Cell(lamb, 1, passes=8 / 5),
}
SMALL = {"two scalars": [(), ()], "7 floats": [(7,)], "2,000 x 64": [(64,)] * 2000}
# (workload, rule, against whom): the time of the other over that of the rule. "torch": the faster of its two ways.
FLOORS: dict[tuple[str, str, str], float] = {
    **{("flat", name, COMPILED): 0.9 for name in ("Adam", "momentum")},
    **{("1 Mi", name, COMPILED): 0.85 for name in ("Adam", "momentum")},
    ("flat", "Lion", PROBE): 0.9,
    ("flat", "plain operations", PROBE): 0.65,
    ("flat", "LAMB-like", PROBE): 0.8,
    ("2,000 x 64", "Adam", COMPILED): 0.5,
    ("flat", "Adam", "torch"): 4.0,
    ("flat", "momentum", "torch"): 1.6,
    ("2,000 x 64", "Adam", "torch"): 15.0,
    ("two scalars", "Adam", "torch"): 5.0,
}
AVX2 = {("flat", COMPILED): 0.85, ("1 Mi", COMPILED): 0.8}
"""Floors where AVX-512 is not in use."""


def floor(workload: str, name: str, against: str) -> float | None:
    """What is asked of a cell at the SIMD level in use."""
    asked = FLOORS.get((workload, name, against))
    if asked is not None and oxistep.cpu_features()["simd"] != "avx512":
        return AVX2.get((workload, against), asked)
    return asked


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype | None = None) -> Parameters:
    """The same numbers each time, drawn in float32, then of this dtype."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return made


def by_hand(update: ByHand, ps: Parameters, states: int) -> Step:
    kept = [[torch.zeros_like(p) for _ in range(states)] for p in ps]
    t = 0

    @torch.no_grad()
    def step() -> None:
        nonlocal t
        t += 1
        update(ps, kept, t)

    return step


def contestants(cell: Cell, shapes: list[tuple[int, ...]]) -> dict[str, Step]:
    """A step of each; they start alike, and must have come to the same after some steps."""
    made: dict[str, tuple[Parameters, Step]] = {}

    def add(name: str, make: Callable[[Parameters], Step]) -> None:
        ps = parameters(shapes)
        made[name] = ps, make(ps)

    add(RULE, lambda ps: cell.rule(ps).step)
    if cell.compiled is not None:
        compiled = cell.compiled
        add(COMPILED, lambda ps: compiled(ps).step)
    for name, update in ((LOOP, cell.loop), (FOREACH, cell.foreach)):
        if update is not None:
            hand = update
            add(name, lambda ps, hand=hand: by_hand(hand, ps, cell.states))  # type: ignore[misc]
    for _, step in made.values():
        for _ in range(WARM_UP):
            step()
    ours, _ = made[RULE]
    for name, (theirs, _) in made.items():
        for a, b in zip(ours, theirs, strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                raise SystemExit(f"the rule and {name} came to different parameters")
    return {name: step for name, (_, step) in made.items()}


def measured(workload: str, name: str, shapes: list[tuple[int, ...]], seconds: float) -> list[dict[str, Any]]:
    """One row for each rival."""
    cell = RULES[name]
    steps = contestants(cell, shapes)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    if workload == "flat" and (probe := native_probe(4 * elements, cell.states)) is not None:
        steps[PROBE] = probe[0]
        moved = (3 + 2 * cell.states) * 4 * elements / probe[1] * cell.passes
    paired = measure({n: contestant(step) for n, step in steps.items()}, seconds, lead_in=elements < 2**22)
    rows = []
    for other in [n for n in paired.nanoseconds if n != RULE]:
        ratio = asdict(paired.ratio(other, RULE))
        other_ns = paired.median(other)
        if other == PROBE:  # which may be smaller than the rule
            ratio, other_ns = {key: value * moved for key, value in ratio.items()}, other_ns * moved
        rows.append({"workload": workload, "rule": name, "against": other, "rule_ns": paired.median(RULE),
                     "other_ns": other_ns, "floor": floor(workload, name, other), **ratio})  # fmt: skip
    torchs = [row for row in rows if row["against"] in (LOOP, FOREACH)]
    if torchs and (asked := floor(workload, name, "torch")) is not None:
        min(torchs, key=lambda row: float(row["median"]))["floor"] = asked
    return rows


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "rules")
    parser.add_argument("--rule", action="append", choices=RULES, metavar="RULE", help=f"only {', '.join(RULES)}")
    parser.add_argument("--flat", type=count, default=2**27, help="elements of the large tensor (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=5.0, help="for each cell (default: %(default)s)")
    parser.add_argument("--threads", type=count, help="torch.set_num_threads; default: torch's own")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    workloads: dict[str, list[tuple[int, ...]]] = {**SMALL, "1 Mi": [(2**20,)], "flat": [(options.flat,)]}  # type: ignore[dict-item]
    rows = []
    for workload, shapes in workloads.items():
        for name in options.rule or RULES:
            rows += measured(workload, name, shapes, options.seconds)
    out = Console(highlight=False, soft_wrap=True)
    show_beside(out, rows, {"workload": itemgetter("workload"), "rule": itemgetter("rule")}, "rule_ns")
    show_floors(out, rows, lambda row: f"{row['rule']} on {row['workload']}")
    if options.into:
        results.add(options.into, "rules", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
