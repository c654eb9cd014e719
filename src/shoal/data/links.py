"""The noun of the link job: a graph some of whose links are hidden, to be predicted.

Links are split pair by pair, both directions together, so that no part knows the reverse of another
part's link; messages pass along training links only. So nothing that is to be predicted is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids
from shoal.data.graph import GraphData

VALID, TEST = 0.05, 0.1
"""Shares of the pairs to choose by and to test on, as in PyG's examples of link prediction."""


@dataclass(frozen=True, eq=False)
class LinkData:
    """A graph to predict the links of.

    Attributes:
        name: what reports call it.
        graph: ``[n, n]``, the training links in both directions; row v lists what v reads.
        features: one row per node, sparse or dense; None where there are none and rows must learn.
        train: ``[n, n]``, sorted; row u lists the nodes that u is to be linked with.
        valid: links to choose by, ``[2, v]``, sources above targets.
        test: links to evaluate on, ``[2, t]``.
        known: ``[n, n]``, sorted, the links of all parts: what is no negative.
    """

    name: str
    graph: Csr
    features: Csr | Float[Tensor, "n f"] | None
    train: Csr
    valid: Int[Tensor, "2 v"]
    test: Int[Tensor, "2 t"]
    known: Csr

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if sizes differ, or a part is empty.
        """
        n = self.graph.n_rows
        for name in ("graph", "train", "known"):
            shape = getattr(self, name).shape
            expect(shape == (n, n), name, f"{n} x {n}", shape, "align it")
        rows = n if self.features is None else self.features.shape[0]
        expect(rows == n, "features", f"{n} rows, one per node", rows, "align them")
        expect(self.train.nnz > 0, "train", "at least one link", "none", "split again")
        for name in ("valid", "test"):
            pairs = getattr(self, name)
            expect_ids(name, pairs.flatten(), n)
            expect(pairs.numel() > 0, name, "at least one link", "none", "split again")


def link_data(graph: GraphData, seed: int = 0) -> LinkData:
    """The links of a graph with the source's own split, or one drawn at random.

    Args:
        graph: its classes and the split of its nodes are not read, features may be absent.
        seed: of the random split.

    Raises:
        InputError: if there are too few links.
    """
    if graph.links is not None:
        return joined(graph.name, graph.graph.n_rows, graph.features, *graph.links)
    return split_links(graph.name, graph.graph, graph.features, seed=seed)


def split_links(
    name: str,
    graph: Csr,
    features: Csr | Float[Tensor, "n f"] | None,
    *,
    valid: float = VALID,
    test: float = TEST,
    seed: int = 0,
) -> LinkData:
    """Hide links of a graph at random, a link and its reverse together; loops are left out.

    Args:
        name: of the result.
        graph: row u lists the nodes that u is linked with, in one direction or in both.
        features: one row per node, or None.
        valid: share of the pairs to choose by, in (0, 1).
        test: share of the pairs to test on, in (0, 1).
        seed: of the split.

    Raises:
        InputError: if there are too few links for three parts, or a share is out of range.

    Example:
        >>> ring = Csr.from_lists([[(i + 1) % 20] for i in range(20)], n_cols=20)
        >>> data = split_links("ring", ring, None)
        >>> data.train.nnz, data.valid.shape[1], data.test.shape[1], data.graph.nnz
        (17, 1, 2, 34)
    """
    good = 0 < valid and 0 < test and valid + test < 1
    expect(good, "valid, test", "shares that leave some links", (valid, test), "try 0.05, 0.1")
    graph = graph.with_values(None).coalesce()
    row, col = graph.row_ids(), graph.indices.long()
    row, col = row[row != col], col[row != col]
    low, high = torch.minimum(row, col), torch.maximum(row, col)
    pairs, which = torch.unique(low * graph.n_rows + high, return_inverse=True)
    n = len(pairs)
    sizes = [max(round(n * share), 1) for share in (valid, test)]
    expect(n > sum(sizes), "graph", "at least three links to split", n, "add links")
    place = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[which]
    held = place < sizes[0], (place >= sizes[0]) & (place < sum(sizes))
    parts = [torch.stack([row[part], col[part]]) for part in (~(held[0] | held[1]), *held)]
    return joined(name, graph.n_rows, features, *parts)


def joined(
    name: str,
    n: int,
    features: Csr | Float[Tensor, "n f"] | None,
    train: Int[Tensor, "2 e"],
    valid: Int[Tensor, "2 v"],
    test: Int[Tensor, "2 t"],
) -> LinkData:
    """Put the links of three parts together; doubles and loops of training links are dropped.

    Raises:
        InputError: if an id is out of range, or a part is empty.
    """
    targets = _matrix(train[:, train[0] != train[1]], n)
    messages = _matrix(torch.cat([train, train.flip(0)], 1), n)
    known = _matrix(torch.cat([train, valid, test], 1), n)
    return LinkData(name, messages, features, targets, valid, test, known)


def _matrix(pairs: Int[Tensor, "2 e"], n: int) -> Csr:
    return Csr.from_coo(pairs[0], pairs[1], (n, n)).coalesce()
