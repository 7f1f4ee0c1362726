"""Case E: eight optimizers on one bowl, and the paths they take.

f(x1, x2) = x1^2 + 10 x2^2 is ten times as steep one way as the other. From (4, 3), 100 steps each;
the paths are drawn over the contour lines into one picture.

    python case_e_bowl.py [bowl.png]
"""

import argparse
from pathlib import Path

import torch

import oxistep.optim as optim
from oxistep.viz import trajectories

START = (4.0, 3.0)
STEPS = 100
TITLE = r"$f(x_1, x_2) = x_1^2 + 10\,x_2^2$ from (4, 3), contour lines at 1, 4, 10, 20, 40, 70, 110"


def bowl(x1, x2):
    return x1**2 + 10 * x2**2


def optimizers(optim):
    """Name, settings, and how to make it: one row a panel."""
    return [
        ("Gradient descent", "lr 0.1", lambda p: optim.SGD(p, lr=0.1)),
        ("Gradient descent", "lr 0.01", lambda p: optim.SGD(p, lr=0.01)),
        ("Momentum 0.9", "lr 0.01", lambda p: optim.SGD(p, lr=0.01, momentum=0.9)),
        ("Nesterov 0.9", "lr 0.01", lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
        ("Adagrad", "lr 0.1", lambda p: optim.Adagrad(p, lr=0.1, eps=1e-8)),
        ("RMSprop", "lr 0.1", lambda p: optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-8)),
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
    trajectories(paths, bowl, levels=[1, 4, 10, 20, 40, 70, 110], title=TITLE, output=file)


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
