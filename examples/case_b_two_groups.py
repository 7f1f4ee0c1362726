"""Case B: two layers as two parameter groups; freezing, late unfreezing, a lower learning rate.

The first part trains y = x w1 w2 as two one-weight layers. The second does what one does with a
pretrained network: train the head with the body frozen, then let the body follow, then slow down.
"""

import torch
from torch import nn

import oxistep.optim as optim


def two_layers(optim):
    x, y = torch.tensor([[100.0]]), torch.tensor([[110.0]])
    first = nn.Linear(1, 1, bias=False)
    second = nn.Linear(1, 1, bias=False)
    nn.init.ones_(first.weight)
    nn.init.ones_(second.weight)
    optimizer = optim.SGD([{"params": first.parameters()}, {"params": second.parameters()}], lr=1e-5)
    for _ in range(10):
        loss = ((second(first(x)) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"w1": first.weight.item(), "w2": second.weight.item()}


def fine_tune(optim):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = torch.sin(x).sum(dim=1, keepdim=True)
    first = nn.Linear(4, 16)
    body = nn.Sequential(first, nn.Tanh())
    head = nn.Linear(16, 1)
    optimizer = optim.Adam(
        [
            {"params": body.parameters(), "lr": 0.005},
            {"params": head.parameters(), "lr": 0.02},
        ]
    )
    body_at_start = first.weight.detach().clone()
    body.requires_grad_(False)  # frozen: no gradients, so the optimizer leaves it alone

    losses = []
    for step in range(300):
        if step == 100:
            body_moved_while_frozen = (first.weight - body_at_start).abs().max().item()
            body.requires_grad_(True)  # the body gets its first gradient now
        if step == 200:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        loss = nn.functional.mse_loss(head(body(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return {
        "losses": losses,
        "body_moved_while_frozen": body_moved_while_frozen,
        "body_moved": (first.weight - body_at_start).abs().max().item(),
        # Each parameter counts its own steps, so a late one starts with a fresh bias correction.
        "body_steps": int(optimizer.state[first.weight]["step"]),
        "head_steps": int(optimizer.state[head.weight]["step"]),
        "lrs": [group["lr"] for group in optimizer.param_groups],
        "body": first.weight.flatten().tolist(),
        "head": head.weight.flatten().tolist(),
    }


def train(optim):
    return {"two_layers": two_layers(optim), "fine_tune": fine_tune(optim)}


def main():
    result = train(optim)
    layers, tuned = result["two_layers"], result["fine_tune"]
    print(f"two one-weight layers after 10 steps: w1 = {layers['w1']:.5f}, w2 = {layers['w2']:.5f}")
    losses, frozen, moved = tuned["losses"], tuned["body_moved_while_frozen"], tuned["body_moved"]
    print("fine-tuning, loss:")
    print(f"  at the start               {losses[0]:.4f}")
    print(f"  100 steps, body frozen     {losses[99]:.4f}  (body moved by {frozen:g})")
    print(f"  100 steps, both            {losses[199]:.4f}")
    print(f"  100 steps, a tenth the lr  {losses[299]:.4f}  (body moved by {moved:.3f})")
    print(f"steps taken: head {tuned['head_steps']}, body {tuned['body_steps']}")


if __name__ == "__main__":
    main()
