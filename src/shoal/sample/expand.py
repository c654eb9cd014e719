"""What the seeds touch: one `expand` serves graph neighborhoods and shortlists of labels.

A label matrix and a graph are both a :class:`~shoal.core.csr.Csr`, so a hop is one function of its
rows: draw some entries of each, number the columns that they touch, and, for an *induced* hop, take
every entry between the two. Block samplers are called as ``sampler(seeds, generator)`` and return
blocks, input hop first:

- :class:`NeighborSampler`: sampled in-neighbors, several hops deep (GraphSAGE, Hamilton, Ying,
  Leskovec, NeurIPS 2017, algorithm 2).
- :class:`ShortlistSampler`: one induced hop over the label matrix (NGAME, Dahiya et al., WSDM
  2023): zeros of the block are in-batch negatives, ones are all known positives.
- :class:`Hop`: one hop as it is, such as from documents to their tokens.
- :class:`Chain`: one after the other, where the labels or nodes of a shortlist have texts or
  neighborhoods of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr, offsets_of
from shoal.core.errors import expect, expect_ids, expect_positive
from shoal.sample.fanout import draw
from shoal.sample.relabel import Scratch, distinct, locate

BlockSampler = Callable[[Tensor, Generator], list[Block]]
"""The protocol of every class here: (seeds, generator) -> blocks, input hop first."""


def expand(
    csr: Csr,
    dst: Int[Tensor, " b"],
    fanout: int | None = None,
    generator: Generator | None = None,
    *,
    replace: bool = False,
    weighted: bool = False,
    induced: bool = False,
    dst_in_src: bool = False,
    extra: Int[Tensor, " x"] | None = None,
    scratch: Scratch | None = None,
) -> Block:
    """Take one hop from `dst` along the rows of `csr`.

    Args:
        csr: rows to read; square if `dst_in_src`.
        dst: row ids ``[b]``; repeats allowed unless `dst_in_src`.
        fanout: entries drawn per row, at least 0; None takes all. This and the three arguments that
            follow are those of :func:`~shoal.sample.fanout.draw`.
        generator: where randomness comes from; needed unless all are taken.
        replace: draw with replacement.
        weighted: draw in proportion to ``csr.values``.
        induced: once `src` is decided, every entry of `csr` between `dst` and `src` belongs to
            the block, not only those that were drawn.
        dst_in_src: let `src` begin with `dst`, in order.
        extra: columns ``[x]`` that join `src` besides those drawn, repeats allowed.
        scratch: memory to reuse from call to call.

    Returns:
        A block whose `src` holds each column once, in the order of first appearance: `dst` if
        `dst_in_src`, then what was drawn row after row, then `extra`. Ids are int64.

    Raises:
        InputError: if an id is out of range, or `dst_in_src` asks for what cannot be.

    Example:
        >>> labels = Csr.from_lists([[0, 3], [3], [2]], n_cols=4)
        >>> block = expand(labels, torch.tensor([1, 0]), extra=torch.tensor([1]))
        >>> block.src.tolist(), block.mask().int().tolist()
        ([3, 0, 1], [[1, 0, 0], [1, 1, 0]])
    """
    expect_ids("dst", dst, csr.n_rows)
    dst = dst.to(csr.device, torch.int64)
    edges, indptr = draw(csr, dst, fanout, generator, replace=replace, weighted=weighted)
    columns = csr.indices.index_select(0, edges).long()
    touched = [columns]
    if dst_in_src:
        square = csr.n_rows == csr.n_cols
        expect(square, "csr", "a square Csr for dst_in_src", repr(csr), "pass a graph")
        touched.insert(0, dst)
    if extra is not None:
        expect_ids("extra", extra, csr.n_cols)
        touched.append(extra.to(csr.device, torch.int64))
    place = (scratch or Scratch()).columns(csr)
    src = distinct(torch.cat(touched), place)
    if dst_in_src:
        once = torch.equal(src[: dst.numel()], dst)
        expect(once, "dst", "distinct ids", "an id twice", "drop doubles with .unique()")
    if not induced:
        return Block(dst, src, indptr, place.index_select(0, columns).long(), edges, dst_in_src)
    edges, indptr = csr.edges(dst)
    local, inside = locate(csr.indices.index_select(0, edges).long(), src, place)
    indptr = offsets_of(inside)[indptr]
    return Block(dst, src, indptr, local[inside], edges[inside], dst_in_src)


@dataclass(frozen=True, eq=False)
class Hop:
    """One hop over a matrix as it is, such as from documents to all of their tokens.

    Attributes:
        csr: rows to read.
        fanout: entries drawn a row without replacement; None takes all.

    Example:
        >>> tokens = Csr.from_lists([[4, 1, 4], [1]], n_cols=5)
        >>> (bags,) = Hop(tokens)(torch.tensor([1, 0]), torch.Generator())
        >>> bags.src.tolist(), bags.indices.tolist(), bags.indptr.tolist()
        ([1, 4], [0, 1, 0, 1], [0, 1, 4])
    """

    csr: Csr
    fanout: int | None = None
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one block."""
        return [expand(self.csr, seeds, self.fanout, generator, scratch=self.scratch)]


@dataclass(frozen=True, eq=False)
class ShortlistSampler:
    """The labels that a batch of examples scores, with every known positive marked.

    The shortlist is the union of `positives` labels per example and `extra` random ones; each label
    stands once. Ones of the block are positives, its zeros negatives. An example without labels is
    a legal seed: its row is empty, the whole shortlist is its negatives.

    Attributes:
        labels: examples x labels.
        positives: labels drawn per example, without replacement, at least 1; None takes all of
            them.
        extra: further draws, uniform over all labels; a label drawn again is not added again.
        weighted: draw positives in proportion to ``labels.values`` (inverse propensities, say).
        dst_in_src: for a graph, whose labels are nodes: the seeds lead the shortlist, so that one
            list of nodes serves both sides; entry (i, i) is then a node with itself.

    Example:
        >>> labels = Csr.from_lists([[0, 3], [3], []], n_cols=4)
        >>> (block,) = ShortlistSampler(labels, positives=2)(torch.arange(3), torch.Generator())
        >>> block.src.tolist(), block.mask().int().tolist()
        ([0, 3], [[1, 1], [0, 1], [0, 0]])
    """

    labels: Csr
    positives: int | None = 1
    extra: int = 0
    weighted: bool = False
    dst_in_src: bool = False
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            InputError: if `positives` or `extra` is too small, or there are no labels at all.
        """
        expect_positive("positives", self.positives) if self.positives is not None else None
        expect(self.extra >= 0, "extra", "at least 0", self.extra, "raise it")
        expect(self.labels.n_cols > 0, "labels", "some columns", repr(self.labels), "check it")

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one induced block, seeds x shortlist."""
        labels = self.labels
        block = expand(
            labels,
            seeds,
            self.positives,
            generator,
            weighted=self.weighted,
            induced=True,
            dst_in_src=self.dst_in_src,
            extra=torch.randint(
                labels.n_cols, (self.extra,), generator=generator, device=generator.device
            ),
            scratch=self.scratch,
        )
        return [block]


@dataclass(frozen=True, eq=False)
class NeighborSampler:
    """Sampled neighborhoods of nodes, several hops deep.

    Attributes:
        graph: row v lists the nodes that v reads from, its in-neighbors.
        fanouts: entries drawn per node, one number per hop, the seeds' own hop first (as in PyG's
            ``num_neighbors``); None takes all.
        replace: draw with replacement.
        weighted: draw in proportion to ``graph.values``.

    Example:
        >>> ring = Csr.from_lists([[1], [2], [3], [0]], n_cols=4)
        >>> far, near = NeighborSampler(ring, [1, 1])(torch.tensor([2]), torch.Generator())
        >>> near.src.tolist(), far.src.tolist()
        ([2, 3], [2, 3, 0])
    """

    graph: Csr
    fanouts: Sequence[int | None]
    replace: bool = False
    weighted: bool = False
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    def __post_init__(self) -> None:
        """Check the number of hops; each fan-out is checked where it is drawn.

        Raises:
            InputError: if there is no hop.
        """
        expect(len(self.fanouts) > 0, "fanouts", "a number per hop", "none", "pass [15, 10], say")

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one block per hop, input hop first: ``blocks[i].dst`` is ``blocks[i + 1].src``.

        Raises:
            InputError: if a seed is out of range or stands twice.
        """
        blocks: list[Block] = []
        for fanout in self.fanouts:
            block = expand(
                self.graph,
                blocks[0].src if blocks else seeds,
                fanout,
                generator,
                replace=self.replace,
                weighted=self.weighted,
                dst_in_src=True,
                scratch=self.scratch,
            )
            blocks.insert(0, block)
        return blocks


@dataclass(frozen=True, eq=False, repr=False)
class Chain:
    """One block sampler after another: what the outer one touches seeds the inner one.

    Attributes:
        outer: called with the seeds; its blocks come last.
        inner: called with ``rows(blocks[0])`` of the outer blocks; its blocks come first.
        rows: which rows the outer input hop needs from the inner one; by default its `src`.

    Example:
        Link prediction: a shortlist of nodes, then the neighborhoods of all of them.

        >>> ring = Csr.from_lists([[1], [2], [3], [0]], n_cols=4)
        >>> links = ShortlistSampler(ring, dst_in_src=True)
        >>> sampler = Chain(links, NeighborSampler(ring, [1]))
        >>> hop, pairs = sampler(torch.tensor([2]), torch.Generator())
        >>> pairs.src.tolist(), hop.src.tolist()
        ([2, 3], [2, 3, 0])
    """

    outer: BlockSampler
    inner: BlockSampler
    rows: Callable[[Block], Tensor] = attrgetter("src")

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return the inner blocks, then the outer ones."""
        blocks = self.outer(seeds, generator)
        return [*self.inner(self.rows(blocks[0]), generator), *blocks]

    def __repr__(self) -> str:
        """The steps in the order in which they run, from the seeds to the input hop.

        Example:
            >>> tokens = Csr.from_lists([[0], [1]], n_cols=2)
            >>> Chain(Hop(tokens, 1), Hop(tokens))  # doctest: +NORMALIZE_WHITESPACE
            seeds -> Hop(csr=Csr(2 x 2, nnz=2, torch.int64), fanout=1)
              -> src -> Hop(csr=Csr(2 x 2, nnz=2, torch.int64), fanout=None)
        """
        rows = self.rows.func if isinstance(self.rows, partial) else self.rows
        name = "src" if rows == Chain.rows else getattr(rows, "__name__", repr(rows))
        steps = [repr(x).removeprefix("seeds -> ") for x in (self.outer, self.inner)]
        return f"seeds -> {steps[0]}\n  -> {name} -> {steps[1]}"


def dst_then_src(block: Block, offset: int) -> Int[Tensor, " b_plus_s"]:
    """Rows of both sides of a block where one matrix holds src below `offset` rows of dst.

    With ``texts = docs.stack(names)``, the tokens of a batch's documents and of its shortlist's
    names are ``Chain(shortlist, Hop(texts), partial(dst_then_src, offset=docs.n_rows))``.

    Example:
        >>> labels = Csr.from_lists([[0], [1]], n_cols=2)
        >>> dst_then_src(expand(labels, torch.tensor([1])), offset=2).tolist()
        [1, 3]
    """
    return torch.cat([block.dst, block.src + offset])
