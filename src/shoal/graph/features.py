"""Rows that networks on graphs read, made from features: the one place where that is decided.

Dense features are taken as they are, in float32; sparse ones up to :data:`WIDTH` wide become dense.
Models take wider dense ones that are :func:`mostly_zero` for what they are, sparse.
Wider ones stay what they are, bags of words: a node's row is the sum of trained rows of its words
(:class:`WordRows`), which is a first layer ``x W`` that reads and moves only the rows of W that a
batch touches. A node without features has one word, itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from shoal.core.csr import Csr
from shoal.core.files import file_aside
from shoal.core.sparse import matmul
from shoal.sample.expand import BlockSampler, Chain, Hop

WIDTH = 256
_LOOKED_AT = 1024  # rows that tell whether features are mostly zero
_WRITE_BYTES = 64 << 20  # made and written at a time


@dataclass(frozen=True, eq=False)
class WordRows:
    """Rows of nodes that are sums of trained rows, one per word: ``words @ table``.

    Attributes:
        words: ``[n, f]``, what :func:`words_of` makes of features.
        table: ``[f, d]``, the rows of words; trainable, such as ``shoal.unified(rows, RowAdam())``.

    Example:
        >>> rows = WordRows(Csr.from_lists([[0, 2], []], n_cols=3), torch.eye(3))
        >>> rows.gather(torch.tensor([1, 0])).tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    """

    words: Csr
    table: Any

    def __len__(self) -> int:
        """How many nodes there are."""
        return self.words.n_rows

    @torch.no_grad()
    def gather(self, ids: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Rows of nodes `ids`."""
        return matmul(self.words.rows(ids), self.table.as_subclass(Tensor))

    def blocks(self, hops: BlockSampler | None) -> BlockSampler:
        """A sampler of the words of all nodes that `hops` read, or of the seeds' own."""
        words = Hop(self.words)
        return words if hops is None else Chain(hops, words)


def word_rows(n: int, width: int, seed: int = 0) -> Float[Tensor, "n d"]:
    """Random rows of words to begin with, of length one on average."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) / width**0.5


def words_of(features: Csr | Float[Tensor, "n f"] | None, n: int) -> Csr | None:
    """Sparse features as bags of words whose values have length one; None where rows are dense.

    Args:
        features: one row per node; None makes each node a word of its own.
        n: nodes.

    Example:
        >>> words_of(None, 2).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if features is None:
        return Csr(torch.arange(n + 1), torch.arange(n), n)
    if isinstance(features, Tensor) or features.n_cols <= WIDTH:
        return None
    values = torch.ones(features.nnz) if features.values is None else features.values.float()
    length = torch.zeros(n).index_add_(0, features.row_ids(), values.square()).sqrt()
    shortest = torch.finfo(length.dtype).tiny
    return features.with_values(values / length.clamp(min=shortest)[features.row_ids()])


def mostly_zero(features: Csr | Float[Tensor, "n f"] | None) -> bool:
    """Whether dense features wider than :data:`WIDTH` are a bag of words: a tenth or less is not 0.

    Some rows from all over are looked at, so features in a file are not read whole.

    Example:
        >>> mostly_zero(torch.eye(300)), mostly_zero(torch.eye(20)), mostly_zero(torch.ones(2, 300))
        (True, False, False)
    """
    if not isinstance(features, Tensor) or features.shape[1] <= WIDTH:
        return False
    seen = features[:: max(len(features) // _LOOKED_AT, 1)]
    return 10 * int(seen.count_nonzero()) <= seen.numel()


def feature_rows(features: Csr | Float[Tensor, "n f"], seed: int = 0) -> Float[Tensor, "n d"]:
    """Dense rows of all nodes; sparse features wider than :data:`WIDTH` are projected at random.

    A projection to so many columns keeps cosines within 1/√d, which costs accuracy where words tell
    classes apart (docs/LOG.md): models read :func:`words_of` instead.

    Args:
        features: one row per node.
        seed: of the random projection of wide sparse features.

    Example:
        >>> feature_rows(Csr.from_lists([[1], []], n_cols=2)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return _maker(features, seed)(features)


def row_width(features: Csr | Float[Tensor, "n f"]) -> int:
    """How wide the rows are that :func:`feature_rows` makes."""
    width = features.shape[1]
    return width if isinstance(features, Tensor) else min(width, WIDTH)


def feature_words(n: int, features: Csr | Float[Tensor, "n f"] | None) -> int:
    """How many words nodes have, whose rows are trained; 0 where rows are dense."""
    if features is None:
        return n
    return features.n_cols if isinstance(features, Csr) and features.n_cols > WIDTH else 0


def write_rows(path: Path, features: Csr | Float[Tensor, "n f"], seed: int = 0) -> None:
    """Write what :func:`feature_rows` makes to a ``.npy``, a part at a time.

    The rows need not fit in memory, though the features do.

    Args:
        path: of the file.
        features: as for :func:`feature_rows`, and so is the next.
        seed: as above.
    """
    made = _maker(features, seed)
    n, width = features.shape[0], row_width(features)
    each = max(_WRITE_BYTES // max(4 * width, 1), 1)
    with file_aside(path) as new, new.open("wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(file, about)
        for ids in torch.arange(n).split(each):
            part = features.rows(ids) if isinstance(features, Csr) else features[ids]
            file.write(made(part).contiguous().numpy().data)


def _maker(features: Csr | Tensor, seed: int) -> Callable[[Any], Tensor]:
    """The function from any part of the features' rows to dense rows."""
    if isinstance(features, Tensor):
        return Tensor.float
    if features.n_cols <= WIDTH:
        return lambda some: some.to_dense().float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.n_cols, WIDTH, generator=generator) / WIDTH**0.5

    def projected(some: Csr) -> Float[Tensor, "n d"]:
        values = None if some.values is None else some.values.float()
        columns, ends = some.indices.long(), some.indptr
        return embedding_bag(
            columns,
            directions,
            ends,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )

    return projected
