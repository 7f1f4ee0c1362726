"""What every script here must end with: used by demo.py and by tests/test_examples.py.

`examine` runs the training of one script twice in this process, with oxistep and with torch.optim (its
for-loop, which is what torch takes on a CPU), and compares the two results number by number, and our
result with known figures.
"""

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# How far a result of ours may be from torch's: TOLERANCE_REL * |torch's| + TOLERANCE_ABS.
TOLERANCE_REL = 1e-5
TOLERANCE_ABS = 1e-6


@dataclass(frozen=True)
class Figure:
    """One number, or list, that a result must contain: `get(result)`, within `within` of `expected`."""

    what: str
    get: Callable[[Any], Any]
    expected: Any
    within: float = 0.0
    form: str = ".5f"
    loose: bool = False  # whether `within` is more than what rounding to `form` leaves open

    def show(self, value: Any) -> str:
        if isinstance(value, list) and isinstance(value[0], list):
            rows = [f"[{self.show(row)}]" for row in value]
            return f"{len(rows)} x {rows[0]}" if len(set(rows)) == 1 else ", ".join(rows)
        if isinstance(value, list):
            return ", ".join(map(self.show, value))
        return format(value, self.form) if isinstance(value, float) else str(value)

    def show_expected(self) -> str:
        if self.within and not any(leaf for _, leaf, _ in pairs(self.expected, self.expected)):
            return f"below {self.within:g}"
        text = self.show(self.expected)
        return text + (f" ± {self.within:g}" if self.loose else "")

    def holds(self, value: Any) -> bool:
        return all(
            abs(got - wanted) <= self.within if isinstance(wanted, float) else got == wanted
            for _, got, wanted in pairs(value, self.expected)
        )


@dataclass(frozen=True, eq=False)
class Script:
    """A script of this folder, the case it belongs to, and its figures."""

    name: str
    case: str
    what: str
    figures: tuple[Figure, ...]


def end(path: str, expected: list[float]) -> Figure:
    return Figure(path, lambda r: r[path][-1], expected, 6e-6)


SCRIPTS = (
    Script(
        "case_a_line",
        "A",
        "line, two scalars",
        (Figure("part of the error left", lambda r: r["error_left"], 0.012, 5e-4, ".4f", loose=True),),
    ),
    Script(
        "case_b_one_weight",
        "B",
        "one weight, by hand too",
        (
            Figure("first four losses", lambda r: r["losses"][:4], [100.0, 64.0, 40.96, 26.2144], 1e-4, ".4f"),
            Figure("first four weights", lambda r: r["weights"][:4], [1.02, 1.036, 1.0488, 1.05904], 5e-6),
            Figure("weight after 10 steps", lambda r: r["weights"][9], 1.08926, 5e-6),
            Figure("the same, by hand", lambda r: r["hand_weights"][9], 1.08926, 5e-6),
            Figure(
                "two inputs, derivatives",
                lambda r: r["two_inputs"]["partials"],
                [-1e4, -5e3],
                0.01,
                ".1f",
            ),
            Figure("two inputs, weights", lambda r: r["two_inputs"]["weights"], [1.1, 1.05], 5e-6),
        ),
    ),
    Script(
        "case_b_two_groups",
        "B",
        "two groups, freezing",
        (
            Figure("weights after 10 steps", lambda r: [*r["two_layers"].values()], [1.04864] * 2, 5e-6),
            Figure("moved while frozen", lambda r: r["fine_tune"]["body_moved_while_frozen"], 0.0, 0.0, "g"),
            Figure("steps of body", lambda r: r["fine_tune"]["body_steps"], 200),
            Figure("steps of head", lambda r: r["fine_tune"]["head_steps"], 300),
            Figure("loss at the end", lambda r: r["fine_tune"]["losses"][-1], 0.0, 0.02, ".4f"),
        ),
    ),
    Script(
        "case_b_watch_gradients",
        "B",
        "gradients watched",
        (
            Figure(
                "anomalies found",
                lambda r: [next(iter(table.values()))["anomaly"] or "none" for table in r["patients"].values()],
                ["none", "vanishing", "exploding", "not finite"],
            ),
            Figure(
                "NaN in the slope of sqrt(b * b)",
                lambda r: r["patients"]["square roots at zero"]["b"]["nan"],
                1.0,
            ),
            Figure("steps left out", lambda r: r["training"]["skipped"], [20]),
            Figure("right gradient off by", lambda r: r["check"]["right_off_by"], 0.0, 1e-8, ".1e"),
            Figure("wrong gradient off by", lambda r: r["check"]["wrong_off_by"], 0.5, 5e-6),
        ),
    ),
    Script(
        "case_c_recover_weights",
        "C",
        "known weights recovered",
        (
            Figure(
                "four weights",
                lambda r: r["cpu"]["four"]["weights"],
                [2.0, 3.0, 4.0, 7.0],
                0.05,
                ".3f",
                loose=True,
            ),
            Figure(
                "seven weights",
                lambda r: r["cpu"]["seven"]["weights"],
                [2.0, 3.0, 4.0, 7.0, 11.0, 5.0, 13.0],
                0.8,
                ".3f",
                loose=True,
            ),
            Figure(
                "last loss / first loss",
                lambda r: [x["last_loss"] / x["first_loss"] for x in r["cpu"].values()],
                [0.0, 0.0],
                1e-3,
                ".1e",
            ),
        ),
    ),
    Script(
        "case_c_schedules",
        "C",
        "learning-rate schedules",
        (
            Figure(
                "step: lr 24, 25, 50, 75",
                lambda r: [r["step"]["lrs"][epoch] for epoch in (24, 25, 50, 75)],
                [1e-5, 5e-6, 2.5e-6, 1.25e-6],
                1e-15,
                ".3g",
            ),
            Figure("step: weights", lambda r: r["step"]["weights"], [2.0, 3.0, 4.0, 7.0], 0.1, ".3f", loose=True),
            Figure(
                "exponential: lr 1, 99",
                lambda r: [r["exponential"]["lrs"][epoch] for epoch in (1, 99)],
                [1e-5 * 0.98, 1e-5 * 0.98**99],
                1e-15,
                ".3g",
            ),
            Figure(
                "exponential: weights",
                lambda r: r["exponential"]["weights"],
                [2.0, 3.0, 4.0, 7.0],
                0.1,
                ".3f",
                loose=True,
            ),
        ),
    ),
    Script(
        "case_d_clipping",
        "D",
        "accumulation, clipping",
        (
            Figure("gradient of b", lambda r: r["accumulation"]["once"], [0.3325, 0.3333, 0.3333], 5e-5, ".4f"),
            Figure(
                "gradient of a row of w",
                lambda r: r["accumulation"]["rows_once"],
                [[0.3325, 0.3333, 0.3333]] * 5,
                5e-5,
                ".4f",
            ),
            Figure(
                "a second backward",
                lambda r: r["accumulation"]["twice"],
                [0.665, 0.6667, 0.6667],
                1e-4,
                ".4f",
            ),
            Figure("step with lr 1", lambda r: r["accumulation"]["moved"], [0.665, 0.6667, 0.6667], 1e-4, ".4f"),
            Figure("first loss", lambda r: r["clipped"]["first_loss"], 12.0008, 5e-5, ".4f"),
            Figure("loss after 10,000 steps", lambda r: r["clipped"]["last_loss"], 1.2333, 1e-4, ".4f"),
            Figure(
                "logits after 10,000 steps",
                lambda r: r["clipped"]["logits"],
                [-1.941, -0.762, 3.14],
                1e-3,
                ".3f",
            ),
            Figure("seed 42 twice: same bits", lambda r: r["same_bits"], True),
        ),
    ),
    Script(
        "case_d_recurrent",
        "D",
        "recurrent network",
        (
            Figure("summed loss, at the end", lambda r: r["summed"]["losses"][-1], 0.0, 0.01, ".4f"),
            Figure("per-step loss, at the end", lambda r: r["per_step"]["losses"][-1], 0.0, 0.05, ".4f"),
        ),
    ),
    Script(
        "case_e_bowl",
        "E",
        "eight optimizers on a bowl",
        (
            Figure(
                "x2 flips for ever",
                lambda r: [x2 for _, x2 in r["Gradient descent, lr 0.1"][-4:]],
                [-3.0, 3.0, -3.0, 3.0],
                1e-5,
                ".0f",
            ),
            end("Gradient descent, lr 0.1", [0.0, 3.0]),
            end("Gradient descent, lr 0.01", [0.53048, 0.0]),
            end("Momentum 0.9, lr 0.01", [0.01691, -0.00855]),
            end("Nesterov 0.9, lr 0.01", [0.00722, -0.0]),
            end("Adagrad, lr 0.1", [2.32355, 1.39497]),
            end("RMSprop, lr 0.1", [-0.0, -0.0]),
            end("Adam, lr 0.1", [-0.02143, 0.01934]),
            end("AdamW, lr 0.1", [-0.01616, 0.01787]),
        ),
    ),
    Script(
        "own_rules",
        "E",
        "six rules of one's own",
        (
            end("Gradient descent, lr 0.01", [0.53048, 0.0]),
            end("Momentum 0.9, lr 0.01", [0.01691, -0.00855]),
            end("Nesterov 0.9, lr 0.01", [0.00722, -0.0]),
            end("Adagrad, lr 0.1", [2.32355, 1.39497]),
            end("RMSprop, lr 0.1", [-0.0, -0.0]),
            end("Adam, lr 0.1", [-0.02143, 0.01934]),
        ),
    ),
    Script(
        "batches",
        "all",
        "batch, mini-batch, sample",
        (
            Figure("steps", lambda r: [x["steps"] for x in r.values()], [20, 200, 4000]),
            Figure("loss", lambda r: [x["loss"] for x in r.values()], [0.93] * 3, 0.05, ".3f", loose=True),
        ),
    ),
    Script(
        "numpy_line",
        "A",
        "the line with NumPy arrays",
        (Figure("part of the error left", lambda r: r["error_left"], 0.012, 5e-4, ".4f", loose=True),),
    ),
)


class TorchOnArrays:
    """torch.optim with the interface of oxistep.numpy, to compare the two."""

    class SGD:
        def __init__(self, arrays, **settings):
            self.tensors = [torch.from_numpy(array) for array in arrays]  # the same memory
            self.optimizer = torch.optim.SGD(self.tensors, **settings)

        def step(self, gradients):
            for tensor, gradient in zip(self.tensors, gradients, strict=True):
                tensor.grad = torch.from_numpy(gradient)
            self.optimizer.step()


def pairs(ours: Any, theirs: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two results of the same structure, side by side."""
    if isinstance(theirs, dict):
        if list(ours) != list(theirs):
            raise ValueError(f"result{where} has the keys {list(ours)} instead of {list(theirs)}")
        for key in theirs:
            yield from pairs(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            raise ValueError(f"result{where} has {len(ours)} entries instead of {len(theirs)}")
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from pairs(a, b, f"{where}[{index}]")
    else:
        yield where, ours, theirs


def difference(a: Any, b: Any) -> float:
    if a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)):
        return 0.0
    if isinstance(a, float) and isinstance(b, float) and math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return math.inf


@dataclass(frozen=True)
class Report:
    """One training, done by both."""

    ours: Any
    theirs: Any
    count: int
    largest_difference: float
    too_far: list[str]  # where the results differ by more than the tolerance

    def largest_of(self, figure: Figure) -> float:
        return largest_difference(figure.get(self.ours), figure.get(self.theirs))


def largest_difference(ours: Any, theirs: Any) -> float:
    return max(difference(a, b) for _, a, b in pairs(ours, theirs))


def train(script: Script, library: str) -> Any:
    """Run the training of a script, with "oxistep" or with "torch"."""
    module = importlib.import_module(script.name)
    if library == "oxistep":
        return module.train(module.optim)
    return module.train(TorchOnArrays if script.name.startswith("numpy") else torch.optim)


@contextmanager
def one_thread() -> Iterator[None]:
    """A second thread gains nothing on tensors this small; on a busy machine its barriers cost minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def examine(script: Script) -> Report:
    with one_thread():
        ours, theirs = train(script, "oxistep"), train(script, "torch")
    leaves = list(pairs(ours, theirs))
    return Report(
        ours=ours,
        theirs=theirs,
        count=len(leaves),
        largest_difference=largest_difference(ours, theirs),
        too_far=[
            f"{where}: {a} instead of {b}"
            for where, a, b in leaves
            if difference(a, b) > TOLERANCE_ABS + TOLERANCE_REL * (abs(b) if isinstance(b, float) else 0)
        ],
    )
