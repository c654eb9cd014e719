"""Lexical search against dense tf-idf."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.rank.lexical import LexicalIndex, tf_idf
from shoal.text.vocabulary import inverse_document_frequency


def bags_of(n: int, v: int, seed: int) -> Csr:
    """Bags with repeated tokens, some of them empty."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (n, v), generator=g) * (torch.rand(n, v, generator=g) < 0.5)
    row, col = counts.nonzero(as_tuple=True)
    times = counts[row, col]
    return Csr.from_coo(row.repeat_interleave(times), col.repeat_interleave(times), (n, v))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_weights_are_those_of_the_formula(n: int, v: int, seed: int) -> None:
    """``(1 + ln c) idf``, each row scaled to length one, the empty one empty."""
    bags = bags_of(n, v, seed)
    idf = inverse_document_frequency(bags)
    counts = bags.to_dense()
    dense = torch.where(counts > 0, (1 + counts.clamp(min=1).log()) * idf, 0.0)
    dense /= dense.norm(dim=1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(tf_idf(bags, idf).to_dense(), dense)


@given(st.integers(1, 300), st.integers(1, 7), st.integers(0, 99))
def test_search_finds_the_largest_products_above_zero(n: int, k: int, seed: int) -> None:
    """Scores equal those of a dense product and topk, whatever the number of queries."""
    v, idf = 6, torch.ones(6)
    keys, queries = tf_idf(bags_of(9, v, seed), idf), tf_idf(bags_of(n, v, seed + 1), idf)
    products = queries.to_dense() @ keys.to_dense().T
    best = products.topk(min(k, 9), dim=1).values
    found = LexicalIndex.of(keys).search(queries, k)
    want = best.masked_fill(best <= 0, -torch.inf)
    torch.testing.assert_close(found.scores, want)
    real = found.ids >= 0
    assert torch.equal(real, want > 0)
    torch.testing.assert_close(products.gather(1, found.ids.clamp(min=0))[real], found.scores[real])


@pytest.mark.usefixtures("unchecked")
def test_another_vocabulary_is_refused() -> None:
    """Tokens of two vocabularies never meet by accident."""
    index = LexicalIndex.of(tf_idf(Csr.from_lists([[0]], n_cols=2), torch.ones(2)))
    with pytest.raises(InputError, match="queries: expected 2 tokens, got 3"):
        index.search(tf_idf(Csr.from_lists([[0]], n_cols=3), torch.ones(3)), 1)
    with pytest.raises(InputError, match="idf: expected one a token, 2, got 1"):
        tf_idf(Csr.from_lists([[0]], n_cols=2), torch.ones(1))


@given(st.integers(1, 80), st.integers(0, 7), st.integers(0, 99))
def test_products_with_keys_of_ones_own(n: int, width: int, seed: int) -> None:
    """As the dense product has them, in both ways at once; -inf where nothing is shared."""
    v, idf = 6, torch.ones(6)
    keys = tf_idf(bags_of(9, v, seed), idf)
    ways = [tf_idf(bags_of(n, v, seed + i), idf) for i in (1, 2)]
    ids = torch.randint(-1, 9, (n, width), generator=torch.Generator().manual_seed(seed))
    for way, found in zip(ways, LexicalIndex.of(keys).products(ways, ids), strict=True):
        dense = (way.to_dense() @ keys.to_dense().T).gather(1, ids.clamp(min=0))
        out = (dense <= 0) | (ids < 0)
        torch.testing.assert_close(found, dense.masked_fill(out, -torch.inf))


@given(st.integers(1, 80), st.integers(0, 99))
def test_likely_keys_share_a_token_and_are_all_where_few_do(n: int, seed: int) -> None:
    """Nine keys are fewer than are looked at, so that none that shares a token is missed."""
    v, idf = 6, torch.ones(6)
    keys, queries = tf_idf(bags_of(9, v, seed), idf), tf_idf(bags_of(n, v, seed + 1), idf)
    found = LexicalIndex.of(keys).likely(queries, 20)
    shared = queries.to_dense() @ keys.to_dense().T > 0
    for row, want in zip(found.tolist(), shared, strict=True):
        assert sorted(i for i in row if i >= 0) == want.nonzero().flatten().tolist()


def test_common_tokens_are_not_looked_up_where_rare_ones_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Token 0, which all keys have, is passed over; token 1, which one has, is not."""
    keys = tf_idf(Csr.from_lists([[0], [0, 1], [0]], n_cols=2), torch.ones(2))
    monkeypatch.setattr("shoal.rank.lexical._POSTINGS", 2)
    query = tf_idf(Csr.from_lists([[0, 1]], n_cols=2), torch.ones(2))
    found = LexicalIndex.of(keys).likely(query, 3)
    assert [i for i in found[0].tolist() if i >= 0] == [1]
