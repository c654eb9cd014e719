"""Clustered batches as a torch ``DataLoader`` takes them, that look after their own clusters.

:class:`NgameBatchSampler` turns the seeds of a :class:`~shoal.sample.seeds.ClusterBatchSampler`
into lists of rows of a data set and clusters anew where it is due (NGAME, section 4.2: Dahiya et
al., WSDM 2023). Trainers differ in what they tell a batch sampler, and when; so it relies on none
of it: an iteration that nobody announced is the next epoch, and clusters are made when the epoch
begins, by whoever comes first of the trainer's callback and the iteration itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, distributed
from torch.utils.data import BatchSampler

from shoal.core import checkpoint
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail
from shoal.sample.fanout import draw
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank


class NgameBatchSampler(BatchSampler):
    """Every point once an epoch, in batches of points that are hard for one another.

    The order of an epoch is a pure function of the clusters' seed, the epoch and the saved state.
    Under ``torch.distributed`` the first process clusters and tells the others, so that all ranks
    iterate the same batches and each takes its share.

    Args:
        clusters: who is in the batch.
        embed: called without arguments where clusters are due; gives one row a point, ``[n, d]``.
            An :class:`~shoal.sample.seeds.EmbeddingBank` serves what it holds, and is saved along.
        rows: row j lists the rows of the data set that belong to point j, at least one each; an
            epoch takes one of them at random. Without it point j is row j.
        warm_epochs: epochs of random batches before the first clustering; 1 as in ``shoal train``.
        refresh_every: epochs between two clusterings; 1 as there.
        name: of its file in a checkpoint; several samplers in one trainer need a name each.

    Raises:
        InputError: if `rows` does not list something for every point, or a count is out of range.

    Example:
        The first epoch is random; the second has even points together, and odd ones.

        >>> alike = torch.eye(2).repeat(2, 1)
        >>> clusters = ClusterBatchSampler(4, batch_size=2, cluster_size=2, seed=0)
        >>> sampler = NgameBatchSampler(clusters, lambda: alike)
        >>> random, clustered = list(sampler), list(sampler)
        >>> sorted(sorted(batch) for batch in clustered)
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        clusters: ClusterBatchSampler,
        embed: Callable[[], Tensor] | EmbeddingBank,
        rows: Csr | None = None,
        *,
        warm_epochs: int = 1,
        refresh_every: int = 1,
        name: str = "ngame",
    ) -> None:
        super().__init__(clusters, clusters.batch_size, clusters.drop_last)  # pyright: ignore
        expect(warm_epochs >= 0, "warm_epochs", "at least 0", warm_epochs, "raise it")
        expect_positive("refresh_every", refresh_every)
        if rows is not None:
            whole = rows.n_rows == clusters.n and bool((rows.degrees() > 0).all())
            expect(
                whole, "rows", f"at least one row for each of {clusters.n} points", rows, "check"
            )
        self.bank = embed if isinstance(embed, EmbeddingBank) else None
        self.embed = (lambda: embed.rows) if isinstance(embed, EmbeddingBank) else embed
        self.clusters, self.rows = clusters, rows
        self.warm_epochs, self.refresh_every = warm_epochs, refresh_every
        self.file = f"{name}.safetensors"
        self.epoch = 0
        self.begun = -1

    @property
    def sampling(self) -> str:
        """How examples of a batch are drawn, as of its clusters."""
        return self.clusters.sampling

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; without a call it is the next one."""
        self.epoch = epoch

    def begin(self, epoch: int) -> None:
        """Cluster anew where `epoch` asks for it; an epoch that has begun keeps its clusters."""
        if epoch == self.begun:
            return
        self.begun = epoch
        self.clusters.set_epoch(epoch)
        age = epoch - self.warm_epochs
        if age >= 0 and age % self.refresh_every == 0:
            self._refresh()

    def _refresh(self) -> None:
        """Cluster in the first process, and tell the others."""
        want, remedy = "a bank that the loss fills", "pass the same bank to the loss"
        if self.bank is not None and not self.bank.filled:
            if self.warm_epochs == 0:
                remedy = "use warm_epochs=1"
            fail(
                "embed",
                want,
                "one without a row",
                f"{remedy}; MatryoshkaLoss fills its width alone",
            )
        many = distributed.is_available() and distributed.is_initialized()
        if not many or distributed.get_rank() == 0:
            self.clusters.refresh(self.embed())
        if many:
            alone = self.bank is None or distributed.get_world_size() == 1
            expect(alone, "embed", "a function if processes are many", "a bank", "encode anew")
            state = [self.clusters.state_dict()]
            distributed.broadcast_object_list(state, src=0)
            self.clusters.load_state_dict(state[0])

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.clusters)

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate the epoch that was chosen, else the next one.

        Yields:
            rows of the data set, a list a batch.
        """
        epoch = self.epoch
        self.epoch += 1
        self.begin(epoch)
        self.clusters.set_epoch(epoch)
        rows = self._rows(epoch)
        for seeds in self.clusters:
            yield (seeds if rows is None else rows[seeds]).tolist()

    def _rows(self, epoch: int) -> Int[Tensor, " n"] | None:
        """The row of each point in `epoch`, uniform among those that belong to it."""
        if self.rows is None:
            return None
        (word,) = np.random.SeedSequence((self.clusters.seed, epoch, 2)).generate_state(1)
        generator = torch.Generator().manual_seed(int(word))
        positions, _ = draw(self.rows, torch.arange(self.rows.n_rows), 1, generator)
        return self.rows.indices[positions]

    def state_dict(self) -> dict[str, Any]:
        """What changes after construction: epochs, clusters, and the bank if there is one."""
        state = {"epoch": self.epoch, "begun": self.begun, "clusters": self.clusters.state_dict()}
        if self.bank is not None:
            state["bank"] = self.bank.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that :meth:`state_dict` of a like sampler returned.

        Raises:
            InputError: if it is the state of a sampler over another number of points.
        """
        self.clusters.load_state_dict(state["clusters"])
        if self.bank is not None:
            expect("bank" in state, "state", "one with a bank", "one without", "load its own state")
            self.bank.load_state_dict(state["bank"])
        self.epoch, self.begun = int(state["epoch"]), int(state["begun"])

    def save(self, folder: str | Path) -> None:
        """Write the state into `folder`, all of it or nothing."""
        checkpoint.save(Path(folder) / self.file, self.state_dict())

    def load(self, folder: str | Path) -> None:
        """Take up what :meth:`save` wrote into `folder`.

        Raises:
            InputError: if it is missing, damaged, or another sampler's.
        """
        self.load_state_dict(checkpoint.load(Path(folder) / self.file))
