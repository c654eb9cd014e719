"""Which entries of each row a hop reads: exact sampling laws, all rows at once.

Rows are ragged and the work is a fixed number of tensor operations, with no loop over rows:

- *uniform without replacement*: Floyd's algorithm (Bentley and Floyd, "A sample of brilliance",
  CACM 1987). Step i of k draws t uniform in ``[0, last]``, ``last = degree - k + i``, and takes t,
  or `last` if t is taken already; every k-subset then has probability ``1 / C(degree, k)``.
- *weighted without replacement*: entry x waits ``E_x / w_x`` with E_x standard exponential, and the
  k that come first are taken. So each next entry is chosen in proportion to its weight among the
  rest (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006, algorithm A,
  whose keys ``u^(1/w)`` fall as these waits rise).
- *with replacement*: k independent draws, uniform or by weight (the running sum inverted).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import pad

from shoal._checks import expect, fail
from shoal.csr import Csr


def draw(
    csr: Csr,
    rows: Int[Tensor, " b"],
    fanout: int | None,
    generator: Generator | None = None,
    *,
    replace: bool = False,
    weighted: bool = False,
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Sample `fanout` entries of each row.

    What is drawn are entries: a column that stands twice in its row is two of them.

    Args:
        csr: the rows; with `weighted`, its values are the weights.
        rows: which rows, ``[b]``; one that is repeated is drawn anew.
        fanout: entries a row, at least 0; None takes every entry, of whatever weight.
        generator: where randomness comes from, on the device of `csr`; needed unless all are taken.
        replace: take `fanout` independent draws from every row that is not empty. Without it, a row
            gives ``min(fanout, degree)`` different entries.
        weighted: draw in proportion to the values; entries of weight zero are never drawn.

    Returns:
        positions in ``csr.indices`` ``[e]``, row after row, and offsets ``[b + 1]`` into them.

    Raises:
        InputError: if `fanout` is negative, the generator is missing, or `weighted` finds no
            values, or a weight that is negative or not finite.

    Example:
        >>> csr = Csr.from_lists([[5, 6, 7], [8]], n_cols=9)
        >>> seeded = torch.Generator().manual_seed(0)
        >>> positions, offsets = draw(csr, torch.tensor([1, 0]), 2, seeded)
        >>> offsets.tolist(), len(set(positions.tolist()))
        ([0, 1, 3], 3)
    """
    if fanout is None:
        return csr.edges(rows)
    expect(fanout >= 0, "fanout", "at least 0, or None for all", fanout, "raise it")
    if generator is None:
        fail("generator", "a torch.Generator", None, "pass one: it is what makes draws repeatable")
    if weighted:
        return _weighted(csr, rows, fanout, generator, replace)
    start = csr.indptr.index_select(0, rows)
    degrees = csr.indptr.index_select(0, rows + 1) - start
    return (_independent if replace else _subsets)(start, degrees, fanout, generator)


def floyd(degrees: Int[Tensor, " b"], k: int, generator: Generator) -> Int[Tensor, "k b"]:
    """Draw a k-subset of ``range(degrees[i])`` for each i, all subsets equally likely.

    Args:
        degrees: sizes of the sets, each at least `k`.
        k: how many to draw.
        generator: where randomness comes from.

    Returns:
        ``[k, b]``: column i holds k different numbers below ``degrees[i]``, in no useful order.

    Example:
        >>> floyd(torch.tensor([3, 3]), 3, torch.Generator()).sort(0).values.T.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    last = degrees + torch.arange(-k, 0, device=degrees.device).unsqueeze(1)
    chosen = _below(last + 1, generator)
    taken = torch.zeros_like(chosen, dtype=torch.bool)
    # Small batches pay by the operation: views are made once, and the draws to come look at this
    # one, which spares a reduction over the earlier ones.
    steps = zip(chosen.unbind(), last.unbind(), taken.unbind(), strict=True)
    for i, (one, end, is_taken) in enumerate(steps, start=1):
        torch.where(is_taken, end, one, out=one)
        taken[i:].bitwise_or_(chosen[i:] == one)
    return chosen


def _subsets(
    start: Int[Tensor, " b"], degrees: Int[Tensor, " b"], fanout: int, generator: Generator
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Uniform without replacement: the first `fanout` of each row, then subsets in long rows."""
    counts = degrees.clamp(max=fanout)
    offsets = _offsets(counts)
    shift = (start - offsets[:-1]).repeat_interleave(counts, output_size=int(offsets[-1]))
    positions = shift.add_(torch.arange(shift.numel(), device=shift.device))
    long = (degrees > fanout).nonzero().squeeze(1)
    if long.numel() == 0:
        return positions, offsets
    slots = offsets[long] + torch.arange(fanout, device=long.device).unsqueeze(1)
    subsets = start[long] + floyd(degrees[long], fanout, generator)
    return positions.scatter_(0, slots.flatten(), subsets.flatten()), offsets


def _independent(
    start: Int[Tensor, " b"], degrees: Int[Tensor, " b"], fanout: int, generator: Generator
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Uniform with replacement."""
    some = degrees > 0
    bound = degrees[some].unsqueeze(1).expand(-1, fanout)
    return (start[some].unsqueeze(1) + _below(bound, generator)).flatten(), _offsets(some * fanout)


def _weighted(
    csr: Csr, rows: Int[Tensor, " b"], fanout: int, generator: Generator, replace: bool
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Both weighted laws, on the entries whose weight is not zero."""
    if csr.values is None:
        fail("weighted", "a Csr with values", repr(csr), "give it with_values(weights)")
    positions, offsets = csr.edges(rows)
    weights = csr.values[positions].double()
    good = bool(((weights >= 0) & weights.isfinite()).all())
    expect(good, "values", "finite weights of at least 0", "others", "repair the weights")
    owner = torch.arange(rows.numel(), device=rows.device).repeat_interleave(offsets.diff())
    some = weights > 0
    owner, weights = owner[some], weights[some]
    ends = _offsets(torch.bincount(owner, minlength=rows.numel()))
    law = _by_running_sum if replace else _by_waiting
    chosen, counts = law(weights, owner, ends, fanout, generator)
    return positions[some][chosen], _offsets(counts)


def _by_running_sum(
    weights: Float[Tensor, " e"],
    owner: Int[Tensor, " e"],
    ends: Int[Tensor, " b_plus_1"],
    fanout: int,
    generator: Generator,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " b"]]:
    """With replacement: find uniform points of each row's stretch of the running sum."""
    sums = weights.cumsum(0)
    some = ends.diff() > 0
    first, last = ends[:-1][some].unsqueeze(1), ends[1:][some].unsqueeze(1) - 1
    low, high = pad(sums, (1, 0))[first], sums[last]
    at = torch.searchsorted(sums, low + _uniform((len(low), fanout), generator) * (high - low))
    # Rounding may push a point out of its row's stretch.
    return at.clamp(first, last).flatten(), some * fanout


def _by_waiting(
    weights: Float[Tensor, " e"],
    owner: Int[Tensor, " e"],
    ends: Int[Tensor, " b_plus_1"],
    fanout: int,
    generator: Generator,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " b"]]:
    """Without replacement: the `fanout` entries of each row that waited least."""
    wait = -torch.log1p(-_uniform(weights.shape, generator)) / weights
    by_wait = wait.argsort()
    order = by_wait[owner[by_wait].argsort(stable=True)]
    rank = torch.arange(owner.numel(), device=owner.device) - ends[owner]
    return order[rank < fanout], ends.diff().clamp(max=fanout)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "*shape"]:
    """Uniform in [0, 1), 53 bits."""
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)


def _below(bound: Int[Tensor, "*shape"], generator: Generator) -> Int[Tensor, "*shape"]:
    """Uniform in ``[0, bound)``: 53 bits never round up to `bound`, the bias is bound / 2^53."""
    return (_uniform(bound.shape, generator) * bound).long()


def _offsets(counts: Int[Tensor, " b"]) -> Int[Tensor, " b_plus_1"]:
    """The running sum with a zero in front."""
    return pad(counts.cumsum(0), (1, 0))
