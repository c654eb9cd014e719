"""The plan of a :class:`shoal.LabelModel`: encoder, loss, clusters and classifiers.

Assumptions: labels are drawn evenly, all texts have the mean length, and nothing overlaps.
docs/how-to/plan.md has the formulas, docs/results/plan.md sets predictions beside measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from shoal.core.errors import expect, expect_positive
from shoal.core.optimizers import Optimizer
from shoal.curvature.spectrum import Spectrum
from shoal.plan.devices import Machine, Real, Work
from shoal.plan.encoders import NUMBER, Encoder, distinct
from shoal.plan.nearest import FLIGHT, halves, useful_batch, with_remedy
from shoal.plan.noun import Part, Plan, Stage

POSITIVES = 2  # labels drawn per example, as in shoal.tasks.labels
# times that a batch's scores exist at once: themselves, the softmax that is kept, and a gradient;
# and how often all of them are read or written
_SCORES, _SCORE_PASSES = 3, 14
_SAMPLE, _TURNS = 8192, 6  # of balanced_clusters


def labels(
    examples: int,
    labels: int,
    *,
    encoder: Encoder,
    tokens: Real = 30.0,
    label_tokens: Real | None = None,
    labels_an_example: Real = 2.0,
    batch_size: int = 1024,
    cluster: int | None = 64,
    classifiers: bool = True,
    machine: Machine | None = None,
    spectrum: Spectrum | None = None,
    optimizer: Optimizer = "adam",
) -> Plan:
    """Plan the training of a :class:`shoal.LabelModel`.

    Args:
        examples: in the training data.
        labels: that there are.
        encoder: :class:`shoal.plan.BagSizes` or :class:`shoal.plan.TransformerSizes`.
        tokens: rows or word pieces per text of an example.
        label_tokens: those of a label's text; as many by default.
        labels_an_example: known labels per example, the mean.
        batch_size: examples of a global batch.
        cluster: examples per cluster; None for random batches.
        classifiers: whether classifiers are trained after the encoder.
        machine: what it runs on; one core by default.
        spectrum: a :class:`shoal.Spectrum`, for the largest batch that is useful.
        optimizer: of which it was measured, as for :func:`shoal.learning_rate`.

    Raises:
        InputError: if a number is out of range.

    Example:
        Adam keeps two numbers a number: 100,000 rows of 256 floats and twice as many.

        >>> from shoal.plan import BagSizes, labels
        >>> plan = labels(1_000_000, 500_000, encoder=BagSizes(100_000))
        >>> rows, state = plan.parts[:2]
        >>> rows.host == 100_000 * 256 * 4, state.host == 2 * rows.host + 4 * 100_000
        (True, True)
    """
    for name, count in {"examples": examples, "labels": labels, "batch_size": batch_size}.items():
        expect_positive(name, count)
    numbers = {"tokens": tokens, "labels_an_example": labels_an_example}
    for name, value in numbers.items():
        expect(0 < value < math.inf, name, "a number above 0", value, "set it")
    on = machine or Machine()
    ranks = on.ranks
    length = tokens if label_tokens is None else label_tokens

    def made(b: int, encoder: Encoder) -> Plan:
        b, host = min(b, examples), on.on_host
        shortlist = distinct(labels, b * min(POSITIVES, labels_an_example))
        texts, read = b + shortlist, b * tokens + shortlist * length
        scores = NUMBER * b * shortlist
        ids = 8 * (examples + labels + 2) + 4 * (examples * tokens + labels * length)
        ids += 8 * (examples + 1) + 4 * examples * labels_an_example
        parts = [
            *encoder.parts(texts, read, ranks, host),
            Part("texts and known labels as ids", host=ids),
            Part("scores of a batch", device=_SCORES * scores, phase="step"),
            Part("batches in flight", host=FLIGHT * 8 * 4 * (read + texts), phase="step"),
        ]
        loss = Work(
            flops=6 * b * shortlist * encoder.dim,
            streamed=_SCORE_PASSES * scores,
            calls=60,
        )
        sampled = Work(entries=read + b * labels_an_example, calls=60)
        stages = [Stage("sample", sampled), *encoder.stages(texts, read, ranks, host)]
        stages.append(Stage("loss", loss))
        if cluster is not None:
            row = NUMBER * encoder.dim
            parts.append(_bank(examples, row))
            embed = encoder.embedding(examples / ranks, examples * tokens / ranks, host)
            stages.append(Stage("embedding the examples", embed, per_epoch=True))
            clusters = clustering(examples, encoder.dim, cluster)
            stages.append(Stage("clustering", clusters, per_epoch=True))
        if classifiers:
            parts += _classifiers(examples, labels, ranks, encoder.dim)
        return Plan(
            "labels",
            on,
            b,
            math.ceil(examples / b),
            tuple(parts),
            tuple(stages),
            useful_batch(spectrum, b, optimizer),
        )

    def nearer() -> Iterator[tuple[str, Plan]]:
        for name, other in encoder.nearer(batch_size):
            yield name, made(batch_size, other)
        for size in halves(batch_size):
            yield f"batch_size {size}", made(size, encoder)

    return with_remedy(made(batch_size, encoder), nearer)


def _bank(examples: int, row: Real) -> Part:
    """Embeddings of all examples, and while they are cut the order and scores of a level."""
    return Part("embeddings of all examples", device=examples * (row + 40), phase="refresh")


def clustering(examples: int, dim: int, size: int) -> Work:
    """What :func:`shoal.sample.clusters.balanced_clusters` does, level by level.

    A level of 2^i sets reads each example's row once to cut it, and in up to six turns the rows of
    at most 8,192 examples a set, twice each; scores are sorted.

    Example:
        Two clusters, one level: 2 · 6 turns · 2 reads, and each row is copied once.

        >>> clustering(128, 1, 64).streamed == 128 * 4 * (2 * 6 + 2)
        True
    """
    levels = max(math.ceil(math.log2(max(examples / size, 1))), 0)
    row, streamed, gathered = NUMBER * dim, 0.0, 0.0
    for level in range(levels):
        seen = min(examples, _SAMPLE * 2**level)
        streamed += row * (2 * _TURNS * seen + 2 * examples)
        gathered += 2 * row * examples
    sets = sum(min(2**level, examples) for level in range(levels))
    calls = 20 * _TURNS * min(sets, 50 * max(levels, 1))
    return Work(streamed=streamed, gathered=gathered, entries=levels * examples, calls=calls)


def _classifiers(examples: int, labels: int, ranks: int, dim: int) -> list[Part]:
    """Rows of a rank's labels with Adam's state, and the embeddings of examples and labels."""
    row, own = NUMBER * dim, math.ceil(labels / ranks)
    seen = 2 * examples + 2 * labels  # as they were made, and joined: label texts are examples
    return [
        Part("classifiers", host=own * row, phase="classifiers"),
        Part("their optimizer state", host=own * (2 * row + NUMBER), phase="classifiers"),
        Part("embeddings that they read", host=seen * row, phase="classifiers"),
    ]
