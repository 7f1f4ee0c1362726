"""Writes the tables of docs/zoo.md that are measured.

    python docs/zoo_tables.py training           trains with every class and with the package's, some minutes
    python docs/zoo_tables.py speed bench.json   from what `oxistep bench zoo --into bench.json` measured:
                                                 ours beside the fastest of the package's variants

The packages must be installed: timm, pytorch_optimizer, schedulefree, prodigyopt, torch-optimi, adabound, sophia-opt,
adam-atan2-pytorch.
"""

import json
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch

from oxistep import zoo
from oxistep.bench.originals import ORIGINALS

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "zoo.md"
WORKLOADS = ("flat", "GPT-2 small", "2,000 x 64", "two scalars")
LAST = 20  # losses whose mean is where a training ends


class Stepped:
    """An optimizer as the trainings call it, with what a class wants called besides."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0
        if hasattr(optimizer, "train"):
            optimizer.train()

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        if hasattr(self.optimizer, "update_hessian"):
            if self.steps % 10 == 0:
                self.optimizer.update_hessian()
            self.optimizer.step(bs=64)
        else:
            self.optimizer.step()
        self.steps += 1


def end(train, cls, arguments):
    """The mean of the last losses of a training."""

    def make(params, **_):
        return Stepped(cls(params, **arguments))

    return mean(train(SimpleNamespace(Adam=make, AdamW=make))["losses"][-LAST:])


def trainings():
    sys.path.insert(0, str(DOCS.parent / "examples"))
    import digits_mlp
    import small_gpt

    yield "digits", lambda optim: digits_mlp.train(optim, epochs=4)
    yield "GPT", lambda optim: small_gpt.train(optim, steps=100)


def training_rows():
    torch.set_num_threads(1)
    trained = list(trainings())
    yield ["class", "learning rate", *(f"{name}, {whose}" for name, _ in trained for whose in ("oxistep", "package"))]
    for name, original in ORIGINALS.items():
        theirs = original.load()
        arguments = {"lr": original.lr, **original.arguments}
        cells = [f"`{name}`", f"{original.lr:g}"]
        for _, train in trained:
            cells.append(f"{end(train, getattr(zoo, name), arguments):.4f}")
            cells.append("" if theirs is None else f"{end(train, theirs, arguments | original.theirs):.4f}")
        print(*cells, flush=True)
        yield cells


def speed_rows(path):
    rows = json.loads(Path(path).read_text(encoding="utf-8"))["zoo"]
    workloads = [workload for workload in WORKLOADS if any(row["workload"] == workload for row in rows)]
    yield ["class", "package", *workloads, "of the probe"]
    for name, original in ORIGINALS.items():
        mine = [row for row in rows if row["rule"] == name]
        cells = [f"`{name}`", original.pip or original.package]
        for workload in workloads:
            rivals = [row["median"] for row in mine if row["workload"] == workload and row["against"] != "probe"]
            cells.append(f"{min(rivals):.1f}" if rivals else "")
        probes = [row["median"] for row in mine if row["against"] == "probe"]
        yield [*cells, f"{probes[0]:.2f}" if probes else ""]


def table(rows):
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(which, text):
    begin, finish = f"<!-- {which}: begin (docs/zoo_tables.py) -->\n", f"<!-- {which}: end -->"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    _, after = rest.split(finish)
    PAGE.write_text(before + begin + text + finish + after, encoding="utf-8")


def main():
    match sys.argv[1:]:
        case ["training"]:
            write("training", table(training_rows()))
        case ["speed", path]:
            write("speed", table(speed_rows(path)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
