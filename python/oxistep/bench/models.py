"""Models small enough to be trained on a CPU while one waits, on data made up as they go."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.nn import functional as F


class Model(Protocol):
    title: ClassVar[str]
    module: nn.Module

    def batch(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]: ...

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...


class Mlp:
    """The MLP of the first MNIST tutorial, on batches of 64."""

    title: ClassVar[str] = "MLP 784-256-128-10"
    module: nn.Module

    def __init__(self) -> None:
        layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
        self.module = nn.Sequential(*layers)

    def batch(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(64, 784, generator=generator), torch.randint(10, (64,), generator=generator)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.module(inputs), targets)


class Decoder(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.token(tokens) + self.place.weight
        hidden = self.blocks(hidden, mask=self.mask, is_causal=True)
        return F.linear(hidden, self.token.weight)  # tied


class Gpt:
    """A GPT of 14 million parameters (6 layers of width 384) on two sequences of 64 tokens."""

    title: ClassVar[str] = "GPT, 6 layers of width 384"
    module: nn.Module
    VOCABULARY, CONTEXT, BATCH = 8192, 64, 2

    def __init__(self) -> None:
        self.module = Decoder(self.VOCABULARY, self.CONTEXT, width=384, layers=6, heads=6)

    def batch(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(self.VOCABULARY, (self.BATCH, self.CONTEXT + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.module(inputs).flatten(0, 1), targets.flatten())


MODELS: dict[str, type[Model]] = {"mlp": Mlp, "gpt": Gpt}
