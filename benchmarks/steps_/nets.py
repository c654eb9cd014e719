"""The networks of benchmarks/steps.py: each with its loss, and batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Net:
    """What is trained.

    Attributes:
        name: for the table.
        build: a model from torch's global generator.
        loader: ``(batch size, seed)`` → batches of an epoch, iterated afresh.
        forward: ``(model, batch)`` → outputs.
        loss_fn: ``(outputs, batch)`` → mean over the batch.
        samples: N.
        sampling: how a batch's samples are drawn.
    """

    name: str
    build: Callable[[], nn.Module]
    loader: Callable[[int, int], Any]
    forward: Callable[[nn.Module, Any], Tensor]
    loss_fn: Callable[[Tensor, Any], Tensor]
    samples: int
    sampling: Any = "independent"


class Shuffled:
    """Batches of tensors in a new order each epoch, a function of (seed, epoch); none short."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, seed: int) -> None:
        self.x, self.y, self.batch_size, self.seed, self.epoch = x, y, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(len(self.x), generator=generator)
        for ids in order.split(self.batch_size)[: len(self)]:
            yield self.x[ids], self.y[ids]

    def state_dict(self) -> dict[str, int]:
        """The epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to an epoch."""
        self.epoch = state["epoch"]


def _tensors(
    name: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor, loss: str = "ce"
) -> Net:
    def loss_fn(outputs: Tensor, batch: Any) -> Tensor:
        if loss == "ce":
            return functional.cross_entropy(outputs, batch[1])
        wanted = functional.one_hot(batch[1], outputs.shape[1]).float()
        return (outputs - wanted).square().sum(1).mean() / 2

    return Net(
        name,
        build,
        lambda b, seed: Shuffled(x, y, b, seed),
        lambda model, batch: model(batch[0]),
        loss_fn,
        len(x),
    )


def digits(data: Path | None, quick: bool) -> list[Net]:
    """MLPs 64-32-10 on scikit-learn's digits, 1,536 images: tanh, relu, and tanh with squares."""
    from sklearn.datasets import load_digits

    images: Any = load_digits()
    x = torch.tensor(images.data[:1536] / 16 - 0.3).float()
    y = torch.tensor(images.target[:1536])

    def mlp(act: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(nn.Linear(64, 32), act(), nn.Linear(32, 10))

    nets = [_tensors("tanh-ce", mlp(nn.Tanh), x, y), _tensors("relu-ce", mlp(nn.ReLU), x, y)]
    return nets[:1] if quick else [*nets, _tensors("tanh-mse", mlp(nn.Tanh), x, y, "mse")]


def cifar(norm: str) -> Callable[[Path | None, bool], list[Net]]:
    """A CNN of three layers on the first 20 classes of CIFAR-100, with one kind of norm."""

    def nets(data: Path | None, quick: bool) -> list[Net]:
        if data is None:
            raise SystemExit("set SHOAL_DATA, or pass --data: cifar100-12k is outside data")
        with np.load(data / "cifar100-12k" / "cifar100-12k.npz") as file:
            kept = file["y_train"] < (5 if quick else 20)
            images, y = file["x_train"][kept], file["y_train"][kept]
        x = torch.from_numpy(images).float()
        x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
        x = functional.avg_pool2d(x / 255 - 0.5, 2)
        build = lambda: _cnn(norm)  # noqa: E731
        return [_tensors(f"cnn-{norm}", build, x.contiguous(), torch.from_numpy(y).long())]

    return nets


def _cnn(norm: str) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        layer = nn.GroupNorm(4, b) if norm == "group" else nn.BatchNorm2d(b)
        return [nn.Conv2d(a, b, 3, stride=2, padding=1), layer, nn.ReLU()]

    layers = [*block(3, 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, 20))


class _Transformer(nn.Module):
    def __init__(self, words: int = 32, length: int = 12, d: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, d), nn.Parameter(torch.randn(length, d) / 8)
        layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(d, words)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.layers(self.words(ids) + self.places)[:, 0])


def transformer(data: Path | None, quick: bool) -> list[Net]:
    """Two layers that answer which word stands where the first word's number points to."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(32, (1024 if quick else 4096, 12), generator=generator)
    target = ids[torch.arange(len(ids)), 1 + ids[:, 0] % 3]
    return [_tensors("transformer", _Transformer, ids, target)]


class _Rows(nn.Module):
    """A bag encoder whose token rows are one dense parameter."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        from shoal.models.bag import BagEncoder

        self.rows, self.bag = nn.Parameter(rows.clone()), BagEncoder()

    def forward(self, blocks: Any, src: Tensor) -> Tensor:
        return self.bag(blocks, self.rows[blocks[0].src])


def labels(data: Path | None, quick: bool) -> list[Net]:
    """Label job: unit vectors of bags, the in-batch softmax, on a part of WordNet."""
    from dataclasses import replace
    from functools import partial

    from shoal.data import load
    from shoal.losses import decoupled_softmax
    from shoal.objectives import in_batch
    from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
    from shoal.sample.seeds import RandomBatchSampler
    from shoal.tasks.prepared import prepare

    whole = load("wordnet")
    n = 1024 if quick else 8192
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))
    prepared = prepare(replace(whole, train=whole.train.subset(order[:n])), 0.0, 0)
    side = prepared.side("point")
    rows = prepared.lexicon.vocabulary.first_rows(prepared.tokens, 32, 0)  # pyright: ignore
    blocks = Chain(ShortlistSampler(side.truth), Hop(side.tokens), partial(dst_then_src, offset=n))
    criterion = in_batch(decoupled_softmax)

    def loader(b: int, seed: int) -> Any:
        from shoal.fetch.loader import Loader

        return Loader(RandomBatchSampler(n, b, seed), blocks, None, seed=seed, prefetch=0)

    return [
        Net(
            "labels",
            lambda: _Rows(rows),
            loader,
            lambda model, batch: criterion.scores(model(batch.blocks, batch.src), batch),
            lambda scores, batch: criterion.loss(scores, batch.blocks[-1]),
            n,
            "in-batch",
        )
    ]


def nodes(data: Path | None, quick: bool) -> list[Net]:
    """Node job: GraphSAGE of two layers on WordNet's graph, without dropout."""
    from shoal.data.graphs import load_nodes
    from shoal.fetch.loader import Loader
    from shoal.fetch.unified import unified
    from shoal.models.sage import Sage
    from shoal.objectives import node_cross_entropy
    from shoal.sample.expand import NeighborSampler
    from shoal.sample.seeds import RandomBatchSampler
    from shoal.tasks.graphs import Picked
    from shoal.tasks.rows import feature_rows

    graph = load_nodes("wordnet-graph")
    rows = unified(feature_rows(graph.features, 0)[:, : 32 if quick else 128].contiguous())
    train = graph.train[: 1024 if quick else 8192]

    def loader(b: int, seed: int) -> Any:
        seeds = Picked(train, RandomBatchSampler(len(train), b, seed))
        hops = NeighborSampler(graph.graph, (5, 3))
        return Loader(seeds, hops, rows, graph.target, seed=seed, prefetch=0)

    return [
        Net(
            "nodes",
            lambda: Sage(rows.shape[1], 32, len(graph.class_names), 2, 0.0),
            loader,
            lambda model, batch: model(batch.blocks, batch.src),
            node_cross_entropy,
            len(train),
            "neighborhoods",
        )
    ]


SECTIONS: dict[str, Callable[[Path | None, bool], list[Net]]] = {
    "digits": digits,
    "cnn-group": cifar("group"),
    "cnn-batch": cifar("batch"),
    "transformer": transformer,
    "labels": labels,
    "nodes": nodes,
}
