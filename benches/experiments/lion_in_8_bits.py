"""Where Lion with 8-bit states ends, beside Lion with float32 states: on the quadratic of tests/trainings.py.

    python benches/experiments/lion_in_8_bits.py

Prints how far the final loss is from float32's, as the mean of three seeds, for rates and lengths of training, with
bitsandbytes' Lion8bit too where that is installed (`make env PEERS=1`). Takes minutes. docs/experiments.md has what
it gave.
"""

import argparse
import importlib
import importlib.util
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from oxistep import zoo
from oxistep.bench.tables import plain, show

ROOT = Path(__file__).resolve().parents[2]
CELLS = [(lr, steps) for lr in (0.003, 0.01) for steps in (300, 600, 1000)] + [(0.02, 300)]


def quadratic() -> Any:
    spec = importlib.util.spec_from_file_location("trainings", ROOT / "tests" / "trainings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.quadratic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="only the first so many")
    options = parser.parse_args()
    kinds: dict[str, Any] = {
        "8-bit states": partial(zoo.Lion, state_dtype="8bit"),
        "bfloat16 states": partial(zoo.Lion, state_dtype=torch.bfloat16),
    }
    if importlib.util.find_spec("bitsandbytes") is not None:
        kinds["Lion8bit"] = partial(importlib.import_module("bitsandbytes.optim").Lion8bit, min_8bit_size=4096)
    train = quadratic()
    table = plain("rate, steps", "float32", *kinds)
    for lr, steps in CELLS[: options.cells]:

        def end(make: Any, lr: float = lr, steps: int = steps) -> float:
            return statistics.mean(train(partial(make, lr=lr), seed, steps) for seed in range(options.seeds))

        wanted = end(zoo.Lion)
        table.add_row(f"{lr}, {steps}", f"{wanted:.4f}", *(f"{end(make) / wanted - 1:+.1%}" for make in kinds.values()))
    show(Console(highlight=False), table)


if __name__ == "__main__":
    main()
