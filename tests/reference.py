"""The rules in float64 and plain NumPy, written from the papers: the judge of everybody's accuracy.

Each function is a generator: it takes the first parameter, then is sent gradients and yields (parameter, states).
"""

from collections.abc import Generator

import numpy as np

Array = np.ndarray
Run = Generator[tuple[Array, dict[str, Array]], Array, None]


def sgd(x: Array, *, lr: float, momentum: float = 0.0, nesterov: bool = False) -> Run:
    """Gradient descent, momentum, Nesterov."""
    v, states = None, {}
    while True:
        g = yield x, states
        if momentum:
            v = g if v is None else momentum * v + g
            states = {"momentum_buffer": v}
            g = g + momentum * v if nesterov else v
        x = x - lr * g


def adagrad(x: Array, *, lr: float, eps: float = 1e-10) -> Run:
    """AdaGrad."""
    h = np.zeros_like(x)
    while True:
        g = yield x, {"sum": h}
        h = h + g**2
        x = x - lr * g / (np.sqrt(h) + eps)


def rmsprop(x: Array, *, lr: float, alpha: float = 0.99, eps: float = 1e-8) -> Run:
    """RMSProp."""
    h = np.zeros_like(x)
    while True:
        g = yield x, {"square_avg": h}
        h = alpha * h + (1 - alpha) * g**2
        x = x - lr * g / (np.sqrt(h) + eps)


def adam(
    x: Array, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Run:
    """Adam, with decoupled weight decay AdamW."""
    m, h, t = np.zeros_like(x), np.zeros_like(x), 0
    b1, b2 = betas
    while True:
        g = yield x, {"exp_avg": m, "exp_avg_sq": h}
        t += 1
        x = x * (1 - lr * weight_decay)
        m = b1 * m + (1 - b1) * g
        h = b2 * h + (1 - b2) * g**2
        x = x - lr * (m / (1 - b1**t)) / (np.sqrt(h / (1 - b2**t)) + eps)


RULES = {"SGD": sgd, "Adagrad": adagrad, "RMSprop": rmsprop, "Adam": adam}


def start(name: str, x: Array, **kwargs: object) -> Run:
    """A run of the rule of class ``name`` from ``x``, ready to be sent gradients."""
    if name == "AdamW":
        name, kwargs = "Adam", {"weight_decay": 1e-2, **kwargs}
    run = RULES[name](x.astype(np.float64), **kwargs)
    next(run)
    return run
