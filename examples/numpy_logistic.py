"""Logistic regression with NumPy alone: no torch, the gradient written by hand, Adam written by hand or oxistep's.

`--optim hand` takes the loop below instead of oxistep.numpy. The weights are the same, the time of a step is not.
Prints both, and what part of an iteration the optimizer takes.
"""

import argparse
import time
from statistics import median

import numpy as np

import oxistep.numpy


class HandWrittenAdam:
    """Adam as one writes it with NumPy, with the interface of oxistep.numpy.Adam."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        self.params, self.lr, self.betas, self.eps, self.t = params, lr, betas, eps, 0
        self.m = [np.zeros_like(p) for p in params]
        self.v = [np.zeros_like(p) for p in params]

    def step(self, grads):
        (beta1, beta2), self.t = self.betas, self.t + 1
        for p, g, m, v in zip(self.params, grads, self.m, self.v, strict=True):
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            p -= self.lr * (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + self.eps)


def make_data(samples, features):
    """Points (samples, features), and for each whether it lies on the one side of a plane, with some doubt."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, features)).astype(np.float32)
    plane = rng.standard_normal(features).astype(np.float32)
    chance = 1 / (1 + np.exp(-(x @ plane + 1)))
    return x, (rng.random(samples) < chance).astype(np.float32)


def train(Adam, steps=300, samples=1000, features=50, batch=100):
    x, y = make_data(samples, features)
    w, b = np.zeros(features, np.float32), np.zeros((), np.float32)
    optimizer = Adam([w, b], lr=0.05)
    rng = np.random.default_rng(1)
    whole, in_step = [], []
    for _ in range(steps):
        rows = rng.integers(samples, size=batch)
        begin = time.perf_counter()
        error = 1 / (1 + np.exp(-(x[rows] @ w + b))) - y[rows]
        grads = [x[rows].T @ error / batch, error.mean()]
        before = time.perf_counter()
        optimizer.step(grads)
        end = time.perf_counter()
        whole.append(end - begin)
        in_step.append(end - before)
    right = float(((x @ w + b > 0) == (y > 0.5)).mean())
    return {"weights": [*w.tolist(), float(b)], "right": right, "iteration": median(whole), "step": median(in_step)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optim", choices=("oxistep", "hand"), default="oxistep", help="whose Adam (default: oxistep)")
    parser.add_argument("--steps", type=int, default=300, help="iterations (default: 300)")
    parser.add_argument("--samples", type=int, default=1000, help="points (default: 1,000)")
    parser.add_argument("--features", type=int, default=50, help="numbers of a point (default: 50)")
    parser.add_argument("--batch", type=int, default=100, help="points in an iteration (default: 100)")
    given = parser.parse_args()
    if min(given.steps, given.samples, given.features, given.batch) < 1:
        parser.error("--steps, --samples, --features and --batch must be 1 or more")

    Adam = oxistep.numpy.Adam if given.optim == "oxistep" else HandWrittenAdam
    result = train(Adam, given.steps, given.samples, given.features, given.batch)
    print(f"{result['right']:.1%} of {given.samples:,} points are on the right side")
    iteration, step = result["iteration"], result["step"]
    part = f"{step * 1e6:.1f} µs of it the step of Adam ({step / iteration:.1%})"
    print(f"{given.optim}: {iteration * 1e6:.1f} µs an iteration, {part}")


if __name__ == "__main__":
    main()
