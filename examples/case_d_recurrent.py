"""Case D: a recurrent network, with losses summed over time and with a step per time step.

The network reads a sine wave and says at each time step which value comes next.
"""

import torch
from torch import nn

import oxistep.optim as optim


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(1, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, x, hidden):
        hidden = self.cell(x, hidden)
        return self.out(hidden), hidden


def start():
    torch.manual_seed(0)
    wave = torch.sin(torch.arange(41) * 0.3).reshape(41, 1, 1)
    return Network(), wave[:-1], wave[1:]


def outcome(model, losses):
    weights = [value for p in model.parameters() for value in p.flatten().tolist()]
    return {"losses": losses, "weights": weights}


def summed(optim):
    """Add up the losses of the whole sequence, then one backward and one step."""
    model, inputs, targets = start()
    optimizer = optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(100):
        hidden = torch.zeros(1, 8)
        loss = torch.zeros(())
        for x, target in zip(inputs, targets, strict=True):
            output, hidden = model(x, hidden)
            loss = loss + nn.functional.mse_loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / len(inputs))
    return outcome(model, losses)


def per_step(optim):
    """Learn at each time step. The past is cut off: it was computed with weights now changed."""
    model, inputs, targets = start()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        hidden = torch.zeros(1, 8)
        total = 0.0
        for x, target in zip(inputs, targets, strict=True):
            output, hidden = model(x, hidden.detach())
            loss = nn.functional.mse_loss(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(inputs))
    return outcome(model, losses)


def train(optim):
    return {"summed": summed(optim), "per_step": per_step(optim)}


def main():
    result = train(optim)
    for name, steps in (("summed", "one step a sequence"), ("per_step", "one step a time step")):
        losses = result[name]["losses"]
        print(f"{steps:20s}  {len(losses):3d} passes  loss from {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
