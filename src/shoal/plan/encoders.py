"""What an encoder of texts holds and does: bags of rows, and transformers.

Both answer the same questions, for the T texts of a batch with N tokens, of which a rank computes
its share: what lies in memory (:meth:`parts`), what a forward and backward pass do
(:meth:`compute`), and what one forward pass alone does (:meth:`embedding`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from shoal.core.errors import expect, expect_positive
from shoal.plan.devices import Real, Work
from shoal.plan.nearest import halves
from shoal.plan.noun import Part, Stage
from shoal.plan.rows import zipf_sum

NUMBER = 4  # bytes of a float32
# Floats that a layer of a post-norm encoder keeps for its backward pass, per token: queries, keys,
# values, context, what its two norms and its dense layers read and what dropout drew; of the inner
# width before and after the activation; of a head and token, scores, softmax and what dropout left.
# Counted by saved_tensors_hooks on BertModel (tests/plan/test_plan.py).
KEPT_WIDTH, KEPT_INNER, KEPT_SCORES, KEPT_EMBEDDED = 10.5, 2.0, 3.0, 2.0
# On a host a third more: gaps between blocks of memory that its allocator keeps, as measured on the
# setting "transformer 0" of docs/results/plan.md.
GAPS = 4 / 3


@runtime_checkable
class Encoder(Protocol):
    """An encoder of a planned label job."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    def parts(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Part, ...]:
        """What lies in memory for a batch."""
        ...

    def stages(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Stage, ...]:
        """What a step does beside the loss."""
        ...

    def embedding(self, texts: Real, tokens: Real, on_host: bool) -> Work:
        """A forward pass without a graph."""
        ...

    def nearer(self, batch_size: int) -> Iterator[tuple[str, Encoder]]:
        """Settings of its own, by name, that hold less of the same batch, the nearest first."""
        ...


def distinct(n: Real, draws: Real, zipf: Real = 0.0) -> Real:
    """Expected number of different rows among so many draws from n, the r-th drawn as ``r^-zipf``.

    ``Σ_r 1 − exp(−draws · p_r)``: a thousand terms, behind them the integral over log r.

    Example:
        >>> round(distinct(10, 1e9)), round(distinct(1e9, 10), 3)
        (10, 10.0)
        >>> distinct(1000, 500, zipf=1.0) < distinct(1000, 500)
        True
    """
    count = max(round(n), 1)
    if zipf == 0:
        return -count * math.expm1(-draws / count)
    total = zipf_sum(count, zipf)

    def read(rank: Real) -> Real:
        return -math.expm1(-draws * rank**-zipf / total)

    exact = sum(read(r) for r in range(1, min(count, 1000) + 1))
    if count <= 1000:
        return exact
    low, high, cells = math.log(1000.5), math.log(count + 0.5), 400
    width = (high - low) / cells
    middles = (math.exp(low + (i + 0.5) * width) for i in range(cells))
    return exact + sum(read(r) * r * width for r in middles)


@dataclass(frozen=True)
class BagSizes:
    """Rows of words, summed: :class:`shoal.BagEncoder`.

    Attributes:
        vocabulary: rows, of words, pieces and fields; three per known word or so.
        dim: width.
        zipf: the r-th most frequent row stands in texts in proportion to 1 / r^zipf; natural words
            are near 1.
        state: numbers that the row optimizer keeps per number; 2 for Adam.

    Raises:
        InputError: if a number is out of range.
    """

    vocabulary: int
    dim: int = 256
    zipf: Real = 1.0
    state: Real = 2.0

    def __post_init__(self) -> None:
        expect_positive("vocabulary", self.vocabulary)
        expect_positive("dim", self.dim)
        expect(self.zipf >= 0, "zipf", "a number of at least 0", self.zipf, "set it")

    def rows(self, tokens: Real) -> Real:
        """Distinct rows that a batch reads."""
        return min(distinct(self.vocabulary, tokens, self.zipf), self.vocabulary)

    def parts(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Part, ...]:
        """Rows and state in host memory; gathered rows and their gradient where it computes."""
        row, table = NUMBER * self.dim, NUMBER * self.vocabulary * self.dim
        steps = NUMBER * self.vocabulary if self.state else 0
        # rows, their gradient, and a sort of both where ranks join what each has
        read = self.rows(tokens / ranks) * row * 2 + (
            self.rows(tokens) * row * 2 if ranks > 1 else 0
        )
        made = 6 * texts / ranks * row  # sums, lengths, unit vectors, and gradients of these
        return (
            Part("rows of the table", host=table),
            Part("optimizer state", host=self.state * table + steps),
            Part("activations", device=read + made, phase="step"),
        )

    def stages(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Stage, ...]:
        """Gather, forward and backward, the update of rows on the host, and what ranks join."""
        row = NUMBER * self.dim
        own, all_rows = self.rows(tokens / ranks), self.rows(tokens)
        carried = 0.0 if on_host else 2 * own * row
        gather = Work(gathered=2 * own * row, calls=4, linked=carried)
        compute = Work(
            gathered=2 * tokens / ranks * row,
            streamed=(10 * texts / ranks + 2 * own) * row,
            calls=60,
        )
        # a row optimizer reads and writes the row and its state, and makes six temporary rows
        update = Work(
            gathered=2 * (1 + self.state) * all_rows * row, streamed=6 * all_rows * row, calls=30
        )
        stages = (Stage("gather", gather), Stage("compute", compute), Stage("update", update))
        if ranks == 1:
            return stages
        sent = (ranks - 1) / ranks * texts * row + (ranks - 1) * own * row
        return (*stages, Stage("communication", Work(sent=sent, calls=6)))

    def embedding(self, texts: Real, tokens: Real, on_host: bool) -> Work:
        """Each token's row is read once."""
        row = NUMBER * self.dim
        return Work(gathered=tokens * row, streamed=3 * texts * row, calls=texts / 1000)

    def nearer(self, batch_size: int) -> Iterator[tuple[str, Encoder]]:
        """None: all rows of a batch are gathered at once."""
        return iter(())


@dataclass(frozen=True)
class TransformerSizes:
    """A post-norm encoder such as BERT: :class:`shoal.TransformerEncoder`.

    Attributes:
        layers: of attention and a dense part each.
        dim: width.
        inner: width inside the dense part; four times the width by default.
        heads: of attention.
        vocabulary: rows of the token embedding.
        positions: rows of the position embedding.
        chunk: texts whose activations are held at a time by gradient caching; None for all.

    Raises:
        InputError: if a number is out of range.

    Example:
        BERT base has 110 million parameters, 0.6 of them in the pooler that shoal does not read.

        >>> round(TransformerSizes(layers=12, dim=768, heads=12).parameters / 1e6)
        109
    """

    layers: int
    dim: int
    heads: int
    inner: int | None = None
    vocabulary: int = 30522
    positions: int = 512
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "dim", "heads", "vocabulary", "positions"):
            expect_positive(name, getattr(self, name))
        for name in ("inner", "chunk"):
            value = getattr(self, name)
            expect_positive(name, value) if value is not None else None

    @property
    def _inner(self) -> int:
        return 4 * self.dim if self.inner is None else self.inner

    @property
    def parameters(self) -> Real:
        """Weights and biases, the pooler left out."""
        w, f = self.dim, self._inner
        layer = 4 * w * w + 4 * w + 2 * w * f + f + w + 4 * w
        return self.layers * layer + (self.vocabulary + self.positions + 2 + 2) * w

    def kept(self, texts: Real, tokens: Real) -> Real:
        """Bytes of activations that a backward pass needs.

        Args:
            texts: of one pass.
            tokens: of these.
        """
        length, w = tokens / max(texts, 1), self.dim
        layer = KEPT_WIDTH * w + KEPT_INNER * self._inner + KEPT_SCORES * self.heads * length
        return NUMBER * tokens * (self.layers * layer + KEPT_EMBEDDED * w)

    def _forward(self, texts: Real, tokens: Real, piece: Real) -> Work:
        length, w, f = tokens / max(texts, 1), self.dim, self._inner
        flops = tokens * self.layers * (2 * (4 * w * w + 2 * w * f) + 4 * length * w)
        # what is kept is written and read once, and so is each product's result before its bias
        streamed = 2 * self.kept(texts, tokens)
        return Work(flops, streamed, calls=50 * self.layers * math.ceil(tokens / piece))

    def parts(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Part, ...]:
        """Weights, their gradient and Adam's two moments, and the activations of a pass."""
        weights = NUMBER * self.parameters
        share = min(1.0, (self.chunk or math.inf) / max(texts / ranks, 1))
        vectors = 6 * NUMBER * texts * self.dim
        kept = self.kept(texts / ranks * share, tokens / ranks * share) * (GAPS if on_host else 1)
        return (
            Part("weights", device=weights),
            Part("optimizer state", device=2 * weights),
            # a piece's own, and their sum
            Part("gradients", device=weights * (1 if self.chunk is None else 2), phase="step"),
            Part("activations", device=kept + vectors, phase="step"),
        )

    def stages(self, texts: Real, tokens: Real, ranks: int, on_host: bool) -> tuple[Stage, ...]:
        """Forward once, backward twice that, once more by gradient caching; AdamW; all-reduce."""
        passes = 3 if self.chunk is None else 4
        one = self._forward(texts / ranks, tokens / ranks, 1024 if on_host else 32768)
        # the token embedding's gradient is as large as the table, in each piece again
        dense = NUMBER * self.parameters
        pieces = math.ceil(tokens / ranks / (1024 if on_host else 32768))
        table = NUMBER * self.vocabulary * self.dim * 3 * pieces
        compute = Work(passes * one.flops, passes * one.streamed + table, calls=passes * one.calls)
        # AdamW reads weight, gradient and moments, writes three, and makes three temporaries
        update = Work(streamed=12 * dense, calls=12 * (16 * self.layers + 5))
        stages = (Stage("compute", compute), Stage("update", update))
        if ranks == 1:
            return stages
        sent = (ranks - 1) / ranks * (NUMBER * texts * self.dim + 2 * dense)
        return (*stages, Stage("communication", Work(sent=sent, calls=6)))

    def embedding(self, texts: Real, tokens: Real, on_host: bool) -> Work:
        """One forward pass."""
        return self._forward(texts, tokens, 1024 if on_host else 32768)

    def nearer(self, batch_size: int) -> Iterator[tuple[str, Encoder]]:
        """Smaller pieces, by gradient caching."""
        sizes = halves(self.chunk or batch_size)
        return ((f"chunk {size}", replace(self, chunk=size)) for size in sizes)
