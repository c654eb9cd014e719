"""Sections about steps on a device: clustering, transformers in large batches, curvature."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from device_.here import GIB, Here, Row
from shoal.block import Batch
from shoal.csr import Csr
from shoal.curvature.measure import spectrum
from shoal.gradients import gradient_of, trained
from shoal.losses import decoupled_softmax
from shoal.models.transformer import TransformerEncoder
from shoal.objectives import Objective, in_batch
from shoal.sample.clusters import balanced_clusters
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src

_WORDS = 30_000


def clusters(here: Here) -> Iterator[Row]:
    """Balanced clusters of 64 of as many rows as a large encoder's data has."""
    n = 5000 if here.quick else 1_300_000
    rows = functional.normalize(torch.randn(n, 768, device=here.device), dim=1)
    seconds = here.seconds(lambda: balanced_clusters(rows, 64, 0), repeats=3)
    yield {"points": n, "width": 768, "clusters of": 64, "seconds": round(seconds, 2)}


def product_rate(here: Here, size: int) -> float:
    """Floating-point operations a second of a matrix product in bfloat16."""
    x = torch.randn(size, size, device=here.device, dtype=torch.bfloat16)
    return 2 * size**3 / here.seconds(lambda: x @ x)


def transformers(here: Here) -> Iterator[Row]:
    """Steps of two shapes of BERT on random texts of 8 to 32 tokens, in bfloat16.

    Useful operations are 6 a weight and token, padding and embeddings left out; the model of memory
    is 16 bytes a weight (it, its gradient, Adam's moments) and 34 bytes a token, layer and unit of
    width (Korthikanti et al., "Reducing activation recomputation", 2022, equation 1, attention
    fused) for as many texts as are computed at a time.
    """
    peak = product_rate(here, 256 if here.quick else 8192)
    shapes = {"6 x 384": (6, 384), "12 x 768": (12, 768)}
    sizes = (32,) if here.quick else (1600, 6400)
    for name, (depth, width) in shapes.items():
        for size in sizes:
            for chunk in (None, 2048):
                yield {"model": name, "batch": size, "chunk": chunk or "all"} | _steps(
                    here, (depth, width), size, chunk, peak
                )
                if here.late():
                    return


def _steps(here: Here, shape: tuple[int, int], size: int, chunk: int | None, peak: float) -> Row:
    from transformers import BertConfig, BertModel

    depth, width = shape
    config = BertConfig(
        vocab_size=_WORDS,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    backbone: nn.Module = BertModel(config, add_pooling_layer=False)
    model = TransformerEncoder(backbone).to(here.device).train()
    batch, tokens = texts(size)
    batch = batch.to(here.device)
    objective = Objective(model, in_batch(decoupled_softmax))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=here.real)

    def step() -> None:
        found = gradient_of(objective, [batch], False, autocast=here.real, chunk=chunk)
        for name, weight in trained(model).items():
            weight.grad = found.dense[name]
        optimizer.step()

    if here.real:
        torch.cuda.reset_peak_memory_stats(here.device)
    seconds = here.seconds(step, repeats=3)
    weights = sum(p.numel() for p in model.parameters())
    useful = 6 * (weights - model.backbone.embeddings.word_embeddings.weight.numel()) * tokens
    row: Row = {
        "ms": round(seconds * 1e3, 1),
        "tokens/s": round(tokens / seconds),
        "useful share of the matrix-product peak": round(useful / seconds / peak, 3),
    }
    if here.real:
        at_once = tokens if chunk is None else tokens * min(1.0, chunk / len(batch.blocks[0].dst))
        model_of_it = (16 * weights + 34 * depth * width * at_once) / GIB
        held = torch.cuda.max_memory_allocated(here.device) / GIB
        row |= {"GiB": round(held, 2), "GiB by the model": round(model_of_it, 2)}
    return row


def texts(size: int, seed: int = 0) -> tuple[Batch, int]:
    """A batch of documents and their labels, and how many tokens they have."""
    generator = Generator().manual_seed(seed)
    lengths = torch.randint(8, 33, (2 * size,), generator=generator)
    indptr = functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.randint(5, _WORDS, (int(indptr[-1]),), generator=generator)
    tokens = Csr(indptr, ids.int(), _WORDS)
    truth = Csr.from_lists([[i] for i in range(size)], n_cols=size)
    rows = partial(dst_then_src, offset=size)
    seeds = torch.arange(size)
    blocks = tuple(Chain(ShortlistSampler(truth), Hop(tokens), rows)(seeds, generator))
    return Batch(seeds, blocks, torch.zeros(len(blocks[0].src), 0)), len(ids)


# -- curvature -------------------------------------------------------------------------------


def spectra(here: Here) -> Iterator[Row]:
    """What a spectrum costs: seconds, gradient passes over the same batches, memory."""
    quick = here.quick
    made: dict[str, Callable[[], tuple[nn.Module, Tensor, Callable[..., Tensor]]]] = {
        "WideResNet-28-10": lambda: _images(wide_resnet(*((2, 1) if quick else (28, 10))), quick),
        "VGG-16": lambda: _images(vgg(quick), quick),
        "transformer, 100 M": lambda: _language(quick),
    }
    for name, make in made.items():
        torch.manual_seed(0)
        model, inputs, loss = make()
        model.to(here.device)
        loader = [_labelled(inputs, model, i, here) for i in range(2 if here.quick else 8)]
        yield {"model": name} | _cost(here, model, loss, loader)
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


def _labelled(inputs: Tensor, model: nn.Module, seed: int, here: Here) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    if inputs.is_floating_point():
        inputs = torch.randn(inputs.shape, generator=generator)
    else:
        inputs = torch.randint(1000, inputs.shape, generator=generator)
    target = torch.randint(10, (len(inputs),), generator=generator)
    return inputs.to(here.device), target.to(here.device)


def _images(model: nn.Module, quick: bool) -> tuple[nn.Module, Tensor, Callable[..., Tensor]]:
    return model, torch.zeros(4 if quick else 128, 3, 32, 32), functional.cross_entropy


def _language(quick: bool) -> tuple[nn.Module, Tensor, Callable[..., Tensor]]:
    width, depth, length = (32, 1, 8) if quick else (768, 14, 128)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(1000, width),
        nn.TransformerEncoder(layer, depth, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(width * length, 10),
    )
    return model, torch.zeros(16, length, dtype=torch.int64), functional.cross_entropy


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
        nn.Linear(width, 10),
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
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
