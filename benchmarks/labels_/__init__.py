"""An encoder that is begun on some examples, its job, and its ranking: what benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import shoal
from shoal.core.metrics import evaluate, inverse_propensity
from shoal.tasks.labels import Parts, build

ALONE = (shoal.EncoderRanker(),)


@dataclass(frozen=True, eq=False)
class Begun:
    """An encoder before, while and after it is trained.

    Attributes:
        parts: encoder, batches, loss and the like.
        train: the examples that it learns from.
        labels: the labels.
        encoder: begun by the parts.
        tokens: token ids of the examples, then of the labels.
        device: where it is trained; None is the host.
    """

    parts: Parts
    train: shoal.Examples
    labels: shoal.Texts
    encoder: Any
    tokens: shoal.Csr
    device: str | None = None

    @staticmethod
    def of(
        parts: Parts, train: shoal.Examples, labels: shoal.Texts, device: str | None = None
    ) -> Begun:
        """Begin an encoder."""
        on = device or "cpu"
        encoder, tokens = parts.encoder.begin(
            train.texts, labels, seed=parts.seed, device=on, folder=None
        )
        return Begun(parts, train, labels, encoder, tokens, None if on == "cpu" else on)

    def job(self) -> shoal.Job:
        """What trains it, without validation."""
        return build(self.parts, self.encoder, self.tokens, self.train.labels, device=self.device)

    @property
    def documents(self) -> shoal.Csr:
        """Token ids of the examples."""
        return self.tokens.span(0, len(self.train))

    @property
    def names(self) -> shoal.Csr:
        """Token ids of the labels."""
        return self.tokens.span(len(self.train), self.tokens.n_rows)

    @property
    def predictor(self) -> shoal.Predictor:
        """Ranks by the encoder alone, as it is now: embeddings of labels are made once."""
        return shoal.Predictor(self.encoder, self.labels, self.names, ALONE)


def metrics_of(
    predictor: Any, examples: shoal.Examples, known: shoal.Csr, ks: tuple[int, ...] = (1, 3, 5)
) -> dict[str, float]:
    """Metrics of examples in per cent, by the propensities of the known examples' labels."""
    _, top = predictor.rank(examples.texts, max(ks), examples.drop)
    return evaluate(top.cpu(), examples.labels, inverse_propensity(known), ks=ks)


def precision(top: Tensor, examples: shoal.Examples) -> float:
    """P@1 in per cent."""
    weights = [1.0] * examples.labels.n_cols
    return evaluate(top.cpu(), examples.labels, Tensor(weights), ks=(1,))["P@1"]
