"""Learning what rankers are worth, from examples that none of them has seen.

A ranker is too sure of what it was trained on, so a combiner is taught by held-out examples
(:func:`evidence`). Where there are few, every part of the training examples is held out once and
judged by rankers that were trained on the others, and the evidence of all parts is taken together:
cross-fitting (Wolpert, "Stacked generalization", Neural Networks 1992). The rankers of the result
know all examples (:func:`with_known`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr
from shoal.data.texts import Examples
from shoal.rank.ensemble import Candidates, Combiner
from shoal.rank.predictor import Predictor, quotes_of
from shoal.rank.ranker import Known, Ranker
from shoal.text.vocabulary import learn

# held-out examples that teach a combiner: a thousand numbers to learn, 80 kB of features each
TAUGHT = 8192


@dataclass(frozen=True, eq=False)
class Evidence:
    """Held-out examples as a combiner learns from them.

    Attributes:
        candidates: what rankers found that were not trained on them.
        truth: ``[n, l]``, their labels.
        drop: ``[n, l]``, pairs that are neither true nor false.
    """

    candidates: Candidates
    truth: Csr
    drop: Csr

    def stack(self, other: Evidence) -> Evidence:
        """Both, one below the other."""
        ids = (self.candidates.ids, other.candidates.ids)
        features = (self.candidates.features, other.candidates.features)
        width = max(x.shape[1] for x in ids)
        candidates = Candidates(
            torch.cat([pad(x, (0, width - x.shape[1]), value=-1) for x in ids]),
            torch.cat([pad(x, (0, 0, 0, width - x.shape[1])) for x in features]),
        )
        drop = self.drop.with_values(None).stack(other.drop.with_values(None))
        truth = self.truth.with_values(None).stack(other.truth.with_values(None))
        return Evidence(candidates, truth, drop)


def evidence(
    base: Predictor,
    wanted: Sequence[Ranker],
    train: Examples,
    held_out: Examples,
    classifiers: Float[Tensor, "l d"] | None,
    seed: int,
) -> Evidence:
    """What rankers that know some examples find for others.

    Args:
        base: encoder and labels, trained without the held-out examples.
        wanted: rankers to be fitted; those with nothing to offer are left out.
        train: what encoder and classifiers were trained on.
        held_out: the others; of more than 8,192, so many at random.
        classifiers: one per label, or None.
        seed: of that choice.
    """
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))
    held_out = held_out.subset(order[:TAUGHT])
    found = with_known(base, wanted, train, classifiers).candidates(held_out.texts, held_out.drop)
    return Evidence(found, held_out.labels, held_out.drop)


def fit_ensemble(
    base: Predictor,
    wanted: Sequence[Ranker],
    combiner: Combiner,
    seen: Evidence,
    every: Examples,
    classifiers: Float[Tensor, "l d"] | None,
    seed: int,
) -> Predictor:
    """Learn what each ranker is worth; then show them all examples.

    Args:
        base: encoder and labels.
        wanted: rankers to be fitted; those with nothing to offer are left out.
        combiner: learns what they are worth.
        seen: what such rankers found for held-out examples (:func:`evidence`).
        every: all training examples, the held-out ones included: what the result knows.
        classifiers: one per label, or None.
        seed: of the combiner.

    Raises:
        InputError: if none of the held-out examples' labels was found by any ranker.
    """
    trained = combiner.fit(seen.candidates, seen.truth, seen.drop, every.labels, seed)
    return replace(with_known(base, wanted, every, classifiers), combiner=trained)


def with_known(
    base: Predictor,
    wanted: Sequence[Ranker],
    examples: Examples,
    classifiers: Float[Tensor, "l d"] | None = None,
) -> Predictor:
    """A predictor that knows some examples, and ranks by what its rankers make of them.

    Args:
        base: encoder and labels.
        wanted: rankers to be fitted; those with nothing to offer are left out.
        examples: to be known.
        classifiers: one per label, or None.
    """
    words, featured = base.encoder.words, examples.texts.features is not None
    wanted = [ranker for ranker in wanted if not (featured and ranker.lexical)]
    if words is None and any(ranker.lexical for ranker in wanted):
        words = learn(examples.texts.all() + base.labels.all())
    quotes = [] if featured else quotes_of(examples.texts)
    model = replace(base, truth=examples.labels, own_words=words, quotes=quotes)
    known = Known(model, examples.texts, classifiers)
    fitted = (ranker.fitted(model, known) for ranker in wanted)
    return replace(model, rankers=tuple(ranker for ranker in fitted if ranker is not None))
