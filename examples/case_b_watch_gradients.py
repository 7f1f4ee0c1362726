"""Case B: when training goes wrong, look at the gradients.

`oxistep.diagnostics` follows mean and variance of every parameter's gradient after `backward` and names
anomalies (exploding, vanishing, dead, not finite); a step that would spoil the weights is left out. A
gradient that was written by hand is checked by central differences. And how far each step moves each layer.
"""

import math

import torch
from torch import nn

import oxistep.optim as optim
from oxistep.diagnostics import GradientMonitor, UpdateMonitor, check_gradients


def network(activation, depth):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(16, 16), activation()]
    return nn.Sequential(*layers, nn.Linear(16, 1))


def gradient_table(model):
    """Mean, variance, NaN, inf and anomaly of every gradient: call it between `backward` and `step`."""
    monitor = GradientMonitor(model)
    monitor.update()
    shown = ("mean", "variance", "nan", "inf", "anomaly")
    return {row["name"]: {key: row[key] for key in shown} for row in monitor.rows()}


def first_gradients(model):
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    nn.functional.mse_loss(model(x), y).backward()
    return gradient_table(model)


def patients():
    healthy = network(nn.Tanh, depth=3)

    vanishing = network(nn.Sigmoid, depth=12)  # each sigmoid passes on a quarter at most

    exploding = network(nn.ReLU, depth=6)
    for p in exploding.parameters():
        p.data *= 10  # weights far too large: each layer multiplies what it gets

    # The slope of sqrt is infinite at 0; 0 times that is NaN.
    roots = nn.ParameterDict({"a": torch.tensor(0.0), "b": torch.tensor(0.0)})
    (roots["a"].sqrt() + (roots["b"] * roots["b"]).sqrt()).backward()

    return {
        "three tanh layers": first_gradients(healthy),
        "twelve sigmoid layers": first_gradients(vanishing),
        "weights ten times too large": first_gradients(exploding),
        "square roots at zero": gradient_table(roots),
    }


def watched_training(optim):
    """Sixty steps; batch 20 holds a NaN. The gradients show it, and the step is left out."""
    model = network(nn.Tanh, depth=3)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    gradients, updates = GradientMonitor(model), UpdateMonitor(optimizer, names=model)
    skipped, losses = [], []
    for step in range(60):
        x = torch.randn(32, 4)
        y = torch.sin(x).sum(dim=1, keepdim=True)
        if step == 20:
            x[0, 0] = math.nan
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        gradients.update()
        if gradients.anomalies():
            skipped.append(step)
            continue
        optimizer.step()
        losses.append(loss.item())
    weights = [value for p in model.parameters() for value in p.flatten().tolist()]
    first_layer = [row for row in gradients.rows(None) if row["name"] == "0.weight"]
    return {
        "history": first_layer,
        "skipped": skipped,
        "found": [str(anomaly) for anomaly in gradients.anomalies(None)][:1],
        "moved": {row["name"]: row["ratio"] for row in updates.rows()},
        "losses": losses,
        "weights": weights,
    }


def gradient_check():
    """A hand-written gradient of the squared error, right and with the 2 forgotten."""
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    y = 4.0
    w = torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64)

    def loss(w):
        return (x @ w - y) ** 2

    right = check_gradients(loss, w, 2 * (x @ w - y) * x)
    wrong = check_gradients(loss, w, (x @ w - y) * x)
    return {
        "right": bool(right),
        "wrong": bool(wrong),
        "right_off_by": right.entries[0].relative,
        "wrong_off_by": wrong.entries[0].relative,
        "report": str(wrong),
    }


def train(optim):
    return {
        "patients": patients(),
        "training": watched_training(optim),
        "check": gradient_check(),
    }


def print_row(name, row, note=""):
    print(f"  {name:10s} mean {row['mean']:10.2e}  variance {row['variance']:9.2e}  {row['anomaly']}{note}")


def main():
    result = train(optim)
    for title, table in result["patients"].items():
        print(title)
        rows = list(table.items())
        for name, row in rows if len(rows) <= 6 else [rows[0], rows[-2]]:
            print_row(name, row)

    training = result["training"]
    print("watched training: gradients of the first layer's weight")
    for step in (0, 19, 20, 21, 59):
        row = training["history"][step]
        print_row(f"step {step}", row, ", step left out" if step in training["skipped"] else "")
    print(f"  found: {training['found'][0]}")
    print(f"  the loss fell from {training['losses'][0]:.3f} to {training['losses'][-1]:.3f}")
    print("the last step moved")
    for name, ratio in training["moved"].items():
        print(f"  {name:10s} by {ratio:.1e} of its size")

    print("hand-written gradient against central differences, the 2 forgotten")
    print(result["check"]["report"])


if __name__ == "__main__":
    main()
