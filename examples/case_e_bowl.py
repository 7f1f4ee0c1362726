"""Case E: eight optimizers on one bowl, and the paths they take.

f(x1, x2) = x1^2 + 10 x2^2 is ten times as steep one way as the other. From (4, 3), 100 steps each;
the paths are drawn over the contour lines into one picture.

    python case_e_bowl.py [bowl.png]
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import oxistep.optim as optim

START = (4.0, 3.0)
STEPS = 100


def bowl(x1, x2):
    return x1**2 + 10 * x2**2


def optimizers(optim):
    """Name, settings, and how to make it: one row a panel."""
    return [
        ("Gradient descent", "lr 0.1", lambda p: optim.SGD(p, lr=0.1)),
        ("Gradient descent", "lr 0.01", lambda p: optim.SGD(p, lr=0.01)),
        ("Momentum 0.9", "lr 0.01", lambda p: optim.SGD(p, lr=0.01, momentum=0.9)),
        ("Nesterov 0.9", "lr 0.01", lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
        ("AdaGrad", "lr 0.1", lambda p: optim.Adagrad(p, lr=0.1, eps=1e-8)),
        ("RMSProp", "lr 0.1", lambda p: optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-8)),
        ("Adam", "lr 0.1", lambda p: optim.Adam(p, lr=0.1)),
        ("AdamW", "lr 0.1", lambda p: optim.AdamW(p, lr=0.1)),
    ]


def descend(make_optimizer):
    point = torch.tensor(START, requires_grad=True)
    optimizer = make_optimizer([point])
    path = [point.tolist()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        bowl(*point).backward()
        optimizer.step()
        path.append(point.tolist())
    return path


def train(optim):
    return {f"{name}, {settings}": descend(make) for name, settings, make in optimizers(optim)}


def draw(paths, file):
    blue, vermilion = "#0072B2", "#D55E00"  # told apart by all eyes
    levels = [1, 4, 10, 20, 40, 70, 110]
    x1, x2 = np.meshgrid(np.linspace(-2.6, 4.8, 300), np.linspace(-3.7, 3.7, 300))
    figure, axes = plt.subplots(2, 4, figsize=(14, 8.8), sharex=True, sharey=True, layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, h_pad=0.12)
    for axis, (title, path) in zip(axes.flat, paths.items(), strict=True):
        xs, ys = zip(*path, strict=True)
        end = f"ends at ({xs[-1]:.5f}, {ys[-1]:.5f})".replace("-", "\N{MINUS SIGN}")
        axis.contour(x1, x2, bowl(x1, x2), levels=levels, colors="0.78", linewidths=0.9)
        axis.plot(xs, ys, "-o", color=blue, linewidth=1, markersize=2.6, label="one dot per step")
        axis.plot(*path[0], "o", color="white", markeredgecolor=blue, markersize=8, label="start")
        axis.plot(*path[-1], "X", color=vermilion, markeredgecolor="white", markersize=11, label="after 100 steps")
        axis.set_title(f"{title}\n{end}", fontsize=12)
        axis.set_aspect("equal")
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$", fontsize=12)
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$", fontsize=12)
    formula, heights = r"$f(x_1, x_2) = x_1^2 + 10\,x_2^2$", ", ".join(map(str, levels))
    figure.suptitle(f"{formula} from (4, 3), contour lines at {heights}", fontsize=14)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=12, frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Draw eight optimizers on a bowl.")
    parser.add_argument("file", nargs="?", type=Path, default=Path("bowl.png"), help="the picture to write")
    file = parser.parse_args().file

    paths = train(optim)
    for title, path in paths.items():
        x1, x2 = path[-1]
        print(f"{title:25s} ends at ({x1:8.5f}, {x2:8.5f})")
    draw(paths, file)
    print(f"the paths are in {file}")


if __name__ == "__main__":
    main()
