"""Who is in the batches: which sampler, and when it sees new embeddings.

A specification is called with the number of examples and a seed, which are known when data is
there, and makes a batch sampler. :class:`Clustered` and :class:`Random` shrink their batches to
data that is smaller; any other function ``(n, seed)`` → batch sampler will do as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, expect_positive
from shoal.sample.seeds import ClusterBatchSampler, RandomBatchSampler

_log = logging.getLogger("shoal")


@dataclass(frozen=True)
class Clustered:
    """NGAME's batches: whole clusters of similar examples, whose positives are hard negatives.

    Attributes:
        batch_size: examples per batch, a multiple of `cluster`.
        cluster: examples per cluster; 64 to 256 measured alike (docs/LOG.md). Or a curriculum:
            (epoch, size) pairs, each size in force from its epoch on.
        refresh_every: epochs between two clusterings.
        warm_epochs: epochs of random batches before the first, while embeddings mean little.

    Example:
        Data that is smaller than a batch makes one batch of whole clusters.

        >>> sampler = Clustered(1024, cluster=64)(500, seed=0)
        >>> sampler.batch_size
        448
    """

    batch_size: int = 1024
    cluster: int | tuple[tuple[int, int], ...] = 64
    refresh_every: int = 1
    warm_epochs: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: if one is out of range, or clusters do not fill a batch.
        """
        for name in ("batch_size", "refresh_every"):
            expect_positive(name, getattr(self, name))
        warm = self.warm_epochs
        expect(warm >= 0, "warm_epochs", "at least 0 epochs", warm, "raise it")
        if isinstance(self.cluster, int):
            size, batch = self.cluster, self.batch_size
            expect_positive("cluster_size", size)
            good = batch % size == 0
            near = max(batch // size, 1) * size
            want = f"a multiple of the cluster size {size}"
            expect(good, "batch_size", want, batch, f"pass {near}, or a cluster size that divides")

    def __call__(self, n: int, seed: int) -> ClusterBatchSampler:
        """The sampler of n examples."""
        batch, cluster = self.batch_size, self.cluster
        if batch > n and isinstance(cluster, int):
            cluster = min(cluster, n)
            batch = n // cluster * cluster
            _log.warning("%d examples: batches of %d in clusters of %d", n, batch, cluster)
        sizes = cluster if isinstance(cluster, int) else list(cluster)
        return ClusterBatchSampler(n, batch, sizes, seed)


@dataclass(frozen=True)
class Random:
    """Batches in a new random order each epoch.

    Attributes:
        batch_size: examples per batch; all where there are fewer.
    """

    batch_size: int = 1024

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            InputError: if it is not positive.
        """
        expect_positive("batch_size", self.batch_size)

    def __call__(self, n: int, seed: int) -> RandomBatchSampler:
        """The sampler of n examples."""
        return RandomBatchSampler(n, min(self.batch_size, n), seed)


Batches = Callable[[int, int], Any]
"""(number of examples, seed) → a batch sampler."""


def refreshed(
    sampler: Any,
    embed: Callable[[], Float[Tensor, "n d"]],
    epoch: int,
    batches: Batches,
    warm: int | None = None,
) -> dict[str, Any]:
    """Let a sampler see new embeddings before an epoch, if that is due.

    Args:
        sampler: what `batches` made; one without ``refresh`` reads no embeddings.
        embed: makes one row per example; called only if it is due.
        epoch: the one that is about to begin.
        batches: its ``refresh_every`` and ``warm_epochs`` say when; each epoch without them.
        warm: overrules ``warm_epochs``.

    Returns:
        metrics for the log: examples per batch and per cluster (1: random batches), the number of
        clusters, and whether they are new.
    """
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    first = getattr(batches, "warm_epochs", 0) if warm is None else warm
    age = epoch - first
    due = age >= 0 and age % getattr(batches, "refresh_every", 1) == 0
    refresh = getattr(sampler, "refresh", None)
    if due and refresh is not None:
        refresh(embed())
    size, n = getattr(sampler, "size", 1), getattr(sampler, "n", 0)
    batch = getattr(sampler, "batch_size", None)
    return ({"batch_size": batch} if isinstance(batch, int) else {}) | {
        "cluster_size": size,
        "clusters": -(-n // size),
        "refreshed": due and refresh is not None,
    }
