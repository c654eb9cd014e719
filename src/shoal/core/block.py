"""What seeds touch: blocks, and the batch that carries them with their rows.

A :class:`Block` is one hop: a small sparse matrix from ``src`` to ``dst`` in local numbering. A
sampled neighborhood, the shortlist of labels that a batch scores, and the bags of tokens of its
texts are all blocks. A :class:`Batch` lists them input hop first, as PyG and DGL do, together with
the rows gathered for the first block's ``src``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from shoal.core import ranks
from shoal.core.csr import Csr
from shoal.core.errors import expect


@dataclass(frozen=True, eq=False)
class Block:
    """One hop from `src` to `dst`, in local numbering.

    Attributes:
        dst: ids of the rows that are computed, ``[b]``.
        src: ids of the rows that they read, ``[s]``, distinct.
        indptr: ``[b + 1]``; entries of ``dst[i]`` are ``indptr[i]:indptr[i + 1]``.
        indices: positions in `src`, ``[e]``.
        edges: positions in the Csr that was expanded, ``[e]``, so that weights and edge features
            find their place.
        dst_in_src: whether ``src[:b]`` equals ``dst``, as graph layers with a self term need.
    """

    dst: Int[Tensor, " b"]
    src: Int[Tensor, " s"]
    indptr: Int[Tensor, " b_plus_1"]
    indices: Int[Tensor, " e"]
    edges: Int[Tensor, " e"]
    dst_in_src: bool = False

    @property
    def csr(self) -> Csr:
        """The hop as a matrix ``[b, s]``."""
        return Csr(self.indptr, self.indices, self.src.numel())

    @cached_property
    def back(self) -> Csr:
        """The transpose of :attr:`csr`, ``[s, b]``, as its gradient needs it; computed once."""
        return self.csr.transpose()

    @property
    def edge_index(self) -> Int[Tensor, "2 e"]:
        """PyG's (source, target) pairs, both local: sources index `src`, targets index `dst`."""
        return torch.stack([self.indices.long(), self.csr.row_ids()])

    def mask(self) -> Bool[Tensor, "b s"]:
        """Dense ``[b, s]``: true where dst i and src j are joined.

        Example:
            >>> ids, one = torch.arange(2), torch.tensor([1])
            >>> Block(ids, ids, torch.tensor([0, 1, 1]), indices=one, edges=one).mask()
            tensor([[False,  True],
                    [False, False]])
        """
        dense = torch.zeros(
            self.dst.numel(), self.src.numel(), dtype=torch.bool, device=self.src.device
        )
        dense[self.csr.row_ids(), self.indices.long()] = True
        return dense

    def flip(self) -> Block:
        """The same entries seen from `src`, each with its edge.

        Example:
            >>> ids, one = torch.arange(2), torch.tensor([1])
            >>> block = Block(ids, ids + 5, torch.tensor([0, 1, 1]), indices=one, edges=one + 8)
            >>> there = block.flip()
            >>> there.dst.tolist(), there.indptr.tolist(), there.indices.tolist()
            ([5, 6], [0, 0, 1], [0])
            >>> there.edges.tolist()
            [9]
        """
        there = self.csr.with_values(self.edges).transpose()
        assert there.values is not None
        return Block(self.src, self.dst, there.indptr, there.indices, there.values)

    def map(self, change: Callable[[Tensor], Tensor]) -> Block:
        """The same block with every tensor changed."""
        parts = (self.dst, self.src, self.indptr, self.indices, self.edges)
        return Block(*(change(x) for x in parts), dst_in_src=self.dst_in_src)

    def to(self, device: torch.device | str) -> Block:
        """The same block on `device`."""
        return self.map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Share:
    """Which rows of a batch's output each process makes: they are dealt in turn.

    Attributes:
        order: positions of all rows, ``[n]``; process r of w makes ``order[r::w]``.
    """

    order: Int[Tensor, " n"]

    @property
    def own(self) -> Int[Tensor, " r"]:
        """The rows of this process."""
        return self.order[ranks.rank() :: ranks.world_size()]

    def joined(self, outputs: Shaped[Tensor, "r ..."]) -> Shaped[Tensor, "n ..."]:
        """The outputs of all processes, in the order of the batch.

        Raises:
            InputError: if the model made another number of rows than it was asked for.
        """
        w = ranks.world_size()
        sizes = [len(self.order[r::w]) for r in range(w)]
        want, got = f"{sizes[ranks.rank()]} rows, one per dst", len(outputs)
        expect(got == sizes[ranks.rank()], "model", want, got, "train it in one process")
        dealt = torch.cat([self.order[r::w] for r in range(w)])
        every = ranks.joined(outputs, sizes)
        return torch.empty_like(every).index_copy_(0, dealt.to(every.device), every)


@dataclass(frozen=True, eq=False)
class Batch:
    """Seeds, what they touch, and the rows that were gathered for it.

    Attributes:
        seeds: ids of the examples or nodes that the loss averages over, ``[b]``.
        blocks: hops, input hop first; the last one's `dst` begins with the seeds.
        src: rows of the table for ``blocks[0].src``, ``[s, d]``.
        target: what the loss compares with, one row a seed, or None where the last block carries
            it.
        share: where several processes train together: which rows of the output each of them makes.
            Hops and `src` are then what this process needs for its own; all else is the whole
            batch's.
    """

    seeds: Int[Tensor, " b"]
    blocks: tuple[Block, ...]
    src: Shaped[Tensor, "s ..."]
    target: Shaped[Tensor, "b ..."] | None = None
    share: Share | None = None

    @property
    def hops(self) -> tuple[Block, ...]:
        """The blocks that the model reads; without a target the last one is the loss's."""
        return self.blocks if self.target is not None else self.blocks[:-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""
        target = None if self.target is None else change(self.target)
        blocks = tuple(block.map(change) for block in self.blocks)
        share = None if self.share is None else Share(change(self.share.order))
        return Batch(change(self.seeds), blocks, change(self.src), target, share)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return self.map(lambda x: x.to(device, non_blocking=True))
