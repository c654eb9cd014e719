"""Three small nets with data and a loss, the same in every process; torch alone is imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NETS = ("mlp", "cnn", "transformer")


class Block(nn.Module):
    """A pre-norm transformer layer with torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then a hidden layer, each added to what it read."""
        b, t, d = x.shape
        parts = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(read.transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two layers over 16 tokens, mean pooling, 10 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.layers = nn.Sequential(Block(width, 4), Block(width, 4))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layers(self.embed(x)).mean(1))


def net(name: str, quick: bool) -> nn.Module:
    """An untrained model of 10 classes."""
    w = 1 if quick else 4 if name == "mlp" else 2
    if name == "mlp":
        sizes = [nn.Linear(64, 64 * w), nn.Linear(64 * w, 64 * w), nn.Linear(64 * w, 10)]
        return nn.Sequential(sizes[0], nn.Tanh(), sizes[1], nn.Tanh(), sizes[2])
    if name == "cnn":
        first, second = nn.Conv2d(3, 8 * w, 3, padding=1), nn.Conv2d(8 * w, 8 * w, 3, 2, 1)
        # no normalization: group_norm has no forward mode in torch, which curvlinops needs
        last = nn.Linear(8 * w * 64, 10)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last)
    return Transformer(16 * w)


def made(name: str, quick: bool) -> tuple[nn.Module, Any, list[tuple[Tensor, Tensor]]]:
    """Model after twenty steps of SGD, loss, and four batches of data with planted classes."""
    torch.manual_seed(0)
    count, size = 4, 32 if quick else 128 if name == "mlp" else 64
    shape = {"mlp": (64,), "cnn": (3, 16, 16), "transformer": (16, 16)}[name]
    centers = torch.randn(10, *shape)
    y = torch.randint(10, (count * size,))
    x = torch.randn(count * size, *shape) + 0.5 * centers[y]
    model, loss_fn = net(name, quick), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    for step in range(20):
        inputs, targets = batches[step % count]
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval(), loss_fn, batches
