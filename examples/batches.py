"""Full batch, mini-batch and single sample: one optimizer, fed with different gradients.

The line of case A again. The fewer samples go into a gradient, the more steps an epoch has and the
noisier each of them is, which asks for a smaller learning rate.
"""

import torch

import oxistep.optim as optim


def make_data():
    torch.manual_seed(0)
    x = torch.linspace(100, 300, 200)
    x = (x - x.mean()) / x.std()
    y = 10 * x + 5 + torch.randn(200)
    return x, y


def descend(optim, batch_size, lr, epochs=20):
    x, y = make_data()
    slope = torch.tensor(0.0, requires_grad=True)
    intercept = torch.tensor(0.0, requires_grad=True)
    optimizer = optim.SGD([slope, intercept], lr=lr)
    steps = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(batch_size):
            loss = ((slope * x[batch] + intercept - y[batch]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    with torch.no_grad():
        loss = ((slope * x + intercept - y) ** 2).mean()
    return {"slope": slope.item(), "intercept": intercept.item(), "loss": loss.item(), "steps": steps}


def train(optim):
    return {
        "full batch": descend(optim, batch_size=200, lr=0.1),
        "mini-batch": descend(optim, batch_size=20, lr=0.05),
        "single sample": descend(optim, batch_size=1, lr=0.002),
    }


def main():
    print("20 epochs of       steps   slope  intercept    loss")
    for name, r in train(optim).items():
        print(f"{name:17s} {r['steps']:6d} {r['slope']:7.3f} {r['intercept']:10.3f} {r['loss']:7.3f}")


if __name__ == "__main__":
    main()
