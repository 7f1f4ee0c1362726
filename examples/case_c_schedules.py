"""Case C: learning-rate schedules. Step decay, and exponential decay.

The schedulers are torch's own: they see an ordinary optimizer and set its `lr`.
"""

import numpy as np
import torch

import oxistep.optim as optim
from oxistep.optim.lr_scheduler import ExponentialLR, StepLR

TRUE_WEIGHTS = [2, 3, 4, 7]


def recover(optim, make_scheduler):
    x = np.random.default_rng(0).integers(1, 101, size=(10, 4))
    y = x @ np.array(TRUE_WEIGHTS)
    # a loss of 3 from targets of 500 is the small difference of large numbers
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)

    torch.manual_seed(0)
    w = torch.randn(4).double().requires_grad_()
    optimizer = optim.SGD([w], lr=1e-5)
    scheduler = make_scheduler(optimizer)
    lrs, losses = [], []
    for _ in range(100):
        lrs.append(optimizer.param_groups[0]["lr"])
        total = 0.0
        for sample, target in zip(x, y, strict=True):
            loss = (sample @ w - target) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(x))
        scheduler.step()  # once an epoch, after the optimizer

    return {"lrs": lrs, "losses": losses, "weights": w.tolist()}


def train(optim):
    return {
        "step": recover(optim, lambda optimizer: StepLR(optimizer, step_size=25, gamma=0.5)),
        "exponential": recover(optim, lambda optimizer: ExponentialLR(optimizer, gamma=0.98)),
    }


def main():
    for name, result in train(optim).items():
        print(f"{name} decay")
        for epoch in (0, 25, 50, 75, 99):
            print(f"  epoch {epoch:2d}  lr {result['lrs'][epoch]:.2e}  loss {result['losses'][epoch]:.3g}")
        print("  weights", "  ".join(f"{w:.3f}" for w in result["weights"]))


if __name__ == "__main__":
    main()
