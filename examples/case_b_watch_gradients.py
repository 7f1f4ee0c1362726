"""Case B: when training goes wrong, look at the gradients.

Follow mean and variance of every parameter's gradient after `backward`, look for anomalies
(exploding, vanishing, NaN, inf) and leave out a step that would spoil the weights. And check a
gradient that was written by hand by central differences.
"""

import math

import torch
from torch import nn

import oxistep.optim as optim


def anomaly(gradient):
    if gradient.isnan().any():
        return "NaN"
    if gradient.isinf().any():
        return "inf"
    size = gradient.abs().max().item()
    if size > 1e3:
        return "exploding"
    if size < 1e-6:
        return "vanishing"
    return ""


def gradient_table(model):
    """Mean, variance and anomaly of every gradient: call it between `backward` and `step`."""
    return {
        name: {
            "mean": p.grad.mean().item(),
            "variance": p.grad.var(correction=0).item(),
            "anomaly": anomaly(p.grad),
        }
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def network(activation, depth):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(16, 16), activation()]
    return nn.Sequential(*layers, nn.Linear(16, 1))


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
    history, skipped, losses = [], [], []
    for step in range(60):
        x = torch.randn(32, 4)
        y = torch.sin(x).sum(dim=1, keepdim=True)
        if step == 20:
            x[0, 0] = math.nan
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        table = gradient_table(model)
        history.append(table)
        if any(row["anomaly"] for row in table.values()):
            skipped.append(step)
            continue
        optimizer.step()
        losses.append(loss.item())
    weights = [value for p in model.parameters() for value in p.flatten().tolist()]
    return {"history": history, "skipped": skipped, "losses": losses, "weights": weights}


def central_differences(f, w, h=1e-5):
    """The gradient of f at w, one coordinate at a time: (f(w + h) - f(w - h)) / 2h, in float64."""
    w = w.double()
    gradient = torch.empty_like(w)
    for i in range(w.numel()):
        ahead, behind = w.clone(), w.clone()
        ahead[i] += h
        behind[i] -= h
        gradient[i] = (f(ahead) - f(behind)) / (2 * h)
    return gradient


def gradient_check():
    """A hand-written gradient of the squared error, right and with the 2 forgotten."""
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    y = 4.0
    w = torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64)
    right = 2 * (x @ w - y) * x
    wrong = (x @ w - y) * x
    numerical = central_differences(lambda w: (x @ w - y) ** 2, w)

    def off(gradient):
        return ((gradient - numerical).norm() / (gradient.norm() + numerical.norm())).item()

    return {"numerical": numerical.tolist(), "right_off_by": off(right), "wrong_off_by": off(wrong)}


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
        row = training["history"][step]["0.weight"]
        print_row(f"step {step}", row, ", step left out" if step in training["skipped"] else "")
    print(f"  the loss fell from {training['losses'][0]:.3f} to {training['losses'][-1]:.3f}")

    check = result["check"]
    print("hand-written gradient against central differences")
    print(f"  right: off by {check['right_off_by']:.0e}   without the 2: off by {check['wrong_off_by']:.2f}")


if __name__ == "__main__":
    main()
