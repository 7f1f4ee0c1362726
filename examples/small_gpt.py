"""A small GPT that learns to write this project's documentation, character by character, on the CPU.

`--optim torch` trains it with torch.optim instead; `--fused` with torch's fused AdamW. The losses are the same, the
time of a step is not. Prints both, and what part of an iteration the optimizer takes.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

import oxistep.optim

PROJECT = Path(__file__).resolve().parents[1]


def read_text():
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


class Block(nn.Module):
    """Attention and a perceptron, each on top of what came in."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):  # (batch, time, width)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Characters in, the next character's scores out."""

    def __init__(self, characters, context, width, layers, heads=4):
        super().__init__()
        self.context = context
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens):  # (batch, time)
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, tokens, length):
        for _ in range(length):
            scores = self(tokens[:, -self.context :])[:, -1]
            tokens = torch.cat([tokens, torch.multinomial(F.softmax(scores, dim=-1), 1)], dim=1)
        return tokens


def train(optim, steps=100, width=64, layers=2, context=64, batch=8, fused=None):
    text = read_text()
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    data = torch.tensor([number[character] for character in text])

    torch.manual_seed(0)
    model = GPT(len(characters), context, width, layers)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=fused)
    losses, whole, in_step = [], [], []
    for _ in range(steps):
        starts = torch.randint(len(data) - context, (batch, 1))
        window = data[starts + torch.arange(context + 1)]
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        before = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        whole.append(end - begin)
        in_step.append(end - before)
        losses.append(loss.item())

    written = model.write(torch.tensor([[number["\n"]]]), 200)[0, 1:].tolist()
    return {
        "losses": losses,
        "parameters": sum(p.numel() for p in model.parameters()),
        "written": "".join(characters[i] for i in written),
        "iteration": median(whole),
        "step": median(in_step),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--optim", choices=("oxistep", "torch"), default="oxistep", help="whose AdamW (default: oxistep)"
    )
    parser.add_argument("--fused", action="store_true", help="torch's fused AdamW instead of its for-loop")
    parser.add_argument("--steps", type=int, default=100, help="iterations (default: 100; about 2,000 give words)")
    parser.add_argument("--width", type=int, default=64, help="of the model, a multiple of 4 (default: 64)")
    parser.add_argument("--layers", type=int, default=2, help="default: 2")
    parser.add_argument("--context", type=int, default=64, help="characters that it sees (default: 64)")
    parser.add_argument("--batch", type=int, default=8, help="pieces of text in an iteration (default: 8)")
    given = parser.parse_args()
    if min(given.steps, given.width, given.layers, given.context, given.batch) < 1:
        parser.error("--steps, --width, --layers, --context and --batch must be 1 or more")
    if given.width % 4:
        parser.error(f"--width must be a multiple of 4, got {given.width}")

    optim = oxistep.optim if given.optim == "oxistep" else torch.optim
    result = train(optim, given.steps, given.width, given.layers, given.context, given.batch, given.fused or None)
    first, last = result["losses"][0], result["losses"][-1]
    print(f"{result['parameters']:,} parameters, loss {first:.3f} -> {last:.3f}, then it writes:")
    print(result["written"].strip())
    iteration, step = result["iteration"], result["step"]
    part = f"{step * 1e3:.3f} ms of it the step of AdamW ({step / iteration:.1%})"
    print(f"{given.optim}: {iteration * 1e3:.2f} ms an iteration, {part}")


if __name__ == "__main__":
    main()
