"""Sections about steps on a device: clustering, transformers in large batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Generator, nn
from torch.nn import functional

from device_.here import GIB, Here, Row
from shoal.core.block import Batch
from shoal.core.csr import Csr
from shoal.core.losses import decoupled_softmax
from shoal.core.objectives import Objective, in_batch
from shoal.sample.clusters import balanced_clusters
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
from shoal.text.transformer import TokenTransformer
from shoal.training.gradients import Gradients, gradient_of, trained

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
    model = TokenTransformer(backbone).to(here.device).train()
    batch, tokens = texts(size)
    batch = batch.to(here.device)
    objective = Objective(model, in_batch(decoupled_softmax))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=here.real)

    how = Gradients(precision="bfloat16" if here.real else "float32", chunk=chunk)

    def step() -> None:
        found = gradient_of(objective, [batch], False, how)
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
