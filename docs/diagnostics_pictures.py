"""Makes the pictures of diagnostics.md: `python docs/diagnostics_pictures.py [FOLDER]` (default: docs/images)."""

import sys
from pathlib import Path

import torch
from torch import nn

import oxistep
from oxistep.diagnostics import GradientMonitor, UpdateMonitor, lr_range_test

STEPS, BROKEN = 120, 80


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def batch():
    x = torch.randn(64, 8)
    return x, torch.sin(x).sum(dim=1, keepdim=True)


def watched():
    """A small regression whose batch 80 holds an infinity: that step is left out."""
    model = network()
    optimizer = oxistep.AdamW(model.parameters(), lr=3e-3, skip_nonfinite=True)
    gradients, updates = GradientMonitor(model), UpdateMonitor(optimizer, names=model)
    for step in range(STEPS):
        x, y = batch()
        if step == BROKEN:
            y[0] = float("inf")
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        gradients.update()
        optimizer.step()
    return gradients, updates


def range_test():
    model = network()
    optimizer = oxistep.AdamW(model.parameters())

    def closure():
        x, y = batch()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return lr_range_test(closure, optimizer, model=model, lr_min=1e-5, lr_max=10)


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    gradients, updates = watched()
    pictures = {"gradients": gradients.plot(), "updates": updates.plot(), "lr_range": range_test().plot()}
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=80)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
