"""What a data set holds, counted: the command ``shoal data``."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.data.meant import is_number
from shoal.data.texts import Examples, LabelData, Texts, is_dense


def describe(data: LabelData) -> dict[str, Any]:
    """Count what `data` holds; the result can be written as JSON.

    ``examples`` and ``label_texts`` say of which kind they are: examples are texts, or sparse or
    dense features; labels are known by texts, or by their examples alone.
    ``label_frequency_deciles`` are the 0th, 10th, … 100th percentile of training examples per
    label. Empty texts and examples without labels are kept by the readers of published splits, and
    counted here: ``empty_texts``, ``unlabeled``.

    Example:
        >>> from shoal.core.csr import Csr
        >>> examples = Examples.of(Texts.of(["red mug", ""]), Csr.from_lists([[0], []], n_cols=2))
        >>> about = describe(LabelData("tiny", examples, examples, Texts.of(["cup", "tea"])))
        >>> about["labels"], about["train"]["empty_texts"], about["train"]["unlabeled"]
        (2, 1, 1)
        >>> about["examples_per_label"], about["labels_never_trained"]
        (0.5, 1)
    """
    counts = torch.bincount(data.train.labels.indices, minlength=len(data.labels))
    return {
        "name": data.name,
        "examples": _kind(data.train.texts),
        "label_texts": _known_by(data),
        "train": _describe_examples(data.train),
        "test": _describe_examples(data.test),
        "labels": len(data.labels),
        "empty_label_texts": _count_empty(data.labels),
        "labels_never_trained": int((counts == 0).sum()),
        "examples_per_label": round(_mean(counts), 3),
        "label_frequency_deciles": _deciles(counts),
    }


def _describe_examples(examples: Examples) -> dict[str, Any]:
    degrees = examples.labels.degrees()
    return {
        "examples": len(examples),
        "pairs": examples.labels.nnz,
        "labels_per_example": round(_mean(degrees), 3),
        "filter_pairs": examples.drop.nnz,
        "empty_texts": _count_empty(examples.texts),
        "unlabeled": int((degrees == 0).sum()),
    }


def _kind(texts: Texts) -> str:
    features = texts.features
    if features is None:
        return "texts"
    return f"{'dense' if is_dense(features) else 'sparse'} features, {features.n_cols} an example"


def _known_by(data: LabelData) -> str:
    if data.train.texts.features is not None:
        return "not read: labels are known by their examples"
    numbers = all(is_number(title) for title in data.labels.all())
    return "numbers, which say nothing: labels are known by their examples" if numbers else "read"


def _count_empty(texts: Texts) -> int:
    if texts.features is not None:
        return int((texts.features.degrees() == 0).sum())
    return sum(not text for text in texts.all())


def _mean(counts: Int[Tensor, " n"]) -> float:
    return float(counts.double().mean()) if counts.numel() else 0.0


def _deciles(counts: Int[Tensor, " n"]) -> list[int]:
    """Order statistics at 0, 10, … 100 %: the count at or below each position."""
    if counts.numel() == 0:
        return []
    steps = torch.arange(11) * (counts.numel() - 1) // 10
    return counts.sort().values[steps].tolist()
