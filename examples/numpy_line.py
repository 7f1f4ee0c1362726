"""Case A with NumPy alone: no torch, no autograd, the gradient written by hand.

The optimizers of `oxistep.numpy` change the arrays in place; `step` takes the gradients.
"""

import numpy as np

import oxistep.numpy as optim


def make_data():
    x = np.linspace(100, 300, 200)
    x = (x - x.mean()) / x.std(ddof=1)
    y = 10 * x + 5 + np.random.default_rng(0).standard_normal(200)
    return x, y


def train(optim):
    x, y = make_data()
    columns = np.stack([x, np.ones_like(x)], axis=1)
    best = np.linalg.lstsq(columns, y, rcond=None)[0]

    w = np.zeros(2)  # slope and intercept
    optimizer = optim.SGD([w], lr=0.1)
    for _ in range(20):
        error = columns @ w - y
        gradient = 2 * columns.T @ error / len(x)
        optimizer.step([gradient])

    return {
        "slope": float(w[0]),
        "intercept": float(w[1]),
        "least_squares": best.tolist(),
        "error_left": float(np.linalg.norm(w - best) / np.linalg.norm(best)),
    }


def main():
    result = train(optim)
    slope, intercept = result["least_squares"]
    print(f"least squares   y = {slope:.4f} x + {intercept:.4f}")
    print(f"after 20 steps  y = {result['slope']:.4f} x + {result['intercept']:.4f}")
    print(f"{result['error_left']:.2%} of the error at the start is left")


if __name__ == "__main__":
    main()
