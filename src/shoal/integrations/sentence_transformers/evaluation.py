"""The metrics of extreme classification as an evaluator of sentence-transformers' trainer.

Documents and labels are encoded, the labels of largest cosine are found by exact search, and
:func:`shoal.core.metrics.evaluate` judges them: P@k, nDCG@k, PSP@k, PSnDCG@k and R@k in per cent,
with the pairs of a filter file taken out of the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from shoal.core import metrics
from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import expect
from shoal.core.search import top_k
from shoal.integrations.sentence_transformers.batches import encode


def xc_evaluator(
    documents: Sequence[str],
    labels: Sequence[str],
    truth: Csr,
    inverse: Float[Tensor, " l"] | None = None,
    drop: Csr | None = None,
    *,
    ks: Sequence[int] = (1, 3, 5),
    name: str = "",
    batch_size: int = 256,
    prompts: tuple[str | None, str | None] = (None, None),
    tasks: tuple[str, str] = ("query", "document"),
) -> Any:
    """Make an evaluator for the trainer's ``evaluator`` argument.

    Its primary metric, which chooses the best checkpoint, is P at the first of `ks`.

    Args:
        documents: texts, one a row of `truth`.
        labels: texts, one a column.
        truth: the true labels.
        inverse: inverse propensities, from :func:`shoal.core.metrics.inverse_propensity` of the
            *training* labels; without it PSP@k and PSnDCG@k are left out.
        drop: pairs that may not be predicted, from a filter file.
        ks: the ranks to stop at.
        name: goes before the names of the metrics, as sentence-transformers does it.
        batch_size: texts a forward pass.
        prompts: what goes before documents, and before labels: what the training arguments'
            ``prompts`` say of the two columns. None for the prompts that the model itself has for
            the two tasks.
        tasks: how documents and labels are encoded: by ``encode_query`` and ``encode_document``, or
            by routes of another name.

    Returns:
        a ``BaseEvaluator``; called with a model it returns the metrics by name.

    Raises:
        InputError: if sentence-transformers is not installed, or texts and truth disagree.
    """
    library = require("sentence_transformers.base.evaluation", "evaluator", "sentence-transformers")
    shape = (len(documents), len(labels))
    expect(truth.shape == shape, "truth", f"{shape}, as the texts", truth.shape, "align it")
    weights = torch.ones(len(labels)) if inverse is None else inverse

    class XCEvaluator(library.BaseEvaluator):
        """Exact search among label embeddings, judged by shoal.core.metrics."""

        def __init__(self) -> None:
            super().__init__()
            self.primary_metric = f"P@{ks[0]}"

        def __call__(
            self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
        ) -> dict[str, float]:
            rows, keys = (
                encode(model, list(texts), batch_size, prompt=prompt, task=task)
                for texts, prompt, task in zip((documents, labels), prompts, tasks, strict=True)
            )
            top = _nearest(rows, keys, max(ks), drop)
            found = metrics.evaluate(top, truth, weights, ks)
            if inverse is None:
                found = {k: value for k, value in found.items() if not k.startswith("PS")}
            found = self.prefix_name_to_metrics(found, name)
            self.store_metrics_in_model_card_data(model, found, epoch, steps)
            return found

    return XCEvaluator()


def _nearest(
    rows: Float[Tensor, "n d"], keys: Float[Tensor, "l d"], k: int, drop: Csr | None
) -> Int[Tensor, "n {k}"]:
    """The k labels of largest cosine, on the CPU."""
    pairs = None if drop is None else drop.to(keys.device)
    return top_k(normalize(rows.float()), normalize(keys.float()), k, pairs)[1].cpu()
