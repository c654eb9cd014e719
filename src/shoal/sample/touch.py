"""How likely a batch touches each row of a graph's features, from graph and fan-outs alone.

The fan-out model. A batch holds seed v with probability ``p_0(v) = batch size / seeds``. Hop h of
fan-out k draws an entry of each row v that was read so far with probability
``s_h(v) = min(k, deg v) / deg v``; a row read early is expanded again by every later hop, which may
draw what is drawn already. With d_h(v) the probability that a given entry of v has been drawn by
hop h, and w_h(v) that v has been read while the entry has not been drawn,

    d_h = d_{h-1} + s_h w_h,    w_{h+1} = (1 - s_h) w_h + (p_{h+1} - p_h),    w_0 = p_0
    p_{h+1}(u) = 1 - (1 - p_0(u)) Π_{(v,u)} (1 - d_h(v))

Assumption, in the product: rows are read independently of one another; they are not where they
share neighbors. No batch is drawn: each hop costs one product of the graph's matrix with a vector.
Made for placing rows in tiers, where it stands against one epoch of sampling in advance, degrees
and reverse PageRank (docs/results/tiers.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, expect_positive


def touch_probability(
    graph: Csr, seeds: Int[Tensor, " m"], fanouts: Sequence[int | None], batch_size: int
) -> Float[Tensor, " n"]:
    """Return the probability that a random batch reads each row.

    Args:
        graph: row v lists the nodes that v reads, as in ``NeighborSampler``.
        seeds: the nodes that batches are made of, each once.
        fanouts: entries drawn per node, the seeds' own hop first; None takes all.
        batch_size: seeds per batch.

    Returns:
        float64 in [0, 1].

    Raises:
        InputError: if a seed is out of range, the batch is not a part of the seeds, or a fan-out is
            negative.

    Example:
        Node 0 reads 1 and 2, node 3 reads nobody. Batches of one of the two draw one neighbor.

        >>> graph = Csr.from_lists([[1, 2], [], [], []], n_cols=4)
        >>> touch_probability(graph, torch.tensor([0, 3]), [1], batch_size=1).tolist()
        [0.5, 0.25, 0.25, 0.5]
    """
    expect_ids("seeds", seeds, graph.n_rows)
    expect_positive("batch_size", batch_size)
    most = max(len(seeds), 1)
    expect(batch_size <= most, "batch_size", f"at most the {most} seeds", batch_size, "lower it")
    start = torch.zeros(graph.n_rows, dtype=torch.float64)
    start[seeds] = batch_size / most
    degrees = graph.degrees()
    touched, waiting, drawn = start, start.clone(), torch.zeros_like(start)
    for fanout in fanouts:
        few = fanout is None or fanout >= 0
        expect(few, "fanouts", "numbers of at least 0, or None", fanout, "raise it")
        kept = degrees if fanout is None else degrees.clamp(max=fanout)
        now = waiting * kept / degrees.clamp(min=1)
        drawn = (drawn + now).clamp_(max=1)
        each = torch.log1p(-drawn).repeat_interleave(degrees, output_size=graph.nnz)
        missed = torch.zeros_like(start).index_add_(0, graph.indices, each).exp()
        before, touched = touched, 1 - (1 - start) * missed
        waiting = waiting - now + (touched - before)
    return touched
