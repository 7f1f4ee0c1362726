"""Small trainings whose end is compared between settings: each gives the mean loss of its last steps.

All of them end at a loss that is far from zero, so that it can be compared, and all of their tensors that matter have
4,096 elements or more, below which states are kept in float32 whatever is asked.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def _example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mean_of_last(losses, share=0.2):
    last = losses[-int(len(losses) * share) :]
    return sum(last) / len(last)


def gpt_losses(make, seed, steps):
    """Of a GPT of one layer that learns the text of the licence, character by character."""
    text = (ROOT / "LICENSE-APACHE").read_text(encoding="utf-8")
    characters = sorted(set(text))
    data = torch.tensor([characters.index(character) for character in text])
    torch.manual_seed(seed)
    model = _example("small_gpt").GPT(len(characters), context=32, width=64, layers=1)
    optimizer = make(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - 32, (8, 1), generator=generator)
        window = data[starts + torch.arange(33)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gpt(make, seed, steps=100):
    """The end of that training."""
    return _mean_of_last(gpt_losses(make, seed, steps))


def quadratic(make, seed, steps=300):
    """tr(X' H X) / 2 whose curvatures reach from 1e-4 to 1, in no axis of X, with gradients that are noisy."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))
    curvature = ((basis * torch.logspace(-4, 0, 64, dtype=torch.float64)) @ basis.T).float()
    x = torch.randn(64, 96, generator=generator).requires_grad_()
    optimizer = make([x])
    losses = []
    for _ in range(steps):
        slope = curvature @ x.detach()
        losses.append((x.detach() * slope).sum().item() / 2)
        x.grad = slope + 0.01 * torch.randn(x.shape, generator=generator)
        optimizer.step()
    return _mean_of_last(losses)


def rare_rows(make, seed, steps=250):
    """An embedding of 1,024 words, most of which a batch does not hold, and a word's class. All words count alike."""
    generator = torch.Generator().manual_seed(seed)
    often = 1 / torch.arange(1.0, 1025)
    labels = torch.randint(16, (1024,), generator=generator)
    torch.manual_seed(seed)
    table, head = nn.Embedding(1024, 32), nn.Linear(32, 16)
    optimizer = make([*table.parameters(), *head.parameters()])
    losses = []
    for _ in range(steps):
        words = torch.multinomial(often, 128, replacement=True, generator=generator)
        wrong = torch.randint(16, (128,), generator=generator)
        said = torch.where(torch.rand(128, generator=generator) < 0.2, wrong, labels[words])
        optimizer.zero_grad()
        F.cross_entropy(head(table(words)), said).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(head(table.weight), labels).item())
    return _mean_of_last(losses)


def digits(make, seed, steps=150):
    """The perceptron of examples/digits_mlp.py on scikit-learn's digits, the first 1,500 of a shuffle, a fifth of whose
    labels are wrong: else the loss would come near zero.
    """
    x, y = _example("digits_mlp").read_digits()
    generator = torch.Generator().manual_seed(seed)
    learn = torch.randperm(len(x), generator=generator)[:1500]
    wrong = torch.randint(10, (1500,), generator=generator)
    x, y = x[learn], torch.where(torch.rand(1500, generator=generator) < 0.2, wrong, y[learn])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        rows = torch.randint(1500, (64,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return _mean_of_last(losses)


TRAININGS = {"GPT": gpt, "quadratic": quadratic, "rare rows": rare_rows, "digits": digits}
