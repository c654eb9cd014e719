"""One-vs-all classifiers: one trainable row per label.

Row l of W ``[l, d]`` is the classifier of label l, and an example with embedding x ranks labels by
``x · W_l``. The rows are those of a :class:`~shoal.fetch.unified.UnifiedTensor`, in host memory
with their optimizer's state beside them, so labels × width may exceed a device's memory;
:mod:`shoal.rank.loss_skip` trains them. Classifiers are not normalized: their lengths learn how
common labels are, which cosines cannot say (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core import ranks
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_finite, expect_positive
from shoal.core.search import top_k
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowOptimizer

Kind = Literal["decoupled", "softmax", "binary"]


@dataclass(frozen=True, eq=False)
class OneVsAll:
    """One classifier per label, as trainable rows.

    Attributes:
        table: W ``[l, d]`` with its optimizer.
        kind: which loss of :mod:`shoal.rank.loss_skip` trains it.
        temperature: τ of that loss; 0.1 by default, as for the encoder.
        chunk: labels whose logits exist at a time; None for as many as make 8 MiB.
        first: the label of the table's first row, where processes that train together hold some
            labels each (:meth:`shard`).
        total: how many labels all of them hold; None for those of the table.
        dtype: of the three products; None for the table's own. torch.bfloat16 pays on accelerators;
            logits, their gradient and the rows stay as wide as the table.

    Example:
        >>> from shoal.fetch.update import RowSGD
        >>> head = OneVsAll.of(torch.eye(3), RowSGD(lr=1.0))
        >>> scores, labels = head.rank(torch.tensor([[0.0, 2.0, 1.0]]), k=2)
        >>> scores.tolist(), labels.tolist()
        ([[2.0, 1.0]], [[1, 2]])
    """

    table: UnifiedTensor
    kind: Kind = "decoupled"
    temperature: float = 0.1
    chunk: int | None = None
    dtype: torch.dtype | None = None
    first: int = 0
    total: int | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: if one is out of range or the table is not trainable.
        """
        expect(self.table.dim() == 2, "table", "rows [l, d]", tuple(self.table.shape), "reshape it")
        expect(self.table.trainable, "table", "an optimizer", None, "make it with OneVsAll.of")
        known = self.kind in ("decoupled", "softmax", "binary")
        expect(known, "kind", "decoupled, softmax or binary", self.kind, "choose one")
        good = self.temperature > 0
        expect(good, "temperature", "a number above 0", self.temperature, "try 0.1")
        expect_positive("chunk", self.chunk) if self.chunk is not None else None

    @staticmethod
    def of(
        label_rows: Float[Tensor, "l d"],
        optimizer: RowOptimizer,
        kind: Kind = "decoupled",
        **settings: Any,
    ) -> OneVsAll:
        """Make classifiers that begin as a copy of `label_rows`.

        Args:
            label_rows: embeddings of the label texts, as NGAME begins; zeros where there are none.
            optimizer: moves the rows; RowAdagrad keeps one number per label beside them.
            kind: which loss.
            settings: further attributes.

        Raises:
            InputError: if a row is not finite or a setting is out of range.
        """
        expect_finite("label_rows", label_rows)
        rows = label_rows.detach().to("cpu", copy=True).contiguous()
        return OneVsAll(unified(rows, optimizer), kind, **settings)

    @staticmethod
    def shard(
        label_rows: Float[Tensor, "l d"], optimizer: RowOptimizer, **settings: Any
    ) -> OneVsAll:
        """:meth:`of`, of the rows of this process alone; all of them where there is one process.

        Losses, gradients and :meth:`rank` are then joined over the processes.

        Args:
            label_rows: of all labels.
            optimizer: moves the rows of this process; its state is as small.
            settings: further attributes.

        Raises:
            InputError: if a row is not finite or a setting is out of range.
        """
        start, stop = ranks.spans(len(label_rows))[ranks.rank()]
        settings |= {"first": start, "total": len(label_rows)}
        return OneVsAll.of(label_rows[start:stop], optimizer, **settings)

    @property
    def n_labels(self) -> int:
        """How many there are, of all processes."""
        return len(self.table) if self.total is None else self.total

    @property
    def sharded(self) -> bool:
        """Whether other processes hold other labels."""
        return len(self.table) < self.n_labels

    @property
    def weights(self) -> Float[Tensor, "l d"]:
        """W as a plain tensor, in the same memory; the rows of this process."""
        return self.table.as_subclass(Tensor)

    def joined(self, rows: Float[Tensor, "r d"]) -> Float[Tensor, "l d"]:
        """The rows of all processes, from those of this one; all take part."""
        if not self.sharded:
            return rows
        return ranks.joined(rows, [stop - start for start, stop in ranks.spans(self.n_labels)])

    def rank(
        self, x: Float[Tensor, "n d"], k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
        """The k labels of largest inner product with each x, exactly: scores (without τ) and ids.

        In bounded memory beside the classifiers; on another device than the host's they are copied
        there. The arguments are those of :func:`shoal.core.search.top_k`.

        Raises:
            InputError: if k is out of range or x does not fit.
        """
        if not self.sharded:
            return top_k(x, self.weights.to(x.device), k, drop)
        return self._merged(x, k, drop)

    def _merged(
        self, x: Float[Tensor, "n d"], k: int, drop: Csr | None
    ) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
        """The best of what each process finds among its own labels; equal ones by rising label."""
        own, stop = len(self.table), self.first + len(self.table)
        if drop is not None:
            here = (drop.indices >= self.first) & (drop.indices < stop)
            pairs = drop.row_ids()[here], drop.indices[here] - self.first
            drop = Csr.from_coo(*pairs, (len(x), own))
        scores, ids = top_k(x, self.weights.to(x.device), min(k, own), drop)
        ids = torch.where(ids < 0, ids, ids + self.first)
        every = ranks.gathered(scores.T.contiguous()).T, ranks.gathered(ids.T.contiguous()).T
        order = every[0].argsort(dim=1, descending=True, stable=True)[:, :k]
        return every[0].gather(1, order), every[1].gather(1, order)

    def rows(self, ids: Int[Tensor, " c"], device: torch.device) -> Float[Tensor, "c d"]:
        """Classifiers of labels `ids`: the table's own memory where ids are consecutive."""
        first = int(ids[0])
        if torch.equal(ids, torch.arange(first, first + len(ids), device=ids.device)):
            return self.weights[first : first + len(ids)].to(device, non_blocking=True)
        return self.table.gather(ids.to(device))
