"""What a data set holds, counted: the command ``shoal data``."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.data.texts import Examples, LabelData, Texts


def describe(data: LabelData) -> dict[str, Any]:
    """Count what `data` holds; the result can be written as JSON.

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


def _count_empty(texts: Texts) -> int:
    return sum(not text for text in texts.all())


def _mean(counts: Int[Tensor, " n"]) -> float:
    return float(counts.double().mean()) if counts.numel() else 0.0


def _deciles(counts: Int[Tensor, " n"]) -> list[int]:
    """Order statistics at 0, 10, … 100 %: the count at or below each position."""
    if counts.numel() == 0:
        return []
    steps = torch.arange(11) * (counts.numel() - 1) // 10
    return counts.sort().values[steps].tolist()
