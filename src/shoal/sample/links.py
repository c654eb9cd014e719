"""Batches of links: pairs to score, and neighborhoods of their ends that do not show the answer.

A batch of links is a shortlist over the graph, then neighbor sampling around both ends.
:class:`~shoal.sample.expand.ShortlistSampler` gives in-batch negatives, :class:`PairSampler`
uniform ones for each link. A link that is learned must not be read on the way: a model would find
it among its own inputs. :class:`LinkSampler` takes the batch's links out of the neighborhoods, in
both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr, offsets_of
from shoal.core.errors import expect_ids, expect_positive
from shoal.core.objectives import link_binary_cross_entropy
from shoal.sample.expand import BlockSampler
from shoal.sample.fanout import draw
from shoal.sample.relabel import Scratch, distinct


@dataclass(frozen=True, eq=False)
class PairSampler:
    """Some links of each seed, and for each of them nodes drawn at random.

    Attributes:
        links: ``[n, n]``, rows sorted; row u lists the nodes that u is linked with.
        positives: links drawn per seed, without replacement, at least 1.
        negatives: uniform nodes per link, at least 1; the seed itself is left out where it is
            drawn.
        loss: the kind of loss that reads such a block: each listed pair is scored by itself.

    Example:
        A node that is drawn and happens to be linked is no negative: its edge is known.

        >>> pair = Csr.from_lists([[1], []], n_cols=2)
        >>> (block,) = PairSampler(pair, negatives=3)(torch.tensor([0]), torch.Generator())
        >>> block.src.tolist(), set(block.edges.tolist())
        ([0, 1], {0})
    """

    links: Csr
    positives: int = 1
    negatives: int = 5
    scratch: Scratch = field(default_factory=Scratch, repr=False)
    loss: ClassVar = staticmethod(link_binary_cross_entropy)

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            InputError: if one is below 1.
        """
        expect_positive("positives", self.positives)
        expect_positive("negatives", self.negatives)

    @cached_property
    def _keys(self) -> Int[Tensor, " e"]:
        return self.links.row_ids() * self.links.n_cols + self.links.indices

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one block whose entries are the pairs; `edges` is -1 where there is no link.

        Raises:
            InputError: if a seed is out of range.
        """
        links, n = self.links, self.links.n_rows
        expect_ids("seeds", seeds, n)
        seeds = seeds.long()
        drawn, indptr = draw(links, seeds, self.positives, generator)
        owner = torch.arange(len(seeds), device=seeds.device).repeat_interleave(indptr.diff())
        row = torch.cat([owner, owner.repeat_interleave(self.negatives)])
        other = torch.randint(n, (len(row) - len(owner),), generator=generator, device=seeds.device)
        col = torch.cat([links.indices[drawn].long(), other])
        pair = col != seeds[row]
        row, col = row[pair], col[pair]
        order = torch.argsort(row, stable=True)
        row, col = row[order], col[order]
        place = self.scratch.columns(links)
        src = distinct(torch.cat([seeds, col]), place)
        indptr = offsets_of(torch.bincount(row, minlength=len(seeds)))
        local = place.index_select(0, col).long()
        return [Block(seeds, src, indptr, local, self._edges(seeds[row], col), dst_in_src=True)]

    def _edges(self, row: Tensor, col: Tensor) -> Int[Tensor, " e"]:
        """The position of each pair among the links, or -1."""
        if not len(self._keys):
            return torch.full_like(row, -1)
        key = row * self.links.n_cols + col
        at = torch.searchsorted(self._keys, key).clamp_(max=len(self._keys) - 1)
        return torch.where(self._keys[at] == key, at, -1)


def without(block: Block, row: Int[Tensor, " p"], col: Int[Tensor, " p"], n: int) -> Block:
    """The same hop with no entry that joins one of some pairs of nodes, in either direction.

    Args:
        block: a hop over a graph of `n` nodes; its `dst` and `src` stay as they are.
        row: one end of each pair.
        col: the other.
        n: nodes of the graph.

    Example:
        >>> ids = torch.arange(3)
        >>> hop = Block(ids[:1], ids, torch.tensor([0, 2]), ids[1:], ids[1:], dst_in_src=True)
        >>> without(hop, torch.tensor([2]), torch.tensor([0]), n=3).indices.tolist()
        [1]
    """
    pairs = torch.cat([row * n + col, col * n + row])
    key = block.dst[block.csr.row_ids()] * n + block.src[block.indices.long()]
    kept = ~torch.isin(key, pairs)
    indptr = offsets_of(kept)[block.indptr]
    left = block.indices[kept], block.edges[kept]
    return Block(block.dst, block.src, indptr, *left, dst_in_src=block.dst_in_src)


@dataclass(frozen=True, eq=False)
class LinkSampler:
    """Pairs to score, and neighborhoods of their ends from which the links among them are taken.

    Attributes:
        pairs: gives one block whose `src` begins with its `dst`; entries with an edge are links.
        hops: gives the neighborhoods of that `src`.

    Example:
        Node 0 learns its link with 1, so neither reads the other; 1 still reads 2.

        >>> from shoal.sample.expand import NeighborSampler
        >>> path = Csr.from_lists([[1], [0, 2], [1]], n_cols=3)
        >>> links = PairSampler(Csr.from_lists([[1], [], []], n_cols=3))
        >>> sampler = LinkSampler(links, NeighborSampler(path, [None]))
        >>> hop, pairs = sampler(torch.tensor([0]), torch.Generator().manual_seed(1))
        >>> [hop.src[i].tolist() for i in hop.indices.split(hop.csr.degrees().tolist())][:2]
        [[], [2]]
    """

    pairs: BlockSampler
    hops: BlockSampler

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return the hops, input hop first, and the block of pairs last."""
        (block,) = self.pairs(seeds, generator)
        linked = block.edges >= 0
        row = block.dst[block.csr.row_ids()[linked]]
        col = block.src[block.indices[linked].long()]
        hops = self.hops(block.src, generator)
        # every node of a hop is a column of one matrix: ids above the largest need no room
        n = 1 + int(hops[0].src.max()) if len(hops[0].src) else 1
        return [*(without(hop, row, col, n) for hop in hops), block]
