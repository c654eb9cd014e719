"""Exact top-k by inner product, in bounded memory: for every query the k keys with the largest q·k.

Plain ``mm`` then ``topk`` writes all m scores of a query to memory and reads them again. Here they
come a tile at a time, small enough for the cache that the product wrote them to, and only a score
above the k-th best so far is looked at: in tile i of keys in random order about k / i are, so most
groups of 32 neighbors are passed over by their maximum alone. Nothing is approximated.

The order is total, (score falling, id rising): a later key that equals the k-th best has the higher
id and comes after it. So the answer depends neither on the size of a tile nor on the device, up to
the rounding of the inner products themselves.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_finite, expect_positive
from shoal.core.progress import progress

# 32 neighbors: the shortest inner row that torch.amax reduces at the speed of memory (AVX2, torch
# 2.13: 16 takes five times as long); longer ones pass on more scores.
_GROUP = 32
# Each block of queries reads all keys once; MKL reaches its full rate from 128 queries on.
_QUERIES = 256
# Bytes for each score of a tile and each of the k best, if every score of a tile must be kept:
# positions as int64, copies while lists are joined and ranked. The usual tile takes a tenth.
_BYTES = 128


@runtime_checkable
class Search(Protocol):
    """A way to find keys: :func:`top_k`, or one that may miss some (:mod:`shoal.rank.hnsw`)."""

    def __call__(
        self,
        queries: Float[Tensor, "n d"],
        keys: Float[Tensor, "m d"],
        k: int,
        drop: Csr | None = None,
    ) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
        """Scores, falling, and ids of the k keys found for each query; -inf and -1 where fewer."""
        ...


def top_k(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    k: int,
    drop: Csr | None = None,
    max_bytes: int = 2**27,
) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
    """Find the k keys of largest inner product with each query.

    Args:
        queries: rows of any floating type, on the device of `keys`; float32 is computed.
        keys: the rows that are searched.
        k: how many to return a query, at most m.
        drop: ``[n, m]``, the (query, key) pairs that may not be returned, as the filter files of
            the Extreme Classification Repository list them. Its values are ignored.
        max_bytes: bound on the working memory beside inputs and result, or what one query and 32
            keys need, 128 (k + 32), if that is more. 2^27 gives tiles of 4 MiB, measured best on a
            CPU (8 MiB of shared cache); an accelerator gains by large products: pass 2^30 or more.

    Returns:
        scores ``[n, k]``, falling, and ids ``[n, k]``; equal scores stand by rising id. Where fewer
        than k keys are left after `drop` the rest are -inf and -1.

    Raises:
        InputError: if shapes or devices disagree, k exceeds m, or a row holds NaN or infinity.

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> scores, ids = top_k(torch.tensor([[2.0, 1.0]]), keys, 2)
        >>> scores.tolist(), ids.tolist()
        ([[2.0, 2.0]], [[0, 2]])
        >>> top_k(torch.tensor([[2.0, 1.0]]), keys, 3, Csr.from_lists([[0, 1]], n_cols=3))[1]
        tensor([[ 2, -1, -1]])
    """
    expect_rows("queries", queries)
    expect_rows("keys", keys)
    expect_alike(queries, keys, k, drop)
    expect_positive("max_bytes", max_bytes)
    rows, columns = _tile_shape(len(queries), len(keys), k, max_bytes)
    scores = torch.empty(len(queries), k, device=keys.device)
    ids = torch.empty(len(queries), k, dtype=torch.int64, device=keys.device)
    for first in progress(range(0, len(queries), rows), "search"):
        block = torch.arange(first, min(first + rows, len(queries)), device=keys.device)
        pairs = None if drop is None else drop.rows(block)
        scores[block], ids[block] = _search(queries[block].float(), keys, k, pairs, columns)
    return scores, ids


def _search(
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "m d"],
    k: int,
    drop: Csr | None,
    columns: int,
) -> tuple[Float[Tensor, "b {k}"], Int[Tensor, "b {k}"]]:
    """Run one block of queries past all keys, a tile of `columns` keys at a time."""
    tile = queries.new_empty(len(queries), columns)
    scores = queries.new_full((len(queries), k), -torch.inf)
    ids, bar = torch.full_like(scores, -1, dtype=torch.int64), scores[:, -1:]
    for first in range(0, len(keys), columns):
        _fill(tile, queries, keys[first : first + columns].float(), drop, first)
        if first == 0 and columns >= k:
            # Just below the k-th best, or the whole first tile would be listed.
            bar = torch.nextafter(tile.topk(k).values[:, -1:], bar)
        more, at = _above(tile, bar)
        # Earlier ids stand to the left, so that leftmost means lowest.
        scores, ids = torch.cat([scores, more], 1), torch.cat([ids, at + first], 1)
        if scores.shape[1] >= 2 * k or first + columns >= len(keys):
            scores, at = _leftmost_largest(scores, k)
            ids, bar = ids.gather(1, at), scores[:, -1:]
    return scores, ids.masked_fill_(scores == -torch.inf, -1)


def _fill(
    tile: Float[Tensor, "b c"],
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "c_keys d"],
    drop: Csr | None,
    first: int,
) -> None:
    """Write the scores of keys ``first …``; -inf where there is none or the pair is dropped."""
    torch.mm(queries, keys.T, out=tile[:, : len(keys)])
    tile[:, len(keys) :] = -torch.inf
    if drop is not None:
        column = drop.indices.long() - first
        here = (column >= 0) & (column < len(keys))
        tile[drop.row_ids()[here], column[here]] = -torch.inf


def _above(
    tile: Float[Tensor, "b c"], bar: Float[Tensor, "b 1"]
) -> tuple[Float[Tensor, "b j"], Int[Tensor, "b j"]]:
    """The scores above each row's bar and their columns, rising; rows are padded with -inf."""
    groups = tile.view(len(tile), -1, _GROUP)
    row, group = (groups.amax(2) > bar).nonzero(as_tuple=True)
    found = groups[row, group]
    which, place = (found > bar[row]).nonzero(as_tuple=True)
    row, column, score = row[which], group[which] * _GROUP + place, found[which, place]
    count = torch.bincount(row, minlength=len(tile))
    slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    more = tile.new_full((len(tile), int(count.max())), -torch.inf)
    at = torch.zeros_like(more, dtype=torch.int64)
    more[row, slot], at[row, slot] = score, column
    return more, at


def _leftmost_largest(
    scores: Float[Tensor, "b c"], k: int
) -> tuple[Float[Tensor, "b {k}"], Int[Tensor, "b {k}"]]:
    """The k largest of each row, falling, the leftmost first among equals, and where they stand.

    ``torch.topk`` leaves the order of equals open. Distinct integers have none: the upper half of
    each is the score, as an integer of the same order, the lower half counts columns backwards.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding zero makes -0 and 0 the same bits
    rank = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    backwards = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    at = (rank.mul_(2**32).add_(backwards)).topk(k, dim=1).indices
    return scores.gather(1, at), at


def _tile_shape(n: int, m: int, k: int, max_bytes: int) -> tuple[int, int]:
    """Queries and keys of a tile, whose scores and k best a query fit into `max_bytes`."""
    budget = max_bytes // _BYTES
    rows = max(1, min(n, _QUERIES, budget // (k + _GROUP)))
    groups = max(1, min(-(-m // _GROUP), (budget // rows - k) // _GROUP))
    return rows, groups * _GROUP


def expect_rows(name: str, rows: Tensor) -> None:
    """Raise unless these are embeddings, one per row.

    Raises:
        InputError: if they are not floating, no matrix, or hold NaN or infinity.
    """
    kind = f"{rows.dtype} {tuple(rows.shape)}"
    good = rows.dim() == 2 and rows.is_floating_point()
    expect(good, name, "floating rows [., d]", kind, "pass one embedding per row")
    if not bool(rows.sum().isfinite()):  # a tenth of the time of looking at every entry
        expect_finite(name, rows)


def expect_alike(queries: Tensor, keys: Tensor, k: int, drop: Csr | None) -> None:
    """Raise unless queries can be searched among keys.

    Raises:
        InputError: naming the argument that does not fit.
    """
    width = keys.shape[1]
    expect(queries.shape[1] == width, "queries", f"rows of {width}", queries.shape[1], "align")
    good = queries.device == keys.device
    expect(good, "queries", f"rows on {keys.device}", queries.device, "move them with .to()")
    expect_positive("k", k)
    expect(k <= len(keys), "k", f"at most the {len(keys)} keys", k, "lower k")
    if drop is not None:
        shape = (len(queries), len(keys))
        good = drop.shape == shape and drop.device == keys.device
        expect(good, "drop", f"{shape} on {keys.device}", f"{drop!r} on {drop.device}", "align it")
