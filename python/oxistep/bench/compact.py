"""Fewer bytes a parameter: AdamW with each setting beside float32, and beside packages with formats of their own.

    oxistep bench compact

Speed: contestants take turns, and are compared within each round. Each one's first steps were compared with float32's
before the clock runs. Accuracy: updates beside those of Adam in float64, for gradients that are hard to keep. Packages:
bitsandbytes' AdamW8bit (on the CPU it steps with torch's operations) and pytorch_optimizer's FlashAdamW (the format of
FlashOptim); one that is missing is named with the reason, and left out. The ceiling is the native probe: a loop over
float32 arrays with next to no arithmetic, brought to the bytes that the setting reads and writes.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console

import oxistep
import oxistep.optim

from .._options import count, positive
from . import results
from .beside import show_beside, show_floors
from .compact_accuracy import GRADIENTS, errors
from .packages import PACKAGES
from .paired import Step, contestant, measure
from .probe import native_probe
from .rules import PROBE, Parameters, parameters
from .tables import plain, show

LR, WARM_UP = 1e-3, 3
FLOAT32 = "oxistep, float32"
TORCH = {"torch, for-loop": {"foreach": False}, "torch, fused": {"fused": True}}
"""torch's AdamW on float32 parameters, which is what a user of torch.optim has."""
OTHERS = 4.0
"""What is asked beside packages."""
LARGE = 2**24
"""From so many elements on a step waits for memory, and the floors beside float32 are asked."""
ERROR = 0.3
"""How far first steps may be from float32's, as a share: what a bfloat16 weight cannot show is in it."""


@dataclass(frozen=True)
class Setting:
    """One way to keep fewer bytes, and what is asked of it."""

    dtype: torch.dtype
    arguments: dict[str, Any]
    floors: tuple[float, float] | None = None
    """The time of our float32 AdamW over its own on a large tensor, with AVX-512 and without."""
    of_probe: float | None = None
    """The time of the probe over its own on a large tensor."""
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Packages whose format is the nearest, and what they are given."""

    @property
    def weights(self) -> str:
        """How weights are kept, in a word for tables."""
        return str(self.arguments.get("weights", str(self.dtype).removeprefix("torch.")))

    @property
    def states(self) -> str:
        """How states are kept."""
        return str(self.arguments.get("state_dtype", self.dtype)).removeprefix("torch.")


BF16, CODES = torch.bfloat16, {"state_dtype": "8bit"}
SETTINGS = {
    'state_dtype="8bit"': Setting(
        torch.float32, CODES, (1.0, 0.8), beside={"bitsandbytes": {}, "pytorch_optimizer": {}}
    ),
    "state_dtype=torch.bfloat16": Setting(torch.float32, {"state_dtype": BF16}, (1.15, 1.05)),
    'weights="residual16", state_dtype=torch.float32': Setting(
        BF16, {"weights": "residual16", "state_dtype": torch.float32}, (1.25, 1.25)
    ),
    'weights="residual16", state_dtype=torch.bfloat16': Setting(
        BF16, {"weights": "residual16", "state_dtype": BF16}, (1.25, 1.2)
    ),
    'weights="residual16", state_dtype="8bit"': Setting(
        BF16, {"weights": "residual16", **CODES}, (0.95, 0.7), beside={"pytorch_optimizer": {"master_weight_bits": 32}}
    ),
    'weights="residual8", state_dtype="8bit"': Setting(
        BF16, {"weights": "residual8", **CODES}, beside={"pytorch_optimizer": {"master_weight_bits": 24}}
    ),
    'weights="stochastic", state_dtype="8bit"': Setting(BF16, {"weights": "stochastic", **CODES}),
    'weights="master", state_dtype=torch.float32': Setting(BF16, {"weights": "master", "state_dtype": torch.float32}),
    "all bfloat16": Setting(BF16, {}, (1.4, 1.15), of_probe=0.65),
}

Make = Callable[[Parameters], Any]


def makers(setting: Setting, lr: float = LR) -> dict[str, tuple[Make, torch.dtype]]:
    """Who takes part, ours first, and on parameters of which type."""

    def of(cls: Any, arguments: dict[str, Any]) -> Make:
        return partial(cls, lr=lr, weight_decay=0.01, **arguments)

    found: dict[str, tuple[Make, torch.dtype]] = {
        "oxistep": (of(oxistep.optim.AdamW, setting.arguments), setting.dtype),
        FLOAT32: (of(oxistep.optim.AdamW, {}), torch.float32),
    }
    for name, arguments in TORCH.items():
        found[name] = of(torch.optim.AdamW, arguments), torch.float32
    for package, arguments in setting.beside.items():
        if PACKAGES[package].missing() is None:
            found[package] = of(PACKAGES[package].load(), arguments), setting.dtype
    return found


def check(name: str, elements: int = 2**14) -> None:
    """An exception unless each contestant moves parameters as float32 does, on a tensor that is kept in 8 bits."""
    setting = SETTINGS[name]
    moved: dict[str, torch.Tensor] = {}
    for who, (make, dtype) in makers(setting, lr=10 * LR).items():  # so that bfloat16 shows it
        (p,) = ps = parameters([(elements,)], dtype)
        start = p.detach().float().clone()
        optimizer = make(ps)
        for _ in range(8):
            optimizer.step()
        moved[who] = p.detach().float() - start
    wanted = moved[FLOAT32]
    for who, move in moved.items():
        if not torch.dist(move, wanted) <= ERROR * torch.linalg.vector_norm(wanted):
            raise SystemExit(f"{name}: {who} moves parameters otherwise than float32 does")


def moved(optimizer: Any) -> int:
    """The bytes that a step of ours reads and writes."""
    (p,) = optimizer.param_groups[0]["params"]
    written = [p, *(state for state in optimizer.state[p].values() if state.dim() > 0)]
    return 2 * sum(int(tensor.nbytes) for tensor in written) + int(p.grad.nbytes)


def contestants(setting: Setting, elements: int) -> tuple[dict[str, Step], float]:
    """A step of each; those on parameters of one type share parameters and gradients. The probe is one of them on a
    large tensor, and how many times its bytes ours moves is the second."""
    shared: dict[torch.dtype, Parameters] = {}
    steps: dict[str, Step] = {}
    bytes_of_ours = 0
    for who, (make, dtype) in makers(setting).items():
        if dtype not in shared:
            shared[dtype] = parameters([(elements,)], dtype)
        optimizer = make(shared[dtype])
        steps[who] = optimizer.step
        for _ in range(WARM_UP):
            optimizer.step()
        bytes_of_ours = moved(optimizer) if who == "oxistep" else bytes_of_ours
    probe = native_probe(4 * elements, 2) if elements >= LARGE else None
    if probe is None:
        return steps, 1.0
    steps[PROBE] = probe[0]
    return steps, bytes_of_ours / probe[1]


def floor(setting: Setting, against: str, large: bool) -> float | None:
    if against in setting.beside:
        return OTHERS
    if against == PROBE:
        return setting.of_probe
    if against != FLOAT32 or setting.floors is None or not large:
        return None
    return setting.floors[oxistep.cpu_features()["simd"] != "avx512"]


def speed(name: str, elements: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each that is not ours."""
    setting = SETTINGS[name]
    steps, share = contestants(setting, elements)
    paired = measure({n: contestant(step) for n, step in steps.items()}, seconds, lead_in=elements < 2**22)
    rows = [
        {
            "setting": name,
            "elements": elements,
            "dtype": str(setting.dtype).removeprefix("torch."),
            "against": other,
            "own_ns": paired.median("oxistep"),
            "other_ns": paired.median(other),
            "floor": floor(setting, other, elements >= LARGE),
            **asdict(paired.ratio(other, "oxistep")),
        }
        for other in steps
        if other != "oxistep"
    ]
    for row in rows:
        if row["against"] == PROBE:  # which reads and writes float32 arrays
            row.update({key: share * row[key] for key in ("other_ns", "median", "q1", "q3")})
    return rows


def accuracy(steps: int) -> list[dict[str, Any]]:
    """One row for each format and kind of gradient."""
    formats: dict[str, Make] = {
        'state_dtype="8bit"': lambda ps: oxistep.optim.Adam(ps, lr=LR, state_dtype="8bit"),
        "state_dtype=torch.bfloat16": lambda ps: oxistep.optim.Adam(ps, lr=LR, state_dtype=torch.bfloat16),
    }
    for name, package in PACKAGES.items():
        if package.missing() is None:
            cls: Any = package.load()
            formats[name] = partial(cls, lr=LR, weight_decay=0.0)
    rows = []
    for gradients in GRADIENTS:
        for name, (error, largest) in errors(formats, gradients, steps, LR).items():
            rows.append({"format": name, "gradients": gradients, "error": error, "largest": largest})
    return rows


def show_speed(out: Console, rows: list[dict[str, Any]]) -> None:
    """A table for each number of elements."""
    labels = {
        "weights": lambda row: SETTINGS[row["setting"]].weights,
        "states": lambda row: SETTINGS[row["setting"]].states,
    }
    heads = {FLOAT32: "float32", **{name: package.cls for name, package in PACKAGES.items()}}
    out.print("AdamW, by how weights and states are kept, beside AdamW in float32 and beside packages:")

    def head(row: dict[str, Any]) -> str:
        return heads.get(row["against"], str(row["against"]).replace(",", ""))

    for elements in dict.fromkeys(row["elements"] for row in rows):
        found = [row for row in rows if row["elements"] == elements]
        show_beside(out, found, labels, "own_ns", rival=head, title=f"{elements:,} elements")
    show_floors(out, rows, lambda row: f"{row['setting']}, {row['elements']:,} elements")


def show_accuracy(out: Console, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["format"] for row in rows))
    heads = (name.removeprefix("state_dtype=").removeprefix("torch.").strip('"') for name in names)
    table = plain("gradients", *(PACKAGES[h].cls if h in PACKAGES else h for h in heads))
    out.print("Updates beside those of Adam in float64: mean error; the largest over float64's largest.")
    for gradients in GRADIENTS:
        found = {row["format"]: row for row in rows if row["gradients"] == gradients}
        table.add_row(gradients, *(f"{found[n]['error']:.1%}; {found[n]['largest']:.3g} x" for n in names))
    show(out, table)


def arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = results.command(__doc__, program, "compact")
    parser.add_argument("--setting", action="append", choices=SETTINGS, metavar="SETTING",
                        help=f"only {'; '.join(SETTINGS)} (repeatable)")  # fmt: skip
    parser.add_argument(
        "--elements", action="append", type=count, help="of the tensor (repeatable; default: 64 Ki, 1 Mi, 128 Mi)"
    )
    parser.add_argument("--seconds", type=positive, default=5.0, help="for each cell (default: %(default)s)")
    parser.add_argument("--steps", type=count, default=1500, help="of the accuracy (default: %(default)s)")
    parser.add_argument("--only", choices=("speed", "accuracy"), help="one of the two")
    parser.add_argument("--quick", action="store_true", help="1 Mi elements, 0.3 seconds a cell, 200 steps")
    parser.add_argument("--threads", type=count, help="torch.set_num_threads; default: torch's own")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    options = arguments(argv, program)
    if options.threads:
        torch.set_num_threads(options.threads)
    for package in PACKAGES.values():
        if reason := package.missing():
            print(f"left out: {reason}", file=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {}
    out = Console(highlight=False, soft_wrap=True)
    if options.only != "accuracy":
        found["speed"] = []
        for elements in options.elements or ([2**20] if options.quick else [2**16, 2**20, 2**27]):
            for name in options.setting or SETTINGS:
                check(name)
                found["speed"] += speed(name, elements, min(options.seconds, 0.3) if options.quick else options.seconds)
                gc.collect()  # optimizers of torch refer to themselves
        show_speed(out, found["speed"])
    if options.only != "speed":
        found["accuracy"] = accuracy(min(options.steps, 200) if options.quick else options.steps)
        show_accuracy(out, found["accuracy"])
    if options.into:
        results.add(options.into, "compact", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
