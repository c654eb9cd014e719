"""``shoal data``, ``convert`` and ``cluster``: what can be done with data before training."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

import shoal
from shoal.core.errors import expect_positive
from shoal.tasks.settings import Common, File, Source, Table


@dataclass(frozen=True, kw_only=True)
class Data(Common):
    """Describe a data set: examples, labels, frequencies, what is empty."""

    source: Source
    """The data: a name, a folder or a file that shoal.load reads."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Convert(Common):
    """Write a data set in another format, and say what that format cannot hold."""

    source: Source
    """The data: a name, a folder or a file that shoal.load reads."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The file or folder to make."""
    to: Annotated[str, tyro.conf.arg(metavar="FORMAT")]
    """The format: xc, npz, pecos, text2text, beir, attentionxml, annif, bow, csv, tsv, jsonl, or
    parquet, which needs the extra of that name."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Cluster(Common):
    """Cluster examples and measure how hard their batches are: sizes, seconds, negatives found."""

    source: Source
    """The data: a name, a folder or a file that shoal.load reads."""
    run: File = None
    """A trained run whose encoder embeds the examples; an untrained bag (tf-idf) without."""
    batch_size: int = 1024
    """Examples per batch."""
    cluster_size: int = 64
    """Examples per cluster; must divide the batch size."""
    dim: int = 256
    """Width of the untrained bag's embeddings."""
    sample: int = 2000
    """Number of examples whose true hardest negatives are searched for."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """Where to compute: auto (the strongest that works), cpu, cuda, cuda:1, mps."""
    table: Table = field(default_factory=Table)


def describe(asked: Data) -> dict[str, Any]:
    """Run ``shoal data``: count what a data set holds.

    Raises:
        InputError: if it is missing or damaged.
    """
    from shoal.data import graphs, is_graph, load_labels
    from shoal.data.describe import describe as describe_labels
    from shoal.data.meant import doubt

    if is_graph(asked.source):
        return graphs.describe(asked.source)
    data = load_labels(asked.source, **asked.table.arguments())
    refused = doubt(data)
    if refused is not None:
        logging.getLogger("shoal").warning("training refuses this: %s", refused)
    return describe_labels(data)


def convert(asked: Convert) -> dict[str, Any]:
    """Run ``shoal convert``.

    Raises:
        InputError: if the data cannot be read, or not be written in that format.
    """
    from shoal.data.formats import convert as write

    return write(asked.source, asked.out, asked.to, **asked.table.arguments())


def cluster(asked: Cluster) -> dict[str, Any]:
    """Run ``shoal cluster``: sizes, seconds, and how hard the batches' negatives are.

    Raises:
        InputError: for any bad setting or input.
    """
    from shoal.data import load_labels
    from shoal.models.base import resolve_device

    expect_positive("dim", asked.dim)
    data = load_labels(asked.source, **asked.table.arguments())
    n, device = len(data.train), resolve_device(asked.device)
    if asked.run is None:
        spec = shoal.BagEncoder(dim=asked.dim)
        about = {"seed": asked.seed, "device": device, "folder": None}
        described = data.train.describing(data.labels)
        encoder, tokens = spec.begin(data.train.texts, described, **about)
        documents, labels = tokens.span(0, n), tokens.span(n, tokens.n_rows)
    else:
        encoder = shoal.open(asked.run, device=device).encoder
        documents, labels = (
            encoder.documents(data.train.texts),
            encoder.labels(data.train.describing(data.labels)),
        )
    vectors, keys = encoder.embed(documents), encoder.embed_labels(labels)
    clustered = shoal.ClusterBatchSampler(n, asked.batch_size, asked.cluster_size, asked.seed)
    begin = time.monotonic()
    clustered.refresh(vectors)
    seconds = time.monotonic() - begin
    truth = data.train.labels.to(device)
    recall = partial(
        shoal.hard_negative_recall,
        vectors,
        keys,
        truth,
        shortlist=shoal.ShortlistSampler(truth),
        sample=asked.sample,
        seed=asked.seed,
    )
    random = shoal.RandomBatchSampler(n, asked.batch_size, asked.seed)
    return {
        "data": data.name,
        "examples": n,
        "clusters": -(-n // asked.cluster_size),
        "cluster_size": asked.cluster_size,
        "batch_size": asked.batch_size,
        "seconds": round(seconds, 3),
        "hard_negative_recall": {
            name: {f"k={k}": round(100 * share, 3) for k, share in recall(batches=it).items()}
            for name, it in (("random", random), ("clustered", clustered))
        },
    }
