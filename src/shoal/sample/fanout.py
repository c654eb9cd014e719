"""Which entries of each row a hop reads: exact sampling laws, all rows at once.

Rows are ragged and the work is a fixed number of tensor operations, with no loop over rows:

- *uniform without replacement*: Floyd's algorithm (Bentley and Floyd, "A sample of brilliance",
  CACM 1987). Step i of k draws t uniform in ``[0, last]``, ``last = degree - k + i``, and takes t,
  or `last` if t is taken already; every k-subset then has probability ``1 / C(degree, k)``.
- *weighted without replacement*: entry x waits ``E_x / w_x`` with E_x standard exponential, and the
  k that come first are taken. So each next entry is chosen in proportion to its weight among the
  rest (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006, algorithm A,
  whose keys ``u^(1/w)`` fall as these waits rise).
- *with replacement*: k independent draws, uniform or by weight (the running sum inverted, in whole
  numbers: weights are rounded to 2^-32 of their row's largest).

Random numbers are read by position (:mod:`shoal.sample.counter`): one seed gives the same entries
on every device. On CUDA, Floyd's algorithm is one kernel (:mod:`shoal.sample._triton`) instead of
some eight per entry.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr, flagged, offsets_of, positions_of
from shoal.core.errors import expect, fail
from shoal.core.kernels import current, usable
from shoal.sample.counter import CounterRandom

_RUNS_KERNELS = ("cuda",)  # kinds of devices; tests let Triton's interpreter play one
_WHOLE = 2.0**32  # what a row's largest weight becomes; 2^31 of them still fit an int64


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
        rows: which rows, ``[b]``; one that is repeated is drawn again.
        fanout: entries per row, at least 0; None takes every entry, of whatever weight.
        generator: where randomness comes from, best a CPU's, whatever the device of `csr`, since
            others are waited for; needed unless all are taken.
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
    spans = csr.spans(rows)
    if weighted and csr.values is None:
        fail("weighted", "a Csr with values", repr(csr), "give it with_values(weights)")
    return draw_spans(*spans, fanout, generator, replace, csr.values if weighted else None)


def draw_spans(
    start: Int[Tensor, " b"],
    degrees: Int[Tensor, " b"],
    fanout: int | None,
    generator: Generator | None,
    replace: bool = False,
    weights: Shaped[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Sample entries of stretches, such as what a row had at some time; :func:`draw` by whole rows.

    Args:
        start: where each stretch begins.
        degrees: how many entries it has.
        fanout: as in :func:`draw`, and so are the generator and `replace`.
        generator: where randomness comes from.
        replace: draw with replacement.
        weights: of all entries, to draw in proportion to them.

    Returns:
        positions, stretch after stretch, and offsets into them.

    Raises:
        InputError: as :func:`draw`.

    Example:
        >>> draw_spans(torch.tensor([4, 9]), torch.tensor([2, 0]), None, None)
        (tensor([4, 5]), tensor([0, 2, 2]))
    """
    if fanout is None:
        offsets = offsets_of(degrees)
        return positions_of(start, offsets), offsets
    expect(fanout >= 0, "fanout", "at least 0, or None for all", fanout, "raise it")
    if generator is None:
        fail("generator", "a torch.Generator", None, "pass one: it is what makes draws repeatable")
    random = CounterRandom.of(generator)
    if weights is not None:
        return _weighted(start, degrees, weights, fanout, random, replace)
    return (_independent if replace else _subsets)(start, degrees, fanout, random)


def floyd(
    degrees: Int[Tensor, " b"], k: int, random: CounterRandom, rows: Int[Tensor, " b"]
) -> Int[Tensor, "k b"]:
    """Draw a k-subset of ``range(degrees[i])`` for each i, all subsets equally likely.

    Args:
        degrees: sizes of the sets, each at least `k`.
        k: how many to draw.
        random: where randomness comes from.
        rows: subset i reads the numbers ``k·rows[i]`` … ``k·rows[i] + k - 1``.

    Returns:
        ``[k, b]``: column i holds k different numbers below ``degrees[i]``, in no useful order.

    Example:
        >>> drawn = floyd(torch.tensor([3, 3]), 3, CounterRandom(0), torch.arange(2))
        >>> drawn.sort(0).values.T.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    turns = torch.arange(k, device=degrees.device).unsqueeze(1)
    last = degrees - k + turns
    drawn = random.below(rows * k + turns, last + 1)
    return (_resolve_on_host if drawn.is_cpu else resolve)(drawn, last)


def resolve(drawn: Int[Tensor, "k b"], last: Int[Tensor, "k b"]) -> Int[Tensor, "k b"]:
    """Replace, step by step, each number that an earlier one has taken by its step's last."""
    taken = torch.zeros_like(drawn, dtype=torch.bool)
    # Small batches pay by the operation: views are made once, and the draws to come look at this
    # one, which spares a reduction over the earlier ones.
    steps = zip(drawn.unbind(), last.unbind(), taken.unbind(), strict=True)
    for i, (one, end, is_taken) in enumerate(steps, start=1):
        torch.where(is_taken, end, one, out=one)
        taken[i:].bitwise_or_(drawn[i:] == one)
    return drawn


def _resolve_on_host(drawn: Int[Tensor, "k b"], last: Int[Tensor, "k b"]) -> Int[Tensor, "k b"]:
    """The same in two thirds of the time: numpy's operations are begun sooner than torch's."""
    numbers, ends = drawn.numpy(), last.numpy()
    taken = np.zeros(numbers.shape, dtype=bool)
    same = np.empty_like(taken)
    for i, (one, end) in enumerate(zip(numbers, ends, strict=True), start=1):
        np.copyto(one, end, where=taken[i - 1])
        np.equal(numbers[i:], one, out=same[i:])
        taken[i:] |= same[i:]
    return drawn


def _subsets(
    start: Int[Tensor, " b"], degrees: Int[Tensor, " b"], fanout: int, random: CounterRandom
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Uniform without replacement: the first `fanout` of each row, then subsets in long rows."""
    counts = degrees.clamp(max=fanout)
    offsets = offsets_of(counts)
    if start.device.type in _RUNS_KERNELS and usable(_probe, start.device):
        from shoal.sample import _triton

        with current(start.device):
            return _triton.subsets(start, degrees, offsets, fanout, random.key), offsets
    return by_columns(start, degrees, offsets, fanout, random), offsets


def by_columns(
    start: Int[Tensor, " b"],
    degrees: Int[Tensor, " b"],
    offsets: Int[Tensor, " b_plus_1"],
    fanout: int,
    random: CounterRandom,
) -> Int[Tensor, " e"]:
    """Positions of a uniform subset of each row, one step of Floyd's for all rows at once.

    Args:
        start: position of each row's first entry.
        degrees: entries of each row; those with at most `fanout` give all of them, in order.
        offsets: where in the result each row's entries begin.
        fanout: entries per row.
        random: where randomness comes from; row i reads it from ``fanout·i``.
    """
    positions = positions_of(start, offsets)
    long = flagged(degrees > fanout)
    if long.numel() == 0:
        return positions
    slots = offsets[long] + torch.arange(fanout, device=long.device).unsqueeze(1)
    subsets = start[long] + floyd(degrees[long], fanout, random, long)
    return positions.scatter_(0, slots.flatten(), subsets.flatten())


def _independent(
    start: Int[Tensor, " b"], degrees: Int[Tensor, " b"], fanout: int, random: CounterRandom
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Uniform with replacement."""
    some = degrees > 0
    bound = degrees[some].unsqueeze(1)
    drawn = random.below(_positions(some, fanout), bound)
    return (start[some].unsqueeze(1) + drawn).flatten(), offsets_of(some * fanout)


def _weighted(
    start: Int[Tensor, " b"],
    degrees: Int[Tensor, " b"],
    weights: Shaped[Tensor, " n"],
    fanout: int,
    random: CounterRandom,
    replace: bool,
) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
    """Both weighted laws, on the entries whose weight is not zero."""
    positions = positions_of(start, offsets_of(degrees))
    weights = weights[positions].double()
    good = bool(((weights >= 0) & weights.isfinite()).all())
    expect(good, "values", "finite weights of at least 0", "others", "repair the weights")
    owner = torch.repeat_interleave(degrees, output_size=len(positions))
    some = flagged(weights > 0)
    owner, weights = owner[some], weights[some]
    ends = offsets_of(torch.bincount(owner, minlength=len(start)))
    law = _by_running_sum if replace else _by_waiting
    chosen, counts = law(weights, owner, ends, fanout, random)
    return positions[some][chosen], offsets_of(counts)


def _by_running_sum(
    weights: Float[Tensor, " e"],
    owner: Int[Tensor, " e"],
    ends: Int[Tensor, " b_plus_1"],
    fanout: int,
    random: CounterRandom,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " b"]]:
    """With replacement: find uniform points of each row's stretch of the running sum."""
    # whole numbers add up to the same on every device, whatever the order
    largest = weights.new_zeros(len(ends) - 1).scatter_reduce_(0, owner, weights, "amax")
    sums = (weights / largest[owner] * _WHOLE).round().long().cumsum(0)
    some = ends.diff() > 0
    low, high = pad(sums, (1, 0))[ends[:-1][some]], sums[ends[1:][some] - 1]
    point = random.below(_positions(some, fanout), (high - low).unsqueeze(1))
    at = torch.searchsorted(sums, point + low.unsqueeze(1), right=True)
    return at.flatten(), some * fanout


def _by_waiting(
    weights: Float[Tensor, " e"],
    owner: Int[Tensor, " e"],
    ends: Int[Tensor, " b_plus_1"],
    fanout: int,
    random: CounterRandom,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " b"]]:
    """Without replacement: the `fanout` entries of each row that waited least."""
    wait = random.exponential(torch.arange(owner.numel(), device=owner.device)) / weights
    by_wait = wait.argsort(stable=True)
    order = by_wait[owner[by_wait].argsort(stable=True)]
    rank = torch.arange(owner.numel(), device=owner.device) - ends[owner]
    return order[rank < fanout], ends.diff().clamp(max=fanout)


def _positions(some: Bool[Tensor, " b"], fanout: int) -> Int[Tensor, "c k"]:
    """Which random numbers the rows that draw read: row i begins at ``fanout·i``."""
    rows = some.nonzero()
    return rows * fanout + torch.arange(fanout, device=some.device)


def _probe(device: torch.device) -> bool:
    """Whether a tiny draw by the kernel gives what torch gives."""
    from shoal.sample import _triton

    start, degrees, offsets = (torch.tensor(x, device=device) for x in ([0, 9], [9, 1], [0, 3, 4]))
    drawn = _triton.subsets(start, degrees, offsets, 3, key=1)
    return torch.equal(drawn, by_columns(start, degrees, offsets, 3, CounterRandom(1)))
