"""What a ranker is: a way to find the labels of a text, fitted on what is known.

Those that shoal has are in :mod:`shoal.rank.rankers`. One of your own is a frozen dataclass with
the methods of :class:`Ranker`, registered by :func:`ranker_kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.kinds import Kind, register_kind
from shoal.core.sketch import products
from shoal.data.texts import Texts
from shoal.rank.ranking import Ranking, member

if TYPE_CHECKING:
    from shoal.rank.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Query:
    """Texts whose labels are wanted, and what rankers share about them.

    Attributes:
        model: encoder, labels and known examples.
        texts: n of them.
        drop: ``[n, l]``, pairs that need not be found; None for none.
        pool: labels of each text that are ranked, rising, -1 behind them; None for all labels.
        exact: whether all known examples are looked at; else those that a sketch finds.
    """

    model: Predictor
    texts: Texts
    drop: Csr | None = None
    pool: Int[Tensor, "n c"] | None = None
    exact: bool = True

    @cached_property
    def embedded(self) -> Float[Tensor, "n d"]:
        """Unit vectors of the texts."""
        return self.model.encode(self.texts)

    def within(self, pool: Int[Tensor, "n c"]) -> Query:
        """The same texts, of whose labels those of a pool are ranked."""
        narrower = replace(self, pool=pool)
        narrower.__dict__["embedded"] = self.embedded
        return narrower

    def labels_nearest(
        self, vectors: Float[Tensor, "n d"], keys: Float[Tensor, "l d"], k: int
    ) -> Ranking:
        """The k labels of largest inner product with each text's vector, of the pool or of all.

        Args:
            vectors: of the texts.
            keys: one a label.
            k: how many; all where there are fewer.
        """
        drop = None if self.drop is None else self.drop.to(vectors.device)
        if self.pool is not None:
            scores = products(vectors, keys, self.pool)
            if drop is not None:
                scores.masked_fill_(member(self.pool, drop), -torch.inf)
            return Ranking.among(scores, self.pool, k)
        return Ranking(*self.model.search(vectors, keys, min(k, len(keys)), drop))


@dataclass(frozen=True, eq=False)
class Known:
    """What rankers are fitted on.

    Attributes:
        model: embeds the examples.
        texts: of the training examples.
        classifiers: one per label, or None.
    """

    model: Predictor
    texts: Texts
    classifiers: Float[Tensor, "l d"] | None = None

    @cached_property
    def embedded(self) -> Float[Tensor, "n d"]:
        """Unit vectors of the examples."""
        return self.model.encode(self.texts)


@runtime_checkable
class Ranker(Protocol):
    """A way to find the labels of a text.

    Attributes:
        kind: the name under which its class is registered.
        features: a name per ranking that :meth:`rank` returns.
        lexical: whether it matches words, and so needs the model's.

    One that says how good each label is may rank those of :attr:`Query.pool` alone, where there is
    one; it then says so by ``pooled = True``. Others are asked before there is a pool, and bring
    their best labels into it. One that ranks by inner products with the text's vector may give the
    labels' rows as ``keys(model)``: they count where likely labels are looked for.
    """

    kind: str
    lexical: bool

    @property
    def features(self) -> tuple[str, ...]: ...  # noqa: D102

    def fitted(self, model: Predictor, known: Known) -> Ranker | None:
        """This ranker with its index of labels and examples; None if it has nothing to offer."""
        ...

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k best labels of each text, once per name of :attr:`features`."""
        ...

    def reasons(self, query: Query, ids: Int[Tensor, "n k"]) -> dict[str, list[list[Any]]]:
        """What a reader may want to see beside the scores, by name, per text and label."""
        ...

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> Ranker:
        """The same ranker for the labels of `new`: those of `old`, then `texts`."""
        ...

    def with_examples(self, model: Predictor, known: Known) -> Ranker:
        """The same ranker with more known examples; `known` holds those that are added."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        ...

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> Ranker:
        """The ranker whose :meth:`state_dict` this is."""
        ...


RANKER_KINDS: dict[str, Any] = {}
"""Classes of rankers by the name that a saved model records."""


def ranker_kind(name: str) -> Callable[[Kind], Kind]:
    """Register the class of rankers that saved models call `name`."""
    return register_kind(RANKER_KINDS, name)
