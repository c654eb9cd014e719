"""A part of a batch: the hops that some rows of its output need, and nothing else.

Gradient caching runs a batch part after part in one process; several processes run one part each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.block import Batch, Block, Share
from shoal.sample.relabel import distinct


def part(
    hops: Sequence[Block], rows: Int[Tensor, " r"]
) -> tuple[tuple[Block, ...], Int[Tensor, " s"]]:
    """The hops that make only some rows of the last one's `dst`.

    Args:
        hops: input hop first; each one's `dst` is the next one's `src`.
        rows: distinct positions in the last hop's `dst`.

    Returns:
        the hops, and the positions in the first one's `src` that they read, in order.

    Example:
        >>> ids, ends = torch.arange(3), torch.tensor([0, 2, 3, 4])
        >>> hop = Block(ids, ids + 5, ends, torch.tensor([0, 1, 0, 2]), torch.arange(4))
        >>> (less,), read = part([hop], torch.tensor([2, 1]))
        >>> less.src.tolist(), less.indices.tolist(), read.tolist()
        ([7, 5], [0, 1], [2, 0])
    """
    less: list[Block] = []
    for hop in reversed(hops):
        entries, indptr = hop.csr.edges(rows)
        indices = hop.indices[entries].long()
        place = torch.empty(len(hop.src), dtype=torch.int32, device=hop.src.device)
        # rows come first, so that src begins with dst where a layer has a self term
        read = distinct(torch.cat([rows, indices]) if hop.dst_in_src else indices, place)
        local = place[indices].to(hop.indices.dtype)
        ends = hop.dst[rows], hop.src[read]
        less.append(Block(*ends, indptr, local, hop.edges[entries], hop.dst_in_src))
        rows = read
    return tuple(reversed(less)), rows


def shared(batch: Batch) -> Batch:
    """A batch as one of several processes works on it: the hops of its share of the output.

    Rows are dealt by their number of entries, so that processes have about as much to do. A batch
    without hops is every process's own, whole.
    """
    if not batch.hops:
        return batch
    share = Share(batch.hops[-1].indptr.diff().argsort(stable=True))
    hops, _ = part(batch.hops, share.own)
    return replace(batch, blocks=(*hops, *batch.blocks[len(hops) :]), share=share)
