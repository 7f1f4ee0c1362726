"""Case D: gradients accumulate; clipping keeps them small; a seed makes a run repeatable.

Five ones go through w (five rows) and b to three logits. The targets are zeros, the loss is
binary cross-entropy.
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_

import oxistep.optim as optim

X = torch.ones(5)
TARGET = torch.zeros(3)


def start():
    w = torch.tensor([[1.0, 2.0, 3.0]] * 5, requires_grad=True)
    b = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    return w, b


def loss_of(w, b):
    return binary_cross_entropy_with_logits(X @ w + b, TARGET)


def accumulation(optim):
    """Two `backward` without `zero_grad` in between double the gradient, and so the step."""
    w, b = start()
    optimizer = optim.SGD([w, b], lr=1.0)
    loss_of(w, b).backward()
    assert w.grad is not None and b.grad is not None
    once = b.grad.tolist()
    rows_once = w.grad.tolist()
    loss_of(w, b).backward()
    twice = b.grad.tolist()
    before = b.detach().clone()
    optimizer.step()
    return {
        "once": once,
        "rows_once": rows_once,
        "twice": twice,
        "moved": (before - b).tolist(),
    }


def clipped(optim, steps=10_000):
    w, b = start()
    optimizer = optim.SGD([w, b], lr=0.0009)
    losses = []
    for _ in range(steps):
        logits = X @ w + b
        loss = binary_cross_entropy_with_logits(logits, TARGET)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_([w, b], max_norm=1.0)
        optimizer.step()
        losses.append(loss.item())
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "logits": logits.tolist(),
        "w": w.tolist(),
        "b": b.tolist(),
    }


def seeded(optim):
    torch.manual_seed(42)
    w = torch.randn(5, 3, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    optimizer = optim.SGD([w, b], lr=0.01)
    for _ in range(1_000):
        loss = loss_of(w, b)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_([w, b], max_norm=1.0)
        optimizer.step()
    return {"loss": loss_of(w, b).item(), "w": w.tolist(), "b": b.tolist()}


def train(optim):
    first, second = seeded(optim), seeded(optim)
    return {
        "accumulation": accumulation(optim),
        "clipped": clipped(optim),
        "seeded": first,
        "same_bits": first == second,
    }


def row(values):
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"


def main():
    result = train(optim)
    sums, clip = result["accumulation"], result["clipped"]
    print(f"gradient of b after one backward  {row(sums['once'])}")
    print(f"                    after two     {row(sums['twice'])}")
    print(f"the step with lr 1 moved b by     {row(sums['moved'])}")
    print(f"10,000 clipped steps: loss from {clip['first_loss']:.4f} to {clip['last_loss']:.4f}")
    print(f"                      logits {row(clip['logits'])}")
    same = "the same bits" if result["same_bits"] else "different bits"
    print(f"seed 42, twice 1,000 steps: loss {result['seeded']['loss']:.6f}, {same} both times")


if __name__ == "__main__":
    main()
