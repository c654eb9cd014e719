"""Batch samplers: who is in the batch.

A batch sampler yields seeds ``[b]``, batch by batch, for the current epoch. It is any object with
``__iter__``, ``__len__``, ``set_epoch``, ``refresh``, ``state_dict`` and ``load_state_dict``; its
attribute ``sampling`` says how the seeds of a batch are drawn, ``"independent"`` or
``"clustered"``. The law: batch k of epoch e is a pure function of (seed, e, k) and of the saved
state, so a run that is resumed by ``load_state_dict`` and ``itertools.islice(sampler, k, None)``
sees the batches that the uninterrupted run would have seen.

:class:`ClusterBatchSampler` packs batches from whole clusters of similar examples, whose positives
are one another's hard negatives (NGAME, section 4.2: Dahiya et al., WSDM 2023);
:class:`EmbeddingBank` holds the embeddings that the training step computes anyway, for the next
refresh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.errors import expect, expect_ids, expect_positive
from shoal.sample.clusters import balanced_clusters


class Subset:
    """Batches of some of the points: positions that a batch sampler yields become ids.

    Args:
        ids: of the points.
        positions: a batch sampler over ``range(len(ids))``.

    Example:
        >>> [seeds.tolist() for seeds in Subset(torch.tensor([7, 9, 4]), [[2, 0], [1]])]
        [[4, 7], [9]]
    """

    def __init__(self, ids: Int[Tensor, " n"], positions: Any) -> None:
        self.ids, self.positions = ids, positions
        self.set_epoch = getattr(positions, "set_epoch", lambda epoch: None)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.positions)

    def __iter__(self) -> Iterator[Int[Tensor, " b"]]:
        """The current epoch's batches of ids."""
        return (self.ids[batch] for batch in self.positions)


class RandomBatchSampler:
    """Every example once an epoch, in a new uniformly random order.

    Args:
        n: how many examples there are; seeds lie in ``[0, n)``.
        batch_size: examples per batch.
        seed: of all orders; at least 0.
        drop_last: leave the last batch out if it is short.

    Raises:
        InputError: if a count is not positive or the batch is larger than the data.

    Example:
        >>> sampler = RandomBatchSampler(5, batch_size=2, seed=0)
        >>> [len(seeds) for seeds in sampler], len(sampler)
        ([2, 2, 1], 3)
        >>> sorted(torch.cat(list(sampler)).tolist())
        [0, 1, 2, 3, 4]
    """

    sampling: Literal["independent", "clustered"] = "independent"

    def __init__(self, n: int, batch_size: int, seed: int, drop_last: bool = False) -> None:
        expect_positive("n", n)
        expect_positive("batch_size", batch_size)
        remedy = f"lower it to {n} or less"
        expect(batch_size <= n, "batch_size", f"at most the {n} examples", batch_size, remedy)
        expect(seed >= 0, "seed", "a whole number of at least 0", seed, "raise it")
        self.n, self.batch_size, self.seed, self.drop_last = n, batch_size, seed, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Int[Tensor, " b"]]:
        """The current epoch's batches of seeds."""
        order = torch.randperm(self.n, generator=_generator(self.seed, self.epoch))
        return iter(order.split(self.batch_size)[: len(self)])

    def state_dict(self) -> dict[str, Any]:
        """What changes after construction: the epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`state_dict` of a like sampler returned."""
        self.epoch = int(state["epoch"])


class ClusterBatchSampler(RandomBatchSampler):
    """Every example once an epoch, in batches of whole clusters of similar examples.

    Until the first :meth:`refresh` every example is a cluster of its own, so batches are random.
    Clusters stay until the next refresh; each epoch shuffles them again. The one that may be short
    comes last, so that none straddles two batches.

    Args:
        n: how many examples there are; seeds lie in ``[0, n)``.
        batch_size: examples per batch, a multiple of every cluster size.
        cluster_size: examples per cluster, or a curriculum: (epoch, size) pairs by rising epoch,
            each size in force from its epoch on, 1 before the first (NGAME doubles the size over
            time).
        seed: of clusters and orders; at least 0.
        drop_last: leave the last batch out if it is short; examples of the short cluster then wait
            for the next refresh.

    Raises:
        InputError: if a count is not positive, the batch is larger than the data or not a multiple
            of a cluster size, or the curriculum's epochs do not rise.

    Example:
        >>> rows = torch.eye(2).repeat(4, 1)  # even points alike, odd points alike
        >>> sampler = ClusterBatchSampler(8, batch_size=4, cluster_size=4, seed=0)
        >>> sampler.refresh(rows)
        >>> sorted(sorted(seeds.tolist()) for seeds in sampler)
        [[0, 2, 4, 6], [1, 3, 5, 7]]
    """

    sampling = "clustered"

    def __init__(
        self,
        n: int,
        batch_size: int,
        cluster_size: int | Sequence[tuple[int, int]],
        seed: int,
        drop_last: bool = False,
    ) -> None:
        super().__init__(n, batch_size, seed, drop_last)
        single = isinstance(cluster_size, int)
        self.curriculum = [(0, cluster_size)] if single else list(cluster_size)
        _expect_curriculum(self.curriculum, batch_size)
        self.size = 1
        self.order = torch.arange(n, dtype=torch.int32)

    def size_at(self, epoch: int) -> int:
        """The cluster size that the curriculum gives for `epoch`."""
        return next((size for start, size in reversed(self.curriculum) if start <= epoch), 1)

    def refresh(self, embeddings: Float[Tensor, "n d"]) -> None:
        """Cluster again, with the current epoch's size; the next iteration uses the clusters.

        Call it between epochs: an iteration that has begun keeps its batches.

        Args:
            embeddings: one row per example, stale or fresh, of any floating type, on any device.

        Raises:
            InputError: if there is not one finite row per example.
        """
        fits = embeddings.dim() == 2 and len(embeddings) == self.n
        got = tuple(embeddings.shape)
        expect(fits, "embeddings", f"one row per example, [{self.n}, d]", got, "embed all examples")
        self.size = self.size_at(self.epoch)
        if self.size == 1:
            self.order = torch.arange(self.n, dtype=torch.int32)
            return
        seed = _generator(self.seed, self.epoch, 1).initial_seed()
        self.order = balanced_clusters(embeddings, self.size, seed).int().cpu()

    def __iter__(self) -> Iterator[Int[Tensor, " b"]]:
        """The current epoch's batches of seeds."""
        full = self.n // self.size
        whole, rest = self.order.long().split([full * self.size, self.n - full * self.size])
        shuffle = torch.randperm(full, generator=_generator(self.seed, self.epoch))
        order = torch.cat([whole.view(full, self.size)[shuffle].flatten(), rest])
        return iter(order.split(self.batch_size)[: len(self)])

    def state_dict(self) -> dict[str, Any]:
        """What changes after construction: epoch, size, and the clusters (4n bytes)."""
        return {"epoch": self.epoch, "size": self.size, "order": self.order.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that :meth:`state_dict` of a like sampler returned.

        Raises:
            InputError: if it is the state of a sampler over another number of examples.
        """
        order, size = state["order"], int(state["size"])
        same = len(order) == self.n
        expect(same, "state", f"clusters of {self.n} examples", len(order), "load its own state")
        expect_ids("state", order, self.n)
        self.epoch, self.size, self.order = int(state["epoch"]), size, order.int().clone()


class EmbeddingBank:
    """The latest embedding of every example, at most one epoch stale, filled by the training step.

    Rows are stored at unit length, since clusters read directions only; so half precision neither
    overflows nor loses small rows. The bank takes 2 n d bytes in float16; so does its state.

    Args:
        n: examples.
        d: width of an embedding.
        dtype: in which rows are kept; half precision by default, a thousandth of a cosine.
        device: where they are kept.

    Example:
        >>> bank = EmbeddingBank(4, 2)
        >>> bank.write(torch.tensor([3, 0]), torch.tensor([[0.0, 5.0], [2.0, 0.0]]))
        >>> bank.filled, bank.rows[3].tolist()
        (0.5, [0.0, 1.0])
    """

    def __init__(
        self,
        n: int,
        d: int,
        dtype: torch.dtype = torch.float16,
        device: torch.device | str = "cpu",
    ) -> None:
        expect_positive("n", n)
        expect_positive("d", d)
        self.rows = torch.zeros(n, d, dtype=dtype, device=device)
        self.written = torch.zeros(n, dtype=torch.bool, device=device)

    @property
    def filled(self) -> float:
        """Share of the examples that have a row, 0 … 1."""
        return float(self.written.float().mean())

    def write(self, ids: Int[Tensor, " b"], rows: Float[Tensor, "b d"]) -> None:
        """Overwrite the rows of `ids`, which must be distinct, with the directions of `rows`.

        Raises:
            InputError: if an id is out of range.
        """
        expect_ids("ids", ids, len(self.rows))
        ids = ids.to(self.rows.device)
        unit = torch.nn.functional.normalize(rows.detach().float(), dim=1)
        self.rows[ids] = unit.to(self.rows)
        self.written[ids] = True

    def state_dict(self) -> dict[str, Tensor]:
        """The rows (2 n d bytes in float16) and which were written (n bytes)."""
        return {"rows": self.rows.clone(), "written": self.written.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the state that :meth:`state_dict` of a like bank returned.

        Raises:
            InputError: if it is the state of a bank of another shape.
        """
        shape, got = tuple(self.rows.shape), tuple(state["rows"].shape)
        expect(got == shape, "state", f"rows of shape {shape}", got, "load its own state")
        self.rows.copy_(state["rows"])
        self.written.copy_(state["written"])


def _generator(*key: int) -> torch.Generator:
    """A generator for `key`; unlike seed + epoch, (0, 1) and (1, 0) are unrelated."""
    word = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> 1))


def _expect_curriculum(curriculum: Sequence[tuple[int, int]], batch_size: int) -> None:
    epochs = [epoch for epoch, _ in curriculum]
    rises = bool(epochs) and all(a < b for a, b in pairwise(epochs))
    expect(rises, "cluster_size", "a size, or (epoch, size) pairs by rising epoch", epochs, "sort")
    for _, size in curriculum:
        expect_positive("cluster_size", size)
        below = batch_size // size * size
        nearest = f"{below} or {below + size}" if below else f"{size}"
        remedy = f"use a batch_size of {nearest}"
        whole = below == batch_size
        expect(whole, "batch_size", f"a multiple of the cluster size {size}", batch_size, remedy)
