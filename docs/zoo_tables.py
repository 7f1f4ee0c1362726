"""Writes the tables of docs/zoo.md that are measured.

    python docs/zoo_tables.py training           trains with every class and with the package's, some minutes
    python docs/zoo_tables.py speed bench.json   from what `oxistep bench zoo --into bench.json` measured:
                                                 ours beside the fastest of the package's variants; also the last
                                                 column of the table that helps to choose, and what is missed

The packages must be installed: timm, pytorch_optimizer, schedulefree, prodigyopt, torch-optimi, adabound, sophia-opt,
adam-atan2-pytorch.
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import torch

from oxistep import zoo
from oxistep.bench.originals import ORIGINALS
from oxistep.bench.rules import PROBE
from oxistep.bench.zoo import floor

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "zoo.md"
WORKLOADS = ("flat", "GPT-2 small", "2,000 x 64", "two scalars")
CHOSEN_BY = ("flat", "2,000 x 64")  # the workloads in the table that helps to choose
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


def measured(path):
    """By class: how many times the package's speed by workload, as far as they were measured, and the probe's share."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))["zoo"]
    found = {name: {} for name in ORIGINALS}
    for row in rows:
        of_class = found[row["rule"]]
        workload = "of the probe" if row["against"] == "probe" else row["workload"]
        if workload != "of the probe":
            of_class[workload] = min(row["median"], of_class.get(workload, row["median"]))
        else:
            of_class.setdefault(workload, row["median"])
    return found


def speed_rows(found):
    workloads = [workload for workload in WORKLOADS if any(workload in of_class for of_class in found.values())]
    yield ["class", "package", *workloads, "of the probe"]
    for name, original in ORIGINALS.items():
        cells = [f"{found[name][workload]:.1f}" if workload in found[name] else "" for workload in workloads]
        probe = f"{found[name]['of the probe']:.2f}" if "of the probe" in found[name] else ""
        yield [f"`{name}`", original.pip or original.package, *cells, probe]


def with_speeds(text, found):
    """The page with the last column of the table that helps to choose; classes that were not measured keep theirs."""

    def row(match):
        of_class = found[match["name"]]
        if not all(workload in of_class for workload in CHOSEN_BY):
            return match[0]
        return f"{match['rest']} | {', '.join(f'{of_class[workload]:.1f}' for workload in CHOSEN_BY)} |"

    names = "|".join(ORIGINALS)
    return re.sub(rf"^(?P<rest>\| \[`(?P<name>{names})`\]\(zoo/.*) \| [^|]* \|$", row, text, flags=re.M)


def missed_rows(found):
    """Which classes have less than the benchmark asks of them."""
    yield ["case", "wanted", "missed by"]
    for case in (*WORKLOADS, "of the probe"):
        against, form = (PROBE, ".2f") if case == "of the probe" else ("", ".1f")
        numbers = {name: format(of_class[case], form) for name, of_class in found.items() if case in of_class}
        wants = {name: floor(case, name, against) for name in numbers}
        if numbers:
            below = [f"`{name}` {number}" for name, number in numbers.items() if float(number) < wants[name]]
            asked = " or ".join(f"{want:g}" for want in sorted(set(wants.values())))
            yield [case, asked, ", ".join(below) or "none"]


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
            found = measured(path)
            write("speed", table(speed_rows(found)))
            write("missed", table(missed_rows(found)))
            PAGE.write_text(with_speeds(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
