"""The recipes of docs/engines.md, run as they stand there: with our classes, and with torch's for comparison."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import oxistep
import oxistep.optim
from test_docs import blocks

# From whose checkpoint to whose optimizer.
DIRECTIONS = {
    "ours to ours": (oxistep.optim, oxistep.optim),
    "torch's to ours": (torch.optim, oxistep.optim),
    "ours to torch's": (oxistep.optim, torch.optim),
}

# What the recipes take as given.
_GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [tuple(torch.randn(4, n, generator=_GENERATOR) for n in (4, 1)) for _ in range(8)]


def model() -> torch.nn.Sequential:
    """Four parameters, the same at every call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def native(steps: int) -> list[list[str]]:
    """What `watched` tells of so many steps of that model, if all is native."""
    return [["native"] * 4] * steps


PAGE = Path(__file__).parents[1] / "docs" / "engines.md"


def code(heading: str) -> str:
    """The Python of the section with that heading."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = blocks(section, "python")
    assert found, f"no code under {heading!r}"
    return "\n".join(block.code for block in found)


def follow(heading: str, optim: ModuleType, **names: Any) -> dict[str, Any]:
    """Runs a recipe whose `optim` is this module, and returns what it defines. `names` are what it takes as given."""
    namespace = {"__name__": "page", "torch": torch, "oxistep": oxistep, "optim": optim, **names}
    exec(compile(code(heading), heading, "exec"), namespace)
    return namespace


@contextlib.contextmanager
def watched() -> Iterator[list[list[str]]]:
    """For every step of one of our optimizers, whoever takes it: the paths of its parameters that have a gradient.

    They are looked at after the step: the closure that some trainers pass makes the gradients in it.
    """
    seen: list[list[str]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if type(optimizer).__module__.startswith("oxistep."):
            seen.append([row.path for row in oxistep.explain(optimizer) if row.path != "skipped"])

    handle = register_optimizer_step_post_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
