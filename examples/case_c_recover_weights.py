"""Case C: make data with known weights, then find the weights again.

y = x . w with four and with seven weights, ten samples of integers from 1 to 100, one sample a
step. Runs on the CPU, and on a GPU too if there is one.
"""

import numpy as np
import torch

import oxistep.optim as optim

FOUR = [2, 3, 4, 7]
SEVEN = [2, 3, 4, 7, 11, 5, 13]


def recover(optim, true_weights, epochs, device):
    x = np.random.default_rng(0).integers(1, 101, size=(10, len(true_weights)))
    y = x @ np.array(true_weights)
    x = torch.tensor(x, dtype=torch.float32, device=device)
    y = torch.tensor(y, dtype=torch.float32, device=device)

    torch.manual_seed(0)
    w = torch.randn(len(true_weights)).to(device).requires_grad_()
    optimizer = optim.SGD([w], lr=1e-5)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for sample, target in zip(x, y, strict=True):
            loss = (sample @ w - target) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(x))

    found = w.tolist()
    return {
        "weights": found,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "largest_error": max(abs(a - b) for a, b in zip(found, true_weights, strict=True)),
    }


def train(optim):
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        device: {
            "four": recover(optim, FOUR, epochs=100, device=device),
            "seven": recover(optim, SEVEN, epochs=200, device=device),
        }
        for device in devices
    }


def main():
    for device, results in train(optim).items():
        for name, true_weights in (("four", FOUR), ("seven", SEVEN)):
            result = results[name]
            print(f"{name} weights on {device}")
            print("  true ", "  ".join(f"{w:7.3f}" for w in true_weights))
            print("  found", "  ".join(f"{w:7.3f}" for w in result["weights"]))
            print(f"  the loss fell from {result['first_loss']:.0f} to {result['last_loss']:.2g}")


if __name__ == "__main__":
    main()
