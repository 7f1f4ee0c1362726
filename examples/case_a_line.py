"""Case A: fit a straight line by full-batch gradient descent.

The model is y = slope * x + intercept. Both parameters are 0-dimensional tensors, so
this is about the smallest training there is: what a step costs here is all overhead.
"""

import torch

import oxistep.optim as optim


def make_data():
    torch.manual_seed(0)
    x = torch.linspace(100, 300, 200)
    x = (x - x.mean()) / x.std()
    y = 10 * x + 5 + torch.randn(200)
    return x, y


def train(optim):
    x, y = make_data()

    # The answer in one go, to see how close 20 steps come.
    best = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], dim=1), y.unsqueeze(1)).solution.squeeze()

    slope = torch.tensor(0.0, requires_grad=True)
    intercept = torch.tensor(0.0, requires_grad=True)
    optimizer = optim.SGD([slope, intercept], lr=0.1)
    losses = []
    for _ in range(20):
        loss = ((slope * x + intercept - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    found = torch.stack([slope, intercept]).detach()
    return {
        "slope": slope.item(),
        "intercept": intercept.item(),
        "least_squares": best.tolist(),
        "losses": losses,
        "error_left": (torch.dist(found, best) / best.norm()).item(),
    }


def main():
    result = train(optim)
    slope, intercept = result["least_squares"]
    print(f"least squares   y = {slope:.4f} x + {intercept:.4f}")
    print(f"after 20 steps  y = {result['slope']:.4f} x + {result['intercept']:.4f}")
    print(f"the loss fell from {result['losses'][0]:.2f} to {result['losses'][-1]:.2f}")
    print(f"{result['error_left']:.2%} of the error at the start is left")


if __name__ == "__main__":
    main()
