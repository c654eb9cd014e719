"""Exact top-k by inner product, in bounded memory: for every query the k keys with the largest q·k.

Selecting k of m scores costs about as much as reading them several times, which plain ``mm`` then
``topk`` pays in full. Here the m scores of a query are cut into groups of G neighbors, and only the
largest of each group is looked at. *Lemma*: order all scores by (score falling, id rising) and the
groups by the place of their first member; then the first k scores lie within the first k groups,
because each of those k groups holds a member that precedes everything in any later group. So m / G
maxima and k G candidates are ranked instead of m scores, and nothing is approximated, ties
included. The maxima are taken while a tile of scores is still in the cache that the product wrote.

The order is total, (score falling, id rising), so the answer depends neither on the size of a block
nor on the device, up to the rounding of the inner products themselves.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal._checks import expect, expect_finite, expect_positive
from shoal.csr import Csr

# 32 neighbors: the shortest inner row that torch.amax reduces at the speed of memory (AVX2, torch
# 2.13: 16 takes five times as long); longer ones make more candidates.
_GROUP = 32
# 256 queries x 2048 keys: 2 MiB of scores, in a second- or third-level cache; MKL reached its full
# rate from 128 queries on and lost a fifth of it where the scores went to memory.
_QUERIES = 256
_TILE = 2048


def top_k(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    k: int,
    drop: Csr | None = None,
    max_bytes: int = 2**28,
) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
    """Find the k keys of largest inner product with each query.

    Args:
        queries: rows of any floating type, on the device of `keys`; float32 is computed.
        keys: the rows that are searched.
        k: how many to return a query, at most m.
        drop: ``[n, m]``, the (query, key) pairs that may not be returned, as the filter files of
            the Extreme Classification Repository list them. Its values are ignored.
        max_bytes: bound on the memory for scores and candidates beside inputs and result, or the
            3 KiB x k that one query needs if that is more. 2^28 is 256 MiB: the scores of 256
            queries and 100,000 keys at once; with more keys they come in several pieces.

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
        >>> top_k(torch.tensor([[2.0, 1.0]]), keys, 2, Csr.from_lists([[0, 1]], n_cols=3))[1]
        tensor([[ 2, -1]])
    """
    _expect_alike(queries, keys, k, drop)
    rows, columns = _block_shape(len(queries), len(keys), k, max_bytes)
    buffer = torch.empty(rows * columns, device=keys.device)
    scores = torch.empty(len(queries), k, device=keys.device)
    ids = torch.empty(len(queries), k, dtype=torch.int64, device=keys.device)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        seeds = torch.arange(block.start, block.stop, device=keys.device)
        part = None if drop is None else drop.rows(seeds)
        scores[block], ids[block] = _search_block(queries[block].float(), keys, k, part, buffer)
    return scores, ids


def _search_block(
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "m d"],
    k: int,
    drop: Csr | None,
    buffer: Float[Tensor, " c"],
) -> tuple[Float[Tensor, "b {k}"], Int[Tensor, "b {k}"]]:
    """Search as many keys at a time as the buffer holds scores for, and merge what each gives."""
    b = len(queries)
    columns = buffer.numel() // b // _GROUP * _GROUP
    scores, ids = queries.new_empty(b, 0), torch.empty(b, 0, dtype=torch.int64, device=keys.device)
    for first in range(0, len(keys), columns):
        part = keys[first : first + columns]
        width = -(-len(part) // _GROUP) * _GROUP
        maxima = _fill(buffer[: b * width].view(b, width), queries, part, first, drop)
        more, at = _candidates(buffer[: b * width].view(b, -1, _GROUP), maxima, k)
        # Earlier ids stand to the left, so that leftmost means lowest.
        scores, ids = torch.cat([scores, more], 1), torch.cat([ids, at + first], 1)
        scores, at = _leftmost_largest(scores, min(k, scores.shape[1]))
        ids = ids.gather(1, at)
    return scores, ids.masked_fill_(scores == -torch.inf, -1)


def _fill(
    scores: Float[Tensor, "b c"],
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "c_keys d"],
    first: int,
    drop: Csr | None,
) -> Float[Tensor, "b g"]:
    """Write the scores of keys ``first …`` and -inf where there is none; return group maxima."""
    groups = scores.view(len(scores), -1, _GROUP)
    maxima = scores.new_empty(groups.shape[:2])
    scores[:, len(keys) :] = -torch.inf
    # Only a CPU gains by tiles that fit its cache; an accelerator wants few large products.
    tile = _TILE if scores.device.type == "cpu" else scores.shape[1]
    for left in range(0, len(keys), tile):
        part = keys[left : left + tile].float()
        torch.mm(queries, part.T, out=scores[:, left : left + len(part)])
        covered = slice(left // _GROUP, (left + tile) // _GROUP)
        torch.amax(groups[:, covered], 2, out=maxima[:, covered])
    if drop is not None:
        column = drop.indices.long() - first
        here = (column >= 0) & (column < len(keys))
        row, column = drop.row_ids()[here], column[here]
        scores[row, column] = -torch.inf
        group = column // _GROUP
        maxima[row, group] = groups[row, group].amax(1)
    return maxima


def _candidates(
    groups: Float[Tensor, "b g w"], maxima: Float[Tensor, "b g"], k: int
) -> tuple[Float[Tensor, "b j"], Int[Tensor, "b j"]]:
    """The first k scores by (score falling, id rising), from the first k groups alone."""
    _, chosen = _leftmost_largest(maxima, min(k, maxima.shape[1]))
    chosen = chosen.sort(dim=1).values  # so that candidates stand by rising id
    width = groups.shape[2]
    found = groups.gather(1, chosen[:, :, None].expand(-1, -1, width)).flatten(1)
    scores, at = _leftmost_largest(found, min(k, found.shape[1]))
    return scores, chosen.gather(1, at // width) * width + at % width


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


def _block_shape(n: int, m: int, k: int, max_bytes: int) -> tuple[int, int]:
    """Queries and keys at a time: half the bytes for scores, half for k groups of candidates.

    A score takes 4 bytes and its share of a group's maximum under 1 more while ranked; a candidate
    takes 48 (the score twice, its rank and the place it is gathered from).
    """
    rows = max(1, min(n, _QUERIES, max_bytes // 2 // (48 * _GROUP * k)))
    columns = max(_GROUP, min(m + _GROUP - 1, max_bytes // 2 // (5 * rows)) // _GROUP * _GROUP)
    return rows, columns


def _expect_alike(queries: Tensor, keys: Tensor, k: int, drop: Csr | None) -> None:
    """Raise unless queries can be searched among keys.

    Raises:
        InputError: naming the argument that does not fit.
    """
    for name, rows in (("queries", queries), ("keys", keys)):
        kind = f"{rows.dtype} {tuple(rows.shape)}"
        good = rows.dim() == 2 and rows.is_floating_point()
        expect(good, name, "floating rows [., d]", kind, "pass one embedding a row")
        if not bool(rows.sum().isfinite()):  # a tenth of the time of looking at every entry
            expect_finite(name, rows)
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
