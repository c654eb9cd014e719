"""The fan-out model: exact where it can be, close where it approximates, and better than degree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.expand import NeighborSampler
from shoal.sample.seeds import RandomBatchSampler
from shoal.sample.touch import touch_probability


def counted(graph: Csr, seeds: Tensor, fanouts: list[int], size: int, epochs: int) -> Tensor:
    """Share of batches that read each row, by drawing them."""
    sampler, generator = NeighborSampler(graph, fanouts), torch.Generator().manual_seed(1)
    batches, seen, many = RandomBatchSampler(len(seeds), size, 0), torch.zeros(graph.n_rows), 0
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for at in batches:
            seen[sampler(seeds[at], generator)[0].src] += 1
            many += 1
    return seen / many


def web(n: int, generator: torch.Generator) -> Csr:
    """Rows of 0 to 8 entries, whose columns are skewed: low ids are read often."""
    rows = torch.arange(n).repeat_interleave(torch.randint(0, 9, (n,), generator=generator))
    columns = (torch.rand(len(rows), generator=generator) ** 3 * n).long()
    return Csr.from_coo(rows, columns, (n, n)).coalesce()


def test_it_predicts_what_batches_read() -> None:
    """On a random graph each probability is that of 400 drawn batches, within their noise."""
    generator = torch.Generator().manual_seed(0)
    graph, seeds = web(400, generator), torch.randperm(400, generator=generator)[:100]
    touch = touch_probability(graph, seeds, [3, 2], 10)
    real = counted(graph, seeds, [3, 2], 10, epochs=40)
    noise = (touch * (1 - touch) / 400).sqrt()
    assert float(touch.sum()) == pytest.approx(float(real.sum()), rel=0.03)
    # 5 σ, and 0.05 for the assumption; a model that forgets the second hop is 0.3 off
    assert bool(((touch - real).abs() < 5 * noise + 0.05).all())
    assert float((touch_probability(graph, seeds, [3], 10) - real).abs().max()) > 0.3


def test_hops_without_neighbors_and_whole_batches() -> None:
    """Without hops a row is touched as often as it is a seed; all seeds at once are certain."""
    graph = web(50, torch.Generator().manual_seed(0))
    seeds = torch.tensor([4, 7])
    for size in (1, 2):
        touch = touch_probability(graph, seeds, [], size)
        assert touch.nonzero().flatten().tolist() == [4, 7] and float(touch[4]) == size / 2
        assert torch.equal(touch_probability(graph, seeds, [0], size), touch)
    everywhere = touch_probability(graph, seeds, [None, 5], 2)
    assert float(everywhere.min()) >= 0 and float(everywhere.max()) == 1


def test_an_edge_that_stands_twice_counts_twice() -> None:
    """What is drawn are entries: two equal edges are two chances, taken to be independent."""
    twice = Csr.from_lists([[1, 1], []], n_cols=2)
    touch = touch_probability(twice, torch.tensor([0]), [1], 1)
    assert float(touch[1]) == pytest.approx(1 - 0.5**2)


def test_what_is_drawn_again_is_not_read_again() -> None:
    """Two hops of one neighbor of a lone seed's two: all of one, half of the other."""
    two = Csr.from_lists([[1, 2], [], []], n_cols=3)
    touch = touch_probability(two, torch.tensor([0]), [1, 1], 1)
    assert touch.tolist() == [1, 0.75, 0.75]
    assert counted(two, torch.tensor([0]), [1, 1], 1, epochs=200)[1] == pytest.approx(0.75, abs=0.1)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Seeds beyond the graph, a batch larger than the seeds, a negative fan-out."""
    graph = Csr.from_lists([[1], [0]], n_cols=2)
    for seeds, fanouts, size, message in (
        ([2], [1], 1, r"seeds: expected ids in \[0, 2\), got 2"),
        ([0], [1], 2, "batch_size: expected at most the 1 seeds, got 2"),
        ([0], [1], 0, "batch_size: expected a whole number of at least 1"),
        ([0], [-1], 1, "fanouts: expected numbers of at least 0, or None, got -1"),
    ):
        with pytest.raises(InputError, match=message):
            touch_probability(graph, torch.tensor(seeds), fanouts, size)
