"""Case B: train one weight, by hand and with an optimizer; then two weights.

One sample, x = 100 and y = 110, the model y = w x, and the squared error. Every step brings
w closer to 1.1: 0.8 times the distance is left, so 0.64 times the loss.
"""

import torch

import oxistep.optim as optim

X, Y = 100.0, 110.0
LR = 1e-5
STEPS = 10


def by_hand():
    w = 1.0
    weights, losses = [], []
    for _ in range(STEPS):
        error = X * w - Y
        losses.append(error**2)
        gradient = 2 * error * X  # the derivative of (x w - y)^2 with respect to w
        w -= LR * gradient
        weights.append(w)
    return weights, losses


def by_optimizer(optim):
    w = torch.tensor(1.0, requires_grad=True)
    optimizer = optim.SGD([w], lr=LR, momentum=0)
    weights, losses = [], []
    for _ in range(STEPS):
        loss = (X * w - Y) ** 2
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(w.item())
    return weights, losses


def two_inputs(optim):
    """y = w1 x1 + w2 x2: the two weights share an error, but each has its own partial derivative."""
    x1, x2, y = 100.0, 50.0, 200.0
    w1 = torch.tensor(1.0, requires_grad=True)
    w2 = torch.tensor(1.0, requires_grad=True)
    optimizer = optim.SGD([w1, w2], lr=LR)
    error = w1 * x1 + w2 * x2 - y
    (error**2).backward()
    optimizer.step()
    assert w1.grad is not None and w2.grad is not None
    return {
        "partials_by_hand": [2 * error.item() * x1, 2 * error.item() * x2],
        "partials": [w1.grad.item(), w2.grad.item()],
        "weights": [w1.item(), w2.item()],
    }


def train(optim):
    hand_weights, hand_losses = by_hand()
    weights, losses = by_optimizer(optim)
    return {
        "hand_weights": hand_weights,
        "hand_losses": hand_losses,
        "weights": weights,
        "losses": losses,
        "two_inputs": two_inputs(optim),
    }


def main():
    result = train(optim)
    print("step  loss by hand  by optimizer   w by hand  by optimizer")
    columns = ("hand_losses", "losses", "hand_weights", "weights")
    rows = zip(*(result[column] for column in columns), strict=True)
    for step, (hand_loss, loss, hand_weight, weight) in enumerate(rows, start=1):
        print(f"{step:4d} {hand_loss:13.4f} {loss:13.4f} {hand_weight:11.5f} {weight:13.5f}")
    two = result["two_inputs"]
    print("\ntwo inputs, two weights, one step:")
    print(f"  partial derivatives by hand {two['partials_by_hand']}, by backward {two['partials']}")
    print(f"  weights from 1 and 1 to {two['weights'][0]:.3f} and {two['weights'][1]:.3f}")


if __name__ == "__main__":
    main()
