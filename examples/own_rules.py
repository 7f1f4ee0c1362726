"""Six optimizers written as a tutorial writes them, and the paths they take on the bowl of case E.

Each is one function, and makes an optimizer for torch's parameters and for NumPy's arrays. They end where torch's
classes end.

    python own_rules.py [own_rules.png]
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import oxistep
from oxistep.viz import trajectories

START = (4.0, 3.0)
STEPS = 100
optim = None  # our own rules


def bowl(x1, x2):
    return x1**2 + 10 * x2**2


@oxistep.rule
def gradient_descent(p, g, s, lr=0.01):
    return p - lr * g


@oxistep.rule
def momentum(p, g, s, lr=0.01, beta=0.9):
    s.v = beta * s.v + g
    return p - lr * s.v


@oxistep.rule
def nesterov(p, g, s, lr=0.01, beta=0.9):
    s.v = beta * s.v + g
    return p - lr * (g + beta * s.v)


@oxistep.rule
def adagrad(p, g, s, lr=0.1, eps=1e-8):
    s.h = s.h + g**2
    return p - lr * g / (np.sqrt(s.h) + eps)


@oxistep.rule
def rmsprop(p, g, s, lr=0.1, alpha=0.9, eps=1e-8):
    s.h = alpha * s.h + (1 - alpha) * g**2
    return p - lr * g / (np.sqrt(s.h) + eps)


@oxistep.rule
def adam(p, g, s, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    s.m = beta1 * s.m + (1 - beta1) * g
    s.h = beta2 * s.h + (1 - beta2) * g**2
    m = s.m / (1 - beta1**s.step)
    h = s.h / (1 - beta2**s.step)
    return p - lr * m / (np.sqrt(h) + eps)


OWN = {
    "Gradient descent, lr 0.01": gradient_descent,
    "Momentum 0.9, lr 0.01": momentum,
    "Nesterov 0.9, lr 0.01": nesterov,
    "Adagrad, lr 0.1": adagrad,
    "RMSprop, lr 0.1": rmsprop,
    "Adam, lr 0.1": adam,
}


def of_torch(optim):
    """The same six as classes of torch.optim."""
    return {
        "Gradient descent, lr 0.01": lambda p: optim.SGD(p, lr=0.01),
        "Momentum 0.9, lr 0.01": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
        "Nesterov 0.9, lr 0.01": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        "Adagrad, lr 0.1": lambda p: optim.Adagrad(p, lr=0.1, eps=1e-8),
        "RMSprop, lr 0.1": lambda p: optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-8),
        "Adam, lr 0.1": lambda p: optim.Adam(p, lr=0.1),
    }


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
    """The path of each: by the rules of this file, or by the classes of a module."""
    made = OWN if optim is None else of_torch(optim)
    return {name: descend(make) for name, make in made.items()}


def main():
    parser = argparse.ArgumentParser(description="Draw six optimizers of one's own on a bowl.")
    parser.add_argument("file", nargs="?", type=Path, default=Path("own_rules.png"), help="the picture to write")
    file = parser.parse_args().file

    for name, path in train(optim).items():
        x1, x2 = path[-1]
        print(f"{name:25s} ends at ({x1:8.5f}, {x2:8.5f})")
    trajectories(OWN, bowl, start=START, steps=STEPS, levels=[1, 4, 10, 20, 40, 70, 110], output=file)
    print(f"the paths are in {file}")


if __name__ == "__main__":
    main()
