"""Makes the pictures of memory.md: `python docs/memory_pictures.py [FOLDER]` (default: docs/images).

A small GPT is trained with each setting, and with states in the 8 bits that one would try first. --short: a few
seconds, for the tests.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import oxistep.optim as optim
from oxistep.viz._style import FAINT, LABEL, SMALL, TITLE, WIDTH, line

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_compact_training import NaiveAdam  # noqa: E402
from trainings import gpt_losses  # noqa: E402

SHORT, LONG = 25, 300
SMOOTH = 20  # losses whose mean is drawn

STATES = {
    "float32": {},
    "state_dtype=torch.bfloat16": {"state_dtype": torch.bfloat16},
    'state_dtype="8bit"': {"state_dtype": "8bit"},
}
WEIGHTS = {
    "float32 weights": None,
    "bfloat16, rounded to nearest": {},
    'weights="stochastic"': {"weights": "stochastic"},
    'weights="kahan"': {"weights": "kahan"},
    'weights="residual8"': {"weights": "residual8"},
    'weights="residual16"': {"weights": "residual16"},
}


def way(settings, steps):
    """The mean of 4,096 weights, which start at 1 and are led to 0.9 by steps smaller than bfloat16 tells apart."""
    dtype = torch.float32 if settings is None else torch.bfloat16
    p = torch.ones(4096, dtype=dtype, requires_grad=True)
    optimizer = optim.SGD([p], lr=1e-2, **(settings or {}))
    means = []
    for _ in range(steps):
        p.grad = (p.detach().float() - 0.9).to(dtype)
        optimizer.step()
        means.append(p.detach().float().mean().item())
    return means


def smooth(losses):
    kept = torch.tensor(losses).unfold(0, min(SMOOTH, len(losses)), 1)
    return range(len(losses) - len(kept), len(losses)), kept.mean(1).tolist()


def drawn(axes, curves, title, ylabel):
    """Lines over steps; `curves` are (name, x, y)."""
    for index, (name, x, y) in enumerate(curves):
        style = line(index)
        axes.plot(x, y, color=style.color, linestyle=style.linestyle, label=name, linewidth=1.6)
    axes.set_title(title, loc="left", fontsize=LABEL)
    axes.set_xlabel("step", fontsize=LABEL)
    axes.set_ylabel(ylabel, fontsize=LABEL)
    axes.grid(**FAINT)
    axes.legend(fontsize=SMALL, frameon=False)


def states(steps):
    losses = {name: gpt_losses(partial(optim.AdamW, lr=3e-3, **s), 0, steps) for name, s in STATES.items()}
    figure = Figure(figsize=(WIDTH, 0.45 * WIDTH), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("A small GPT with AdamW: how its states are kept", fontsize=TITLE)
    drawn(left, [(name, *smooth(kept)) for name, kept in losses.items()], f"loss, mean of {SMOOTH} steps", "loss")
    naive = gpt_losses(lambda ps: NaiveAdam(ps, 3e-3), 0, min(steps, 100))
    beside = [("linear 8 bits, to nearest", naive), ('state_dtype="8bit"', losses['state_dtype="8bit"'][: len(naive)])]
    drawn(right, [(name, range(len(kept)), kept) for name, kept in beside[::-1]], "beside naive 8 bits", "loss")
    right.set_yscale("log")
    return figure


def weights(steps):
    figure = Figure(figsize=(WIDTH, 0.45 * WIDTH), layout="constrained")
    curves = [(name, range(1, steps + 1), way(s, steps)) for name, s in WEIGHTS.items()]
    drawn(figure.add_subplot(), curves, "Weights on their way from 1 to 0.9, in small steps", "mean of the weights")
    return figure


def main():
    given = [argument for argument in sys.argv[1:] if argument != "--short"]
    folder = Path(given[0]) if given else Path(__file__).parent / "images"
    steps = SHORT if "--short" in sys.argv else LONG
    pictures = {"memory_states": states(steps), "memory_weights": weights(2 * steps)}
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=80)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
