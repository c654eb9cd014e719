"""Lexical search: tf-idf vectors of bags, compared by cosine, every shared token counted.

An embedding compresses a text into d numbers; tf-idf does not compress, so names and rare words
find their like exactly. Token t, which occurs c times in a bag and in df of n bags, weighs

    (1 + ln c) · (1 + ln((n + 1) / (df + 1)))

and bags are scaled to length one, so that their inner product is the cosine (Salton and Buckley,
"Term-weighting approaches in automatic text retrieval", 1988).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr, offsets_of
from shoal.core.errors import expect, expect_positive
from shoal.core.progress import progress
from shoal.core.sparse import matmul
from shoal.core.state import floats
from shoal.rank.ranking import Ranking

# texts whose weights stand in a table at a time: some megabytes
_DENSE = 32
# keys that a query looks at, by its rarest tokens
_POSTINGS = 2000
# queries multiplied at a time: their products with 100,000 keys are some tens of megabytes
_QUERIES = 128


def tf_idf(bags: Csr, idf: Float[Tensor, " v"]) -> Csr:
    """Weigh the tokens of bags and scale each bag to length one.

    Args:
        bags: a column that stands c times in a row counts c times; values are not read.
        idf: weight of each token, from
            :func:`~shoal.text.vocabulary.inverse_document_frequency` of the training texts.

    Returns:
        float32 values, rows sorted; tokens of weight zero are left out, an empty bag stays empty.

    Raises:
        InputError: if there is not one weight a token.

    Example:
        >>> vector = tf_idf(Csr.from_lists([[0, 1, 1]], n_cols=2), torch.tensor([1.0, 0.0]))
        >>> vector.indices.tolist(), vector.values.tolist()
        ([0], [1.0])
    """
    expect(len(idf) == bags.n_cols, "idf", f"one a token, {bags.n_cols}", len(idf), "align them")
    kept = idf[bags.indices.long()] > 0
    indptr = pad(kept.cumsum(0), (1, 0))[bags.indptr]
    counts = Csr(indptr, bags.indices[kept], bags.n_cols, torch.ones(int(indptr[-1]))).coalesce()
    assert counts.values is not None
    weight = (1 + counts.values.log()) * idf[counts.indices.long()].float()
    row = counts.row_ids()
    square = torch.zeros(bags.n_rows).index_add_(0, row, weight * weight)
    tiny = torch.finfo(torch.float32).tiny
    return counts.with_values(weight / square.sqrt().clamp(min=tiny)[row])


@dataclass(frozen=True, eq=False)
class LexicalIndex:
    """Sparse vectors by token, for exact search.

    Attributes:
        by_token: ``[v, m]`` with values: the transpose of what :func:`tf_idf` makes.

    Example:
        >>> keys = tf_idf(Csr.from_lists([[0], [1], [0, 1]], n_cols=2), torch.ones(2))
        >>> LexicalIndex.of(keys).search(keys.rows(torch.tensor([0])), k=3).ids
        tensor([[ 0,  2, -1]])
    """

    by_token: Csr

    @staticmethod
    def of(keys: Csr) -> LexicalIndex:
        """Index the rows of `keys`, ``[m, v]`` with values."""
        return LexicalIndex(keys.transpose())

    @staticmethod
    def of_state(state: Mapping[str, Any], tokens: int, keys: int) -> LexicalIndex:
        """The index whose ``by_token.state_dict()`` this is.

        Args:
            state: the parts of the matrix.
            tokens: its rows.
            keys: its columns.

        Raises:
            InputError: if it is another matrix.
        """
        by_token = Csr.of_state(state, tokens, keys)
        return LexicalIndex(by_token.with_values(floats(state, "values", by_token.nnz)))

    @cached_property
    def _matrix(self) -> Any:
        # scipy checks each number of a matrix that it makes
        return self.by_token.to_scipy()

    @cached_property
    def _keys(self) -> Csr:
        return self.by_token.transpose()

    def products(
        self, queries: Sequence[Csr], ids: Int[Tensor, "n c"]
    ) -> list[Float[Tensor, "n c"]]:
        """Inner products of n texts with keys of their own; -inf where they share no token.

        Args:
            queries: vectors of each text, in several ways: each ``[n, v]`` with values.
            ids: keys of each text, -1 for none.
        """
        v, ways = self.by_token.n_rows, len(queries)
        found = ids.new_empty(ways, *ids.shape, dtype=torch.float32)
        # the weight of each token in each text of a chunk, in every way
        table = torch.zeros(min(_DENSE, len(ids)) * v, ways)
        for start in range(0, len(ids), _DENSE):
            some = ids[start : start + _DENSE]
            parts = [query.span(start, start + len(some)) for query in queries]
            at = [part.row_ids() * v + part.indices for part in parts]
            for way, part in enumerate(parts):
                assert part.values is not None
                table[at[way], way] = part.values
            keys = self._keys.rows(some.clamp(min=0).flatten())
            text = torch.arange(len(some)).unsqueeze(1).expand_as(some).flatten()
            cells = keys.indices + text.repeat_interleave(keys.degrees()) * v
            with torch.no_grad():
                sums = matmul(Csr(keys.indptr, cells, len(table), keys.values), table)
            found[:, start : start + len(some)] = sums.T.view(ways, *some.shape)
            for way in range(ways):
                table[at[way], way] = 0
        return list(found.masked_fill_((found <= 0) | (ids < 0), -torch.inf))

    def likely(self, queries: Csr, k: int) -> Int[Tensor, "n c"]:
        """Up to k keys of high inner product with each query by its rarest tokens, -1 behind them.

        As many tokens count as some 2,000 keys have, however many keys have the others: of a
        product, rare tokens make the most and common ones cost the most.
        """
        degrees = self.by_token.degrees()[queries.indices.long()]
        row = queries.row_ids()
        order = torch.argsort(degrees, stable=True)
        order = order[torch.argsort(row[order], stable=True)]
        # rows are in place again: keys that each token and the rarer ones of its row have
        seen = degrees[order].cumsum(0)
        seen -= pad(seen, (1, 0))[queries.indptr[row]]
        assert queries.values is not None
        values = queries.values.clone()
        values[order[seen > _POSTINGS]] = 0
        kept = values > 0
        indptr = offsets_of(kept)[queries.indptr]
        rare = Csr(indptr, queries.indices[kept], queries.n_cols, values[kept])
        met = rare.to_scipy() @ self._matrix
        scores, ids = Csr(
            torch.from_numpy(met.indptr).long(),
            torch.from_numpy(met.indices),
            met.shape[1],
            torch.from_numpy(met.data),
        ).padded()
        return Ranking.among(scores, ids, k).ids

    def search(self, queries: Csr, k: int) -> Ranking:
        """Find the k keys of highest inner product with each query, among those that share a token.

        Which of several keys with equal scores are found is left open, but always the same.

        Args:
            queries: ``[n, v]`` with values above zero.
            k: how many; a query that shares tokens with fewer keys has fewer.

        Raises:
            InputError: if the queries have other tokens than the keys, or k is not positive.
        """
        expect_positive("k", k)
        want, got = self.by_token.n_rows, queries.n_cols
        expect(want == got, "queries", f"{want} tokens", got, "use the index's own vocabulary")
        keys = self._matrix

        def found(part: Any) -> Ranking:
            return _best(queries.rows(part).to_scipy() @ keys, k)

        # scipy's product holds no lock, so parts share the threads that torch would use
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            chunks = torch.arange(queries.n_rows).split(_QUERIES)
            parts = list(progress(pool.map(found, chunks), "match words", len(chunks)))
        scores = torch.cat([part.scores for part in parts])
        return Ranking(scores, torch.cat([part.ids for part in parts]))


def _best(products: Any, k: int) -> Ranking:
    """The k largest entries of each row of a scipy matrix, as long as they are above zero."""
    dense = torch.from_numpy(products.toarray())
    scores, ids = dense.topk(min(k, dense.shape[1]), dim=1)
    nothing = scores <= 0
    return Ranking(scores.masked_fill(nothing, -torch.inf), ids.masked_fill(nothing, -1))
