"""Batches of links: negatives are uniform and none is a link; answers are taken out exactly."""

from __future__ import annotations

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.expand import NeighborSampler, ShortlistSampler
from shoal.sample.links import LinkSampler, PairSampler, without


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(n: int = 20, p: float = 0.2) -> Csr:
    dense = torch.rand(n, n, generator=seeded()) < p
    return Csr.from_dense(dense.fill_diagonal_(False))


def test_negatives_are_uniform_and_no_links() -> None:
    """Every node but the seed is drawn equally often; an entry has an edge iff it is a link."""
    links, n = random_graph(), 20
    seed = int(links.degrees().argmax())
    sampler, times, generator = PairSampler(links, negatives=10), torch.zeros(n), seeded()
    for _ in range(400):
        (block,) = sampler(torch.tensor([seed]), generator)
        columns = block.src[block.indices]
        dense = links.to_dense()[seed, columns] > 0
        assert torch.equal(block.edges >= 0, dense)
        assert torch.equal(links.indices[block.edges[dense]], columns[dense])
        times += torch.bincount(columns[1:], minlength=n)
    others = torch.arange(n) != seed
    assert times[seed] == 0
    expected = times.sum() / (n - 1)
    chi2 = ((times[others] - expected) ** 2 / expected).sum()
    assert chi2 < 42.3  # the 99.9 % point of 18 degrees of freedom


def test_entries_are_ordered_by_seed() -> None:
    """Each seed's entries follow its own number, links and negatives; seeds come first in src."""
    links, seeds = random_graph(), torch.tensor([7, 2, 11])
    (block,) = PairSampler(links, positives=2, negatives=3)(seeds, seeded())
    assert torch.equal(block.src[:3], seeds) and block.dst_in_src
    for i, seed in enumerate(seeds.tolist()):
        mine = slice(int(block.indptr[i]), int(block.indptr[i + 1]))
        found, at = links.find(
            torch.full_like(block.indices[mine], seed), block.src[block.indices[mine]]
        )
        assert torch.equal(block.edges[mine], torch.where(found, at, -1))


def test_without_is_the_literal_filter() -> None:
    """Entries of the pairs go, in both directions; all others stay, with their edges."""
    graph = random_graph()
    (hop,) = NeighborSampler(graph, [4])(torch.arange(10), seeded())
    row, col = torch.tensor([3, 5, 0]), graph.indices[graph.indptr[torch.tensor([3, 5, 0])]]
    left = without(hop, col, row, n=20)
    pairs = {frozenset(p) for p in zip(row.tolist(), col.tolist(), strict=True)}
    ends = zip(hop.dst[hop.csr.row_ids()].tolist(), hop.src[hop.indices].tolist(), strict=True)
    kept = torch.tensor([frozenset(p) not in pairs for p in ends])
    assert 0 < int((~kept).sum()) < len(kept)
    assert torch.equal(left.edges, hop.edges[kept])
    assert torch.equal(left.csr.row_ids(), hop.csr.row_ids()[kept])
    assert torch.equal(left.src, hop.src) and torch.equal(left.dst, hop.dst)


def test_hops_are_those_of_the_ends() -> None:
    """Neighborhoods are sampled around all nodes of the pairs, whichever sampler gives them."""
    graph = random_graph()
    for pairs in (PairSampler(graph), ShortlistSampler(graph, dst_in_src=True)):
        far, near, block = LinkSampler(pairs, NeighborSampler(graph, [3, 2]))(
            torch.tensor([4, 9]), seeded()
        )
        assert torch.equal(near.dst, block.src) and torch.equal(far.dst, near.src)


@pytest.mark.usefixtures("unchecked")
def test_bad_counts_and_seeds_are_refused() -> None:
    """No positives, no negatives, a seed beyond the graph."""
    for counts in ({"positives": 0}, {"negatives": 0}):
        with pytest.raises(InputError, match="expected a whole number of at least 1, got 0"):
            PairSampler(random_graph(), **counts)
    with pytest.raises(InputError, match=r"seeds: expected ids in \[0, 20\), got 20"):
        PairSampler(random_graph())(torch.tensor([20]), seeded())
