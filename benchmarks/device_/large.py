"""Sections about curvature of networks as large as people train: what it costs, what it says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from steps_.nets import Shuffled, forever
from torch import Generator, Tensor, nn
from torch.nn import functional

from device_.here import GIB, Here, Row
from shoal.curvature.measure import spectrum
from shoal.step.find_lr import find_lr
from shoal.step.rules import rates
from shoal.step.size import EDGE, learning_rate

_REFERENCE = 64


@dataclass(frozen=True)
class Large:
    """A network, what it is trained on, and how.

    Attributes:
        build: a model on the host.
        inputs: of all samples, on the device.
        targets: likewise.
        loss_fn: mean over a batch.
        optimizer: of its parameters, with the rate of the warm-up.
        most: the largest batch at which branches are tried; beyond it they take minutes.
    """

    build: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    most: int

    def loader(self, size: int, seed: int) -> Shuffled:
        """Batches of an epoch."""
        return Shuffled(self.inputs, self.targets, size, seed)


def nets(here: Here) -> dict[str, Callable[[], Large]]:
    """The networks by name; each is made when it is its turn."""
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9)  # noqa: E731
    adam = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)  # noqa: E731
    depth, factor = (10, 1) if here.quick else (28, 10)

    def images(build: Callable[[], nn.Module], most: int) -> Callable[[], Large]:
        return lambda: Large(build, *_images(here), functional.cross_entropy, sgd, most)

    def language() -> Large:
        return Large(lambda: _Language(here.quick), *_texts(here), _by_byte, adam, 128)

    return {
        "VGG-16": images(lambda: vgg(here.quick), 1024),
        f"WideResNet-{depth}-{factor}": images(lambda: wide_resnet(depth, factor), 256),
        "transformer, 100 M": language,
    }


def spectra(here: Here) -> Iterator[Row]:
    """What a spectrum costs: seconds, gradient passes over the same batches, memory."""
    for name, make in nets(here).items():
        torch.manual_seed(0)
        net = make()
        model = net.build().to(here.device)
        size = 4 if here.quick else 128
        loader = list(islice(net.loader(size, 0), 2 if here.quick else 8))
        yield {"model": name, "batch": size} | _cost(here, model, net.loss_fn, loader)
        if here.late():
            return


def _cost(here: Here, model: nn.Module, loss: Callable[..., Tensor], loader: list[Any]) -> Row:
    def gradients() -> None:
        for inputs, target in loader:
            torch.autograd.grad(loss(model(inputs), target), list(model.parameters()))

    one = here.seconds(gradients, repeats=3)
    row: Row = {"weights": sum(p.numel() for p in model.parameters()), "gradient s": round(one, 3)}
    for route in ("double-backward", "forward-over-reverse"):
        if here.real:
            torch.cuda.reset_peak_memory_stats(here.device)
        begin = time.perf_counter()
        steps, probes = (3, 1) if here.quick else (20, 4)
        found = spectrum(model, loss, loader, steps=steps, probes=probes, route=route)
        passes = (time.perf_counter() - begin) / one
        short = route.split("-")[0]
        row |= {f"{short}: passes": round(passes, 1), "products": round(found.products, 1)}
        if here.real:
            row[f"{short}: GiB"] = round(torch.cuda.max_memory_allocated(here.device) / GIB, 2)
    return row


def advice(here: Here) -> Iterator[Row]:
    """Rates by batch size after a warm-up, as figures 1 and 2 of the paper, and trial runs there.

    `safe` and `stable` are the measured noise's, `additive` is the paper's; `found` and `edge` are
    of trial runs of 25 steps. From the rate that was found at 64 the last three go to the other
    sizes.
    """
    for name, make in nets(here).items():
        torch.manual_seed(0)
        net = make()
        model = net.build().to(here.device)
        yield from _advice(here, name, net, model)
        if here.late():
            return


def _advice(here: Here, name: str, net: Large, model: nn.Module) -> Iterator[Row]:
    quick = here.quick
    sizes = (32, _REFERENCE) if quick else (32, _REFERENCE, 128, 256, 512, 1024)
    optimizer = net.optimizer(model.parameters())
    began = _warm_up(net, model, optimizer, 4 if quick else 200)
    plain = isinstance(optimizer, torch.optim.SGD)
    found = spectrum(
        model, net.loss_fn, net.loader(_REFERENCE, 1), dataset_size=len(net.inputs), mode="train",
        steps=20, max_batches=2 if quick else 4, precondition=None if plain else optimizer,
    )  # fmt: skip
    began = began if began > 1.1 * found.loss else None
    plans = {
        b: learning_rate(found, b, optimizer, after_warmup=True, initial_loss=began) for b in sizes
    }
    optimizer.param_groups[0]["lr"] = plans[sizes[0]].safe
    fitting = [b for b in sizes if b <= net.most]
    tried = find_lr(
        model,
        net.loss_fn,
        lambda b: net.loader(b, 2),
        optimizer,
        fitting,
        steps=2 if quick else 25,
    )
    known = tried.lr[_REFERENCE]
    for b in sizes:
        carried = rates(found, known, _REFERENCE, b, optimizer, initial_loss=began)
        numbers = {"safe": plans[b].safe, "stable": plans[b].edge / EDGE}
        if plain:
            paper = learning_rate(found, b, optimizer, model="additive", after_warmup=True)
            numbers["additive"] = paper.safe
        numbers |= {"found": tried.lr.get(b, math.nan), "edge": tried.edge.get(b) or math.nan}
        numbers |= {rule: getattr(carried, rule) for rule in ("linear", "sqrt", "spectral")}
        yield {"model": name, "batch": b} | {k: float(f"{x:.3g}") for k, x in numbers.items()}


def _warm_up(net: Large, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Train a little; the loss at which it began."""
    model.train()
    losses = []
    for inputs, targets in islice(forever(net.loader(_REFERENCE, 0)), steps):
        optimizer.zero_grad()
        loss = net.loss_fn(model(inputs), targets)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    return float(torch.stack(losses[:5]).mean())


# -- data and networks -----------------------------------------------------------------------


def _images(here: Here) -> tuple[Tensor, Tensor]:
    """CIFAR-100's images where there is data, else noise, of which only costs mean anything."""
    n = 128 if here.quick else 10_000
    if here.data is None:
        generator = Generator().manual_seed(0)
        x, y = torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 100
    else:
        with np.load(here.data / "cifar100-12k" / "cifar100-12k.npz") as file:
            x = torch.from_numpy(file["x_train"][:n]).permute(0, 3, 1, 2) / 255 - 0.5
            y = torch.from_numpy(file["y_train"][:n]).long()
    return x.contiguous().to(here.device), y.to(here.device)


def _texts(here: Here) -> tuple[Tensor, Tensor]:
    """WordNet's glosses, the bytes of each window and those one further."""
    from shoal.data import load_labels

    n, length = (128, 8) if here.quick else (8192, 32)
    texts = " ".join(load_labels("wordnet").train.texts.all()[: 2 * n]).encode()
    windows = torch.frombuffer(bytearray(texts), dtype=torch.uint8)[: n * (length + 1)]
    windows = windows.view(n, length + 1).long().to(here.device)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _by_byte(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


class _Language(nn.Module):
    """A causal transformer over bytes, norms first."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        width, depth = (32, 1) if quick else (768, 14)
        layer = nn.TransformerEncoderLayer(
            width, max(width // 64, 1), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.bytes, self.places = nn.Embedding(256, width), nn.Parameter(torch.zeros(64, width))
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, 256)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the byte after each."""
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        rows = self.bytes(ids) + self.places[:length]
        return self.out(self.layers(rows, mask=mask, is_causal=True))


class _Wide(nn.Module):
    """A block of a wide residual network (Zagoruyko and Komodakis, 2016)."""

    def __init__(self, m: int, n: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(m), nn.ReLU(), nn.Conv2d(m, n, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n, 3, 1, 1, bias=False),
        )  # fmt: skip
        same = m == n and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(m, n, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body makes to the input."""
        return self.skip(x) + self.body(x)


def wide_resnet(depth: int, factor: int) -> nn.Module:
    """WideResNet-`depth`-`factor` for images of 32 × 32."""
    each = max((depth - 4) // 6, 1)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    width = 16
    for group in range(3):
        for i in range(each):
            wide = 16 * factor * 2**group
            layers.append(_Wide(width, wide, 2 if group and i == 0 else 1))
            width = wide
    return nn.Sequential(
        *layers, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 100),
    )  # fmt: skip


def vgg(quick: bool) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, 2015) with batch normalization, for images of 32 × 32."""
    plan = (
        (8, 0) if quick else (64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3)
    )
    layers: list[nn.Module] = []
    width = 3
    for n in plan:
        if n == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(width, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU()]
        width = n
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 100))
