"""Features in place of words: columns with weights, which a bag adds up as it adds up tokens.

An example x of numbers is a bag whose entries have weights. Its vector is the normalized sum of its
features' rows, each times its weight, ``unit(x W)``: a linear encoder, and W is the table of rows.
Sparse features, such as counts of words, enter times their inverse document frequency. Dense ones,
measurements that most examples have, enter as standard scores, (x − mean) / deviation.

A label is embedded by its examples: by the mean of their features (positive instance feature
aggregation: Yu et al., "PECOS", JMLR 2022, section 4.1), and by a row of its own, which begins at
zero. So it is a bag with one more entry, and is trained as any text is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr, offsets_of
from shoal.core.errors import expect, fail
from shoal.core.sparse import unit
from shoal.core.state import count, floats, integers
from shoal.data.texts import Texts, is_dense, weighted
from shoal.text.vocabulary import inverse_document_frequency

# Sparse features of a label that are kept, the heaviest: batches read those of thousands of labels.
_HEAVIEST = 512


@dataclass(frozen=True, eq=False)
class FeatureColumns:
    """Turns features into bags of rows: one row a feature that was seen, then one a label.

    Attributes:
        width: columns of the features, seen or not.
        seen: int64 ``[f]``, rising: the columns that have a row.
        mean: of each of them where features are dense, ``[f]``; None where they are sparse.
        scale: what each is multiplied by, ``[f]``.
        n_labels: labels that have a row.

    Example:
        Feature 2 was not seen, and says nothing; the others lie in rows 0 and 1, the label's in 2.

        >>> columns = FeatureColumns.of(Csr.from_lists([[0], [0, 1], [], []], n_cols=3), 1)
        >>> bags = columns.documents(Texts.of_features(Csr.from_lists([[1, 2]], n_cols=3)))
        >>> bags.to_dense().tolist()
        [[0.0, 1.0, 0.0]]
        >>> columns.labels(Texts.of_features(Csr.from_lists([[1]], n_cols=3))).to_dense().tolist()
        [[0.0, 1.0, 1.0]]
    """

    width: int
    seen: Int[Tensor, " f"]
    mean: Float[Tensor, " f"] | None
    scale: Float[Tensor, " f"]
    n_labels: int

    words = None  # rankers that match words have nothing to offer

    def __post_init__(self) -> None:
        """Check that the columns are some of those that there are.

        Raises:
            InputError: if they are not.
        """
        rising = bool((self.seen.diff() > 0).all())
        good = len(self.seen) > 0 and rising and int(self.seen[-1]) < self.width
        want = f"rising numbers below {self.width}"
        expect(good, "seen", want, self.seen[-1:].tolist(), "train again")

    @staticmethod
    def of(features: Csr, n_labels: int) -> FeatureColumns:
        """Learn which columns there are, and how each is scaled.

        Args:
            features: of the training examples, ``[n, width]``.
            n_labels: how many labels there are.

        Raises:
            InputError: if no example has a feature.
        """
        seen = features.indices.long().unique()
        expect(len(seen) > 0, "features", "some that are not 0", "none", "check the file of them")
        if not is_dense(features):
            scale = inverse_document_frequency(_columns(features, seen, len(seen)))
            return FeatureColumns(features.n_cols, seen, None, scale, n_labels)
        x = features.to_dense().double()[:, seen]
        mean, deviation = x.mean(0), x.std(0, correction=0)
        # a column that never differs says nothing
        scale = (1 / deviation).where(deviation > 1e-6 * mean.abs(), 0.0)
        return FeatureColumns(features.n_cols, seen, mean.float(), scale.float(), n_labels)

    def __len__(self) -> int:
        return len(self.seen) + self.n_labels

    def documents(self, texts: Texts) -> Csr:
        """Bags of examples, ``[n, rows]``: scaled weights, each bag of length one.

        Raises:
            InputError: if they are texts, or features of another width.
        """
        features = self._expect_features(texts)
        if self.mean is None:
            known = _columns(features, self.seen, len(self))
            assert known.values is not None
            weights = known.values * self.scale[known.indices]
            squares = torch.zeros(known.n_rows).index_add_(0, known.row_ids(), weights.square())
            lengths = squares.sqrt().clamp_min(1e-12)
            return known.with_values(weights / lengths[known.row_ids()])
        x = unit((features.to_dense()[:, self.seen] - self.mean) * self.scale)
        n, size = x.shape
        every = torch.arange(size).repeat(n)
        return Csr(torch.arange(n + 1) * size, every, len(self), x.flatten())

    def labels(self, texts: Texts) -> Csr:
        """Bags of labels: of the mean features of their examples, and of each one's own row.

        Raises:
            InputError: if these are not the labels that have rows, or come without features.
        """
        got = f"{len(texts)} {'with texts alone' if texts.features is None else 'with features'}"
        good = texts.features is not None and len(texts) == self.n_labels
        want = f"the {self.n_labels} that it was trained on, which it knows by their examples"
        expect(good, "labels", want, got, "train again with all labels")
        bags = self.documents(texts)
        bags = bags if self.mean is not None else _heaviest(bags, _HEAVIEST)
        own = torch.arange(len(texts))
        rows = torch.cat([bags.row_ids(), own])
        columns = torch.cat([bags.indices, own + len(self.seen)])
        assert bags.values is not None
        weights = torch.cat([bags.values, torch.ones(len(texts))])
        return Csr.from_coo(rows, columns, (len(texts), len(self)), weights)

    def _expect_features(self, texts: Texts) -> Csr:
        features = texts.features
        if features is None:
            fail("texts", f"features, {self.width} an example", "texts", "pass features")
        want, got = f"{self.width} an example, as in training", features.n_cols
        expect(got == self.width, "features", want, got, "pass all columns, in the same order")
        return weighted(features)

    def read(self, texts: Sequence[str]) -> Texts:
        """Texts as they are; they are refused where they are embedded."""
        return Texts.of(texts)

    def tokens(self, texts: Sequence[str]) -> Csr:
        """No token of any text."""
        return Csr.from_lists([[]] * len(texts), len(self))

    def first_rows(self, bags: Csr, dim: int, seed: int) -> Float[Tensor, "v d"]:
        """Rows to start from: random directions of length about one, and zeros for labels."""
        rows = torch.randn(len(self), dim, generator=torch.Generator().manual_seed(seed))
        rows[len(self.seen) :] = 0
        return rows / dim**0.5

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        return {"columns": dict(vars(self))}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> FeatureColumns:
        """What :meth:`state_dict` gave as ``columns``.

        Raises:
            InputError: if the parts are others.
        """
        width, seen = count(state, "width", low=1), integers(state, "seen", None)
        mean = None if state.get("mean") is None else floats(state, "mean", len(seen))
        scale = floats(state, "scale", len(seen))
        return FeatureColumns(width, seen, mean, scale, count(state, "n_labels"))


def _columns(features: Csr, seen: Int[Tensor, " f"], n_cols: int) -> Csr:
    """The entries in columns `seen`, numbered by their place among them."""
    at = torch.searchsorted(seen, features.indices.long()).clamp_(max=len(seen) - 1)
    kept, weights = seen[at] == features.indices, weighted(features).values
    assert weights is not None
    return Csr(offsets_of(kept)[features.indptr], at[kept], n_cols, weights[kept])


def _heaviest(bags: Csr, most: int) -> Csr:
    """Each row's entries of largest weight, up to so many."""
    assert bags.values is not None
    order = bags.values.abs().argsort(descending=True, stable=True)
    order = order[bags.row_ids()[order].argsort(stable=True)]
    kept = torch.arange(bags.nnz) - bags.indptr[bags.row_ids()] < most
    order = order[kept].sort().values
    rows = bags.row_ids()[order]
    return Csr.from_coo(rows, bags.indices[order], bags.shape, bags.values[order])
