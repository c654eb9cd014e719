"""The networks of benchmarks/steps.py and schedules.py: losses, batches of any size, accuracy."""

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
        accuracy: of a model on the first or second half of what is held out, in per cent.
        held: of a model, its mean loss on what is held out; None where nothing is.
    """

    name: str
    build: Callable[[], nn.Module]
    loader: Callable[[int, int], Any]
    forward: Callable[[nn.Module, Any], Tensor]
    loss_fn: Callable[[Tensor, Any], Tensor]
    samples: int
    sampling: Any = "independent"
    accuracy: Callable[[nn.Module, int], float] | None = None
    held: Callable[[nn.Module], float] | None = None


def forever(loader: Any) -> Iterator[Any]:
    """Epoch after epoch; shoal's own loaders count theirs themselves.

    Yields:
        batches.
    """
    while True:
        yield from loader
        if hasattr(loader, "epoch"):
            loader.epoch += not hasattr(loader, "position")


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
    name: str,
    build: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    held: tuple[Tensor, Tensor],
    loss: str = "ce",
) -> Net:
    def loss_fn(outputs: Tensor, batch: Any) -> Tensor:
        if loss == "ce":
            return functional.cross_entropy(outputs, batch[1])
        if loss == "regression":
            return functional.mse_loss(outputs, batch[1])
        wanted = functional.one_hot(batch[1], outputs.shape[1]).float()
        return (outputs - wanted).square().sum(1).mean() / 2

    return Net(
        name,
        build,
        lambda b, seed: Shuffled(x, y, b, seed),
        lambda model, batch: model(batch[0]),
        loss_fn,
        len(x),
        accuracy=lambda model, half: _accuracy(model, *(part.chunk(2)[half] for part in held)),
        held=lambda model: _held_loss(model, loss_fn, *held),
    )


@torch.no_grad()
def _held_loss(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> float:
    model.eval()
    parts = [
        len(a) * float(loss_fn(model(a), (a, b)))
        for a, b in zip(x.split(512), y.split(512), strict=True)
    ]
    return sum(parts) / len(x)


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    right = [
        (model(a).argmax(1) == b).sum() for a, b in zip(x.split(512), y.split(512), strict=True)
    ]
    return 100 * float(sum(right)) / len(y)


def digits(data: Path | None, quick: bool) -> list[Net]:
    """MLPs 64-32-10 on scikit-learn's digits, 1,536 images: tanh, relu, and tanh with squares."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    images: Any = load_digits()
    x, y = torch.tensor(images.data / 16 - 0.3).float(), torch.tensor(images.target)
    data_of = {"x": x[:1536], "y": y[:1536], "held": (x[1536:], y[1536:])}

    def mlp(act: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(nn.Linear(64, 32), act(), nn.Linear(32, 10))

    nets = [_tensors("tanh-ce", mlp(nn.Tanh), **data_of)]
    if quick:
        return nets
    nets += [_tensors("relu-ce", mlp(nn.ReLU), **data_of)]
    return [*nets, _tensors("tanh-mse", mlp(nn.Tanh), **data_of, loss="mse")]


def cifar(
    name: str, build: Callable[[], nn.Module], classes: int = 20
) -> Callable[[Path | None, bool], list[Net]]:
    """A network on the first classes of CIFAR-100, at 16 x 16."""

    def nets(data: Path | None, quick: bool) -> list[Net]:
        if data is None:
            raise SystemExit("set SHOAL_DATA, or pass --data: cifar100-12k is outside data")
        with np.load(data / "cifar100-12k" / "cifar100-12k.npz") as file:
            train, held = (
                _images(file, part, 5 if quick else classes) for part in ("train", "test")
            )
        return [_tensors(name, build, *train, held)]

    return nets


def _images(file: Any, part: str, classes: int) -> tuple[Tensor, Tensor]:
    kept = file[f"y_{part}"] < classes
    x = torch.from_numpy(file[f"x_{part}"][kept]).float().permute(0, 3, 1, 2)
    x = functional.avg_pool2d(x / 255 - 0.5, 2).contiguous()
    return x, torch.from_numpy(file[f"y_{part}"][kept]).long()


def _cnn(norm: str) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        layer = nn.GroupNorm(4, b) if norm == "group" else nn.BatchNorm2d(b)
        return [nn.Conv2d(a, b, 3, stride=2, padding=1), layer, nn.ReLU()]

    layers = [*block(3, 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, 20))


class _Residual(nn.Module):
    """A block of PreResNet (He et al., 1603.05027): norm, relu, convolution, twice."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(a), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Conv2d(a, b, 3, stride, 1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
            nn.Conv2d(b, b, 3, 1, 1, bias=False),
        )
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.first(x)
        return self.rest(active) + self.skip(x if isinstance(self.skip, nn.Identity) else active)


def _pre_resnet() -> nn.Module:
    """PreResNet-8: three stages of 16, 32 and 64 channels, one block each."""
    stages = [_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2)]
    tail = [
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 100),
    ]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *stages, *tail)


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
    generator, n = torch.Generator().manual_seed(0), 1024 if quick else 4096
    ids = torch.randint(32, (n + 1024, 12), generator=generator)
    target = ids[torch.arange(len(ids)), 1 + ids[:, 0] % 3]
    held = ids[n:], target[n:]
    return [_tensors("transformer", _Transformer, ids[:n], target[:n], held)]


def regression(data: Path | None, quick: bool) -> list[Net]:
    """An MLP of 16-64-64-1 on a smooth function of 16 numbers, with noise."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5120, 16, generator=generator)
    inner = x @ torch.randn(16, 6, generator=generator) / 4
    y = inner.sin().sum(1, keepdim=True) + 0.1 * torch.randn(5120, 1, generator=generator)

    def build() -> nn.Module:
        layers = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
        return nn.Sequential(*layers)

    held = x[4096:], y[4096:]
    return [_tensors("regression", build, x[:4096], y[:4096], held, loss="regression")]


class _Factors(nn.Module):
    """A row of 16 numbers for each user and item; a rating is their product."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, 16), nn.Embedding(items, 16)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1, keepdim=True)


def factors(data: Path | None, quick: bool) -> list[Net]:
    """Matrix factorization: 9,216 ratings of 200 users and 150 items, of rank 4, with noise."""
    generator, n = torch.Generator().manual_seed(6), 10_240
    users = torch.randn(200, 4, generator=generator)
    items = torch.randn(150, 4, generator=generator)
    drawn = [torch.randint(most, (n,), generator=generator) for most in (200, 150)]
    pairs = torch.stack(drawn, 1)
    ratings = (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1, keepdim=True) / 2
    ratings += 0.2 * torch.randn(n, 1, generator=generator)
    held = pairs[9216:], ratings[9216:]
    build = lambda: _Factors(200, 150)  # noqa: E731
    return [_tensors("factors", build, pairs[:9216], ratings[:9216], held, loss="regression")]


class _Letters(nn.Module):
    """The next letter: a GRU of 64, or a causal transformer of two layers, 48 wide."""

    def __init__(self, kind: str, letters: int, length: int) -> None:
        super().__init__()
        d = 64 if kind == "gru" else 48
        self.letters, self.kind = nn.Embedding(letters, d), kind
        if kind == "gru":
            self.inner: nn.Module = nn.GRU(d, d, batch_first=True)
        else:
            self.places = nn.Parameter(torch.randn(length, d) / 8)
            layer = nn.TransformerEncoderLayer(
                d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=True
            )
            self.inner = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))
        self.out = nn.Linear(d, letters)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.letters(ids)
        if self.kind == "gru":
            return self.out(self.inner(x)[0]).flatten(0, 1)
        return self.out(self.inner(x + self.places, mask=self.mask)).flatten(0, 1)


def letters(kind: str) -> Callable[[Path | None, bool], list[Net]]:
    """The next letter of WordNet's definitions, in pieces of 24."""

    def nets(data: Path | None, quick: bool) -> list[Net]:
        from shoal.data import load_labels

        texts = load_labels("wordnet").train.texts.all()
        whole = " ".join(texts[:6000:2]).lower()
        known = sorted({*whole})
        number = {letter: i for i, letter in enumerate(known)}
        ids = torch.tensor([number[x] for x in whole[: 25 * 5120]]).view(5120, 25)
        x, y = ids[:, :-1], ids[:, 1:]

        def loss_fn(outputs: Tensor, batch: Any) -> Tensor:
            return functional.cross_entropy(outputs, batch[1].flatten())

        return [
            Net(
                kind,
                lambda: _Letters(kind, len(known), 24),
                lambda b, seed: Shuffled(x[:4096], y[:4096], b, seed),
                lambda model, batch: model(batch[0]),
                loss_fn,
                4096,
                held=lambda model: _held_loss(model, loss_fn, x[4096:], y[4096:]),
            )
        ]

    return nets


class _Rows(nn.Module):
    """A bag encoder whose token rows are one dense parameter."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        from shoal.text.bag import BagSum

        self.rows, self.bag = nn.Parameter(rows.clone()), BagSum()

    def forward(self, blocks: Any, src: Tensor) -> Tensor:
        return self.bag(blocks, self.rows[blocks[0].src])


def labels(data: Path | None, quick: bool) -> list[Net]:
    """Label job: unit vectors of bags, the in-batch softmax, on a part of WordNet."""
    from functools import partial

    from shoal.core.losses import decoupled_softmax
    from shoal.core.objectives import in_batch
    from shoal.data import load_labels
    from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
    from shoal.sample.seeds import RandomBatchSampler
    from shoal.text.bag import BagEncoder

    whole = load_labels("wordnet")
    n = 1024 if quick else 8192
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))
    train, spec = whole.train.subset(order[:n]), BagEncoder(dim=32)
    bag, tokens = spec.begin(train.texts, whole.labels, seed=0, device="cpu", folder=None)
    rows = bag.rows
    blocks = Chain(ShortlistSampler(train.labels), Hop(tokens), partial(dst_then_src, offset=n))
    criterion = in_batch(decoupled_softmax)

    def loader(b: int, seed: int) -> Any:
        from shoal.training.loader import Loader

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
    from shoal.core.objectives import node_cross_entropy
    from shoal.data.graphs import load_nodes
    from shoal.fetch.unified import unified
    from shoal.graph.features import feature_rows
    from shoal.graph.layers import full_graph
    from shoal.graph.sage import Sage
    from shoal.sample.expand import NeighborSampler
    from shoal.sample.seeds import RandomBatchSampler, Subset
    from shoal.training.loader import Loader

    graph = load_nodes("wordnet-graph")
    assert graph.features is not None
    rows = unified(feature_rows(graph.features, 0)[:, : 32 if quick else 128].contiguous())
    order = torch.randperm(len(graph.train), generator=torch.Generator().manual_seed(0))
    train = graph.train[order[: 1024 if quick else 8192]]

    def loader(b: int, seed: int) -> Any:
        seeds = Subset(train, RandomBatchSampler(len(train), b, seed))
        hops = NeighborSampler(graph.graph, (5, 3))
        return Loader(seeds, hops, rows, graph.target, seed=seed, prefetch=0)

    def accuracy(model: Any, half: int) -> float:
        ids = (graph.valid, graph.test)[half]
        model.eval()
        with torch.no_grad():
            found = full_graph(model, graph.graph, rows.as_subclass(Tensor))[ids].argmax(1)
        return 100 * float((found == graph.target[ids]).float().mean())

    return [
        Net(
            "nodes",
            lambda: Sage(rows.shape[1], 32, len(graph.class_names), 2, 0.0),
            loader,
            lambda model, batch: model(batch.blocks, batch.src),
            node_cross_entropy,
            len(train),
            "neighborhoods",
            accuracy,
        )
    ]


SECTIONS: dict[str, Callable[[Path | None, bool], list[Net]]] = {
    "digits": digits,
    "cnn-group": cifar("cnn-group", lambda: _cnn("group")),
    "cnn-batch": cifar("cnn-batch", lambda: _cnn("batch")),
    "pre-resnet": cifar("pre-resnet", _pre_resnet, 100),
    "transformer": transformer,
    "regression": regression,
    "factors": factors,
    "gru": letters("gru"),
    "gpt": letters("gpt"),
    "labels": labels,
    "nodes": nodes,
}
