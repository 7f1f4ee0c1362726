"""A perceptron that reads handwritten digits, 1,797 of them, in a few seconds.

`--optim torch` trains it with torch.optim instead; `--fused` with torch's fused Adam. The accuracy is the same, the
time of a step is not. Prints both, and what part of an iteration the optimizer takes.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

import oxistep.optim

DATA = Path(__file__).resolve().parent / "data" / "digits.csv.gz"


def read_digits():
    """Pictures (1797, 64) between 0 and 1, and digits (1797,)."""
    table = torch.from_numpy(np.loadtxt(DATA, delimiter=",", dtype=np.float32))
    return table[:, :-1] / 16, table[:, -1].long()


def train(optim, epochs=10, width=256, batch=64, fused=None):
    x, y = read_digits()
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    learn, check = order[:1500], order[1500:]
    model = torch.nn.Sequential(
        torch.nn.Linear(64, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )
    optimizer = optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    losses, whole, in_step = [], [], []
    for _ in range(epochs):
        for rows in learn[torch.randperm(len(learn))].split(batch):
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            before = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            whole.append(end - begin)
            in_step.append(end - before)
            losses.append(loss.item())
    with torch.no_grad():
        right = (model(x[check]).argmax(1) == y[check]).float().mean().item()
    return {"losses": losses, "right": right, "iteration": median(whole), "step": median(in_step)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--optim", choices=("oxistep", "torch"), default="oxistep", help="whose Adam (default: oxistep)"
    )
    parser.add_argument("--fused", action="store_true", help="torch's fused Adam instead of its for-loop")
    parser.add_argument("--epochs", type=int, default=10, help="times that all digits are seen (default: 10)")
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers (default: 256)")
    parser.add_argument("--batch", type=int, default=64, help="digits in an iteration (default: 64)")
    given = parser.parse_args()
    if min(given.epochs, given.width, given.batch) < 1:
        parser.error("--epochs, --width and --batch must be 1 or more")

    optim = oxistep.optim if given.optim == "oxistep" else torch.optim
    result = train(optim, given.epochs, given.width, given.batch, given.fused or None)
    first, last = result["losses"][0], result["losses"][-1]
    print(f"loss {first:.3f} -> {last:.3f}; {result['right']:.1%} of 297 digits not seen before are read")
    iteration, step = result["iteration"], result["step"]
    part = f"{step * 1e6:.0f} µs of it the step of Adam ({step / iteration:.1%})"
    print(f"{given.optim}: {iteration * 1e6:.0f} µs an iteration, {part}")


if __name__ == "__main__":
    main()
