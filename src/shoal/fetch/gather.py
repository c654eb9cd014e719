"""Reading rows on the host: ``table[ids]`` and the mean of bags of rows, as fast as a CPU can.

``x[ids]`` of torch is the slow way: ``torch.index_select(x, 0, ids, out=buffer)`` into memory that
has been touched before takes a third of its time (100,000 of 1,000,000 × 128 float32, one thread),
because neither index arithmetic nor the operating system's page faults are in it.
:class:`Buffers` keeps such memory. The mean of a bag needs no gathered rows at all:
``embedding_bag`` adds them up while it reads them.

Rows of uint8 are *packed*: d codes q, then the bytes of two float32 numbers, and x = q·scale + bias
(torch's and FBGEMM's "fused 8-bit rowwise" layout). As floats, rows of 16 bits are their float32.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import embedding_bag

from shoal.core.errors import expect, expect_ids, fail
from shoal.fetch.threads import for_each

# glibc maps blocks over 32 MB afresh each time (half of a gather's time goes into their page
# faults), and those of several threads from about half of that; below it reuses them by itself.
LENT_BYTES = 16 << 20
TAIL = 8  # bytes behind the codes of a packed row: scale and bias
_BAGS = 256  # one thread's share of a mean of packed rows: some 0.1 ms of work


class Buffers:
    """Memory that is lent as tensors and comes back by itself when the last of them is gone.

    A tensor from :meth:`empty` is an ordinary one; views and autograd may hold on to it for as long
    as they like. What is lent next never overlaps what is still in use.

    Args:
        keep: how many idle blocks are kept for later; 4 covers two batches prefetched, one in use
            and one on its way.

    Example:
        >>> buffers = Buffers()
        >>> first = buffers.empty((64, 32), torch.float32)
        >>> where = first.data_ptr()
        >>> buffers.empty((64, 32), torch.float32).data_ptr() == where  # `first` is in use
        False
        >>> del first
        >>> buffers.empty((64, 32), torch.float32).data_ptr() == where
        True
    """

    def __init__(self, keep: int = 4) -> None:
        self._idle: deque[Tensor] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized CPU tensor; worth its 30 µs from LENT_BYTES on."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        block = self._block(nbytes)
        # torch holds this very array until the tensor's storage dies; its end is the block's return
        array = block[:nbytes].numpy()
        weakref.finalize(array, self._idle.append, block).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _block(self, nbytes: int) -> Tensor:
        try:
            block = self._idle.pop()
        except IndexError:
            block = None
        if block is None or block.numel() < nbytes:
            # batches differ a little in size: an eighth more lets the next one fit as well
            block = torch.empty(nbytes + nbytes // 8, dtype=torch.uint8)
        return block


def gather_rows(
    table: Shaped[Tensor, "n ..."],
    ids: Int[Tensor, " s"],
    out: Shaped[Tensor, "s ..."] | None = None,
) -> Shaped[Tensor, "s ..."]:
    """Return ``table[ids]``, without a gradient.

    Args:
        table: rows in host memory, or mapped from a file.
        ids: int32 or int64, each in ``[0, n)``; repeats allowed.
        out: where to write, of the result's shape and dtype; a fresh tensor if None.

    Returns:
        `out`, one row an id.

    Raises:
        InputError: if an id is out of range or `out` does not fit.

    Example:
        >>> gather_rows(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([2, 0]))
        tensor([[5, 6],
                [1, 2]])
    """
    if out is not None:
        expect_out(table.shape, table.dtype, ids, out)
    try:
        return torch.index_select(table.detach(), 0, ids, out=out)
    except (IndexError, RuntimeError) as error:
        # looked at only after the fact: a good gather does not pay for the check
        expect_ids("ids", ids, len(table))
        fail("table", "rows that torch can gather", error, "see torch's own message")


def gather_mean(
    table: Shaped[Tensor, "n w"],
    indices: Int[Tensor, " e"],
    offsets: Int[Tensor, " b_plus_1"],
    weights: Float[Tensor, " e"] | None = None,
) -> Float[Tensor, "b d"]:
    """Return the weighted mean of each bag of rows, without a gradient and without the rows.

    Bag i is ``indices[offsets[i]:offsets[i + 1]]``, and its mean ``Σ w·x / Σ w``: the same numbers
    as gathering all rows, scaling them and adding each bag's up, in half the time and without the
    ``[e, d]`` in between. An empty bag gives zeros.

    Args:
        table: rows to average, floats or packed bytes.
        indices: rows of all bags, one bag after the other, each in ``[0, n)``.
        offsets: where each bag begins, and the end of the last.
        weights: one non-negative number per entry; each counts one if None.

    Raises:
        InputError: if an id is out of range, or offsets or weights do not fit.

    Example:
        >>> table = torch.tensor([[0.0], [2.0], [10.0]])
        >>> gather_mean(table, torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2, 3])).tolist()
        [[1.0], [0.0], [10.0]]
    """
    expect_ids("indices", indices, len(table))
    expect_bags(indices, offsets, weights)
    if table.dtype == torch.uint8:
        return _packed_mean(table, indices, offsets, bag_shares(weights, offsets, torch.float32))
    if weights is not None:
        weights = bag_shares(weights, offsets, table.dtype)
    return embedding_bag(
        indices,
        table.detach(),
        offsets.to(indices.dtype),
        mode="mean" if weights is None else "sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def _packed_mean(
    packed: UInt8[Tensor, "n w"],
    indices: Int[Tensor, " e"],
    offsets: Int[Tensor, " b_plus_1"],
    shares: Float[Tensor, " e"],
) -> Float[Tensor, "b d"]:
    out = torch.empty(len(offsets) - 1, float_width(packed))

    def add_up(first: int, last: int) -> None:
        ends = offsets[first : last + 1]
        begin, end = int(ends[0]), int(ends[-1])
        out[first:last] = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            packed,
            indices[begin:end].long(),
            (ends - begin).long(),
            per_sample_weights=shares[begin:end],
            include_last_offset=True,
        )

    # torch's kernel runs in one thread: bags are shared out instead
    bags = range(0, len(out), _BAGS)
    for_each(add_up, ((first, min(first + _BAGS, len(out))) for first in bags))
    return out


def mean_of(
    rows: Float[Tensor, "e d"],
    offsets: Int[Tensor, " b_plus_1"],
    weights: Float[Tensor, " e"] | None,
) -> Float[Tensor, "b d"]:
    """Return the weighted mean of each bag of rows that stand one after the other, in order.

    Example:
        >>> mean_of(torch.tensor([[0.0], [2.0], [8.0]]), torch.tensor([0, 2, 3]), None)
        tensor([[1.],
                [8.]])
    """
    shares = bag_shares(weights, offsets, rows.dtype)
    owner = torch.repeat_interleave(offsets.diff(), output_size=len(rows))
    out = rows.new_zeros((len(offsets) - 1, rows.shape[1]))
    return out.index_add_(0, owner, shares[:, None] * rows)


def bag_shares(
    weights: Float[Tensor, " e"] | None,
    offsets: Int[Tensor, " b_plus_1"],
    dtype: torch.dtype,
) -> Float[Tensor, " e"]:
    """Weights over their bag's sum, ``w / Σ w``; one over the bag's length where there are none.

    Example:
        >>> bag_shares(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 2, 3]), torch.float32)
        tensor([0.2500, 0.7500, 1.0000])
    """
    counts = offsets.diff()
    if weights is None:
        return counts.to(dtype).reciprocal().repeat_interleave(counts)
    sums = torch.segment_reduce(weights, "sum", offsets=offsets.long(), initial=0)
    # a bag whose weights are all zero is an empty one: 0 / tiny is 0
    sums.clamp_(min=torch.finfo(sums.dtype).tiny)
    return (weights / sums.repeat_interleave(counts, output_size=weights.numel())).to(dtype)


def as_floats(
    rows: Shaped[Tensor, "s w"], out: Float[Tensor, "s d"] | None = None
) -> Float[Tensor, "s d"]:
    """Return rows as float32, doubles as they are; each step of ``q·scale + bias`` is rounded.

    Example:
        >>> numbers = torch.tensor([[0.5, 1.0]]).view(torch.uint8)
        >>> as_floats(torch.cat([torch.tensor([[0, 4]], dtype=torch.uint8), numbers], 1))
        tensor([[1., 3.]])
    """
    if rows.dtype != torch.uint8:
        return rows if rows.dtype == torch.float64 else rows.float()
    # a copy even of one row, whose numbers may begin at any byte
    numbers = rows[:, -TAIL:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    codes = rows[:, :-TAIL]
    floats = codes.float() if out is None else out.copy_(codes)
    return floats.mul_(numbers[:, :1]).add_(numbers[:, 1:])


def float_width(table: Shaped[Tensor, "n w"]) -> int:
    """Columns of the table's rows as floats."""
    return table.shape[1] - (TAIL if table.dtype == torch.uint8 else 0)


def expect_out(table: torch.Size, dtype: torch.dtype, ids: Tensor, out: Tensor) -> None:
    """Raise unless `out` has room for rows `ids` of a table of shape `table`.

    Raises:
        InputError: if it has not.
    """
    shape = (ids.numel(), *table[1:])
    if out.shape != shape or out.dtype != dtype:
        got = f"{tuple(out.shape)} {out.dtype}"
        fail("out", f"{shape} {dtype}", got, "allocate it with torch.empty")
    there = out.device == ids.device
    expect(there, "out", f"the device of the ids, {ids.device}", out.device, "allocate it there")


def expect_bags(indices: Tensor, offsets: Tensor, weights: Tensor | None) -> None:
    """Raise unless offsets and weights fit the entries.

    Raises:
        InputError: if they do not.
    """
    offsets = offsets.cpu()
    ends = len(offsets) >= 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(indices)
    falls = bool((offsets.diff() < 0).any())
    got = "a fall" if falls else f"{offsets[:1].tolist()} … {offsets[-1:].tolist()}"
    good = ends and not falls
    expect(good, "offsets", f"0 … {len(indices)}, never falling", got, "pass b + 1 offsets")
    same = weights is None or weights.shape == indices.shape
    got = None if weights is None else tuple(weights.shape)
    expect(same, "weights", f"one per entry, {tuple(indices.shape)}", got, "align them")
