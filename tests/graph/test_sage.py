"""GraphSAGE: blocks, the dense formula and layer-wise inference agree, twice differentiable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.graph.layers import full_graph
from shoal.graph.sage import Sage, mean_over
from shoal.sample.expand import NeighborSampler, expand
from tests.strategies import csrs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(**settings: int | float) -> Sage:
    """A double-precision Sage with fixed weights."""
    torch.manual_seed(0)
    return Sage(**{"in_dim": 5, "hidden": 7, "out_dim": 3} | settings).double()


def dense_sage(sage: Sage, adjacency: Tensor, rows: Tensor) -> Tensor:
    """Algorithm 1 of the paper as it is written, with W [h_v, h_N(v)] on the dense matrix."""
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    for k, layer in enumerate(sage.layers):
        weight = torch.cat([layer.own.weight, layer.neighbors.weight], 1)
        rows = torch.cat([rows, mean @ rows], 1) @ weight.T + layer.own.bias
        rows = rows.relu() if k + 1 < len(sage.layers) else rows
    return rows


def random_graph(n: int = 30, p: float = 0.1) -> Csr:
    """Nodes 0 and 1 are isolated."""
    dense = torch.rand(n, n, generator=seeded()) < p
    dense[:2] = False
    return Csr.from_dense(dense)


@settings(max_examples=20)
@given(csrs(min_rows=1), st.integers(1, 3), st.sampled_from([1, 3, 100]))
def test_three_paths_agree(csr: Csr, layers: int, entries: int) -> None:
    """Blocks of full fan-out, layer-wise inference and the dense formula give the same rows."""
    n = csr.n_rows
    graph = Csr(csr.indptr, csr.indices % n, n)
    rows = torch.randn(n, 5, dtype=torch.float64, generator=seeded())
    sage = model(layers=layers).eval()
    expected = dense_sage(sage, graph.to_dense().double(), rows)
    seeds = torch.randperm(n, generator=seeded())
    blocks = NeighborSampler(graph, [None] * layers)(seeds, seeded())
    torch.testing.assert_close(sage(blocks, rows[blocks[0].src]), expected[seeds])
    torch.testing.assert_close(full_graph(sage, graph, rows, entries=entries), expected)
    some = seeds[: n // 2 + 1].repeat(2)
    found = full_graph(sage, graph, rows, some, entries)
    torch.testing.assert_close(found, expected[some])


def test_sampled_means_are_unbiased() -> None:
    """Over many draws, one sampled hop averages to the full hop; a single draw does not."""
    graph = random_graph(p=0.5)
    rows = torch.randn(30, 2, dtype=torch.float64, generator=seeded())
    node, gen = torch.tensor([5]), seeded()
    full = expand(graph, node)
    exact = mean_over(full.csr, rows[full.src])
    hops = [expand(graph, node, 3, gen) for _ in range(100)]
    draws = torch.cat([mean_over(hop.csr, rows[hop.src]) for hop in hops])
    noise = draws.std(0) / 10
    assert bool((noise > 0).all())
    assert bool(((draws.mean(0) - exact).abs() < 4 * noise).all())


def test_differentiable_twice() -> None:
    """First and second derivatives, in rows and in weights, agree with finite differences."""
    graph = random_graph(8, 0.4)
    sage = model(hidden=3, dropout=0.0)
    blocks = NeighborSampler(graph, [2, 2])(torch.tensor([3, 0, 6]), seeded())
    rows = torch.randn(blocks[0].src.numel(), 5, dtype=torch.float64, generator=seeded())
    weight = sage.layers[0].neighbors.weight.detach()

    def run(rows: Tensor, weight: Tensor) -> Tensor:
        named = {"layers.0.neighbors.weight": weight}
        return torch.func.functional_call(sage, named, (blocks, rows)).tanh()

    inputs = (rows.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    grads = torch.autograd.grad(run(*inputs).sum(), inputs)
    assert all(bool(g.abs().sum() > 0) for g in grads)


def test_full_graph_leaves_the_mode_alone() -> None:
    """Inference has no dropout, whatever the mode, and the mode is as before."""
    graph, rows = random_graph(), torch.ones(30, 5, dtype=torch.float64)
    sage = model(dropout=0.9)
    expected = dense_sage(sage, graph.to_dense().double(), rows)
    for mode in (True, False):
        sage.train(mode)
        torch.testing.assert_close(full_graph(sage, graph, rows), expected)
        assert sage.training is mode
    blocks = NeighborSampler(graph, [None, None])(torch.arange(30), seeded())
    dropped = sage.train()(blocks, rows[blocks[0].src])
    assert not torch.allclose(dropped, expected)


def test_no_nodes_at_all() -> None:
    """An empty graph has no rows; they have the right width."""
    empty = Csr(torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0)
    assert full_graph(model(), empty, torch.empty(0, 5, dtype=torch.float64)).shape == (0, 3)


def planted_communities(n: int, classes: int) -> tuple[Csr, Tensor, Tensor]:
    """Nodes whose neighbors mostly share their class, and features too noisy to tell it alone."""
    gen = seeded(1)
    target = torch.arange(n) % classes
    alike = target.unsqueeze(1) == target
    graph = Csr.from_dense(torch.rand(n, n, generator=gen) < torch.where(alike, 0.1, 0.01))
    centers = torch.eye(classes)[target]
    return graph, centers + 1.5 * torch.randn(n, classes, generator=gen), target


def accuracy_after_training(fanouts: list[int | None]) -> float:
    """Train on the first half of the nodes, test on the second with full neighborhoods."""
    graph, rows, target = planted_communities(600, 4)
    torch.manual_seed(0)
    sage = Sage(4, 16, 4)
    adam = torch.optim.Adam(sage.parameters(), lr=0.02)
    sampler, gen = NeighborSampler(graph, fanouts), seeded()
    for _ in range(12):
        for seeds in torch.randperm(300, generator=gen).split(100):
            blocks = sampler(seeds, gen)
            loss = torch.nn.functional.cross_entropy(
                sage(blocks, rows[blocks[0].src]), target[seeds]
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
    predicted = full_graph(sage, graph, rows).argmax(1)
    return float((predicted == target)[300:].float().mean())


def test_sampled_training_learns_what_full_training_learns() -> None:
    """Fan-outs far below the degree end within 5 points of whole neighborhoods; none do not."""
    whole = accuracy_after_training([None, None])
    sampled = accuracy_after_training([8, 8])
    alone = accuracy_after_training([0, 0])
    assert whole > 0.85 and abs(whole - sampled) < 0.05
    assert alone < whole - 0.2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sage(0, 1, 1), "in_dim: expected a whole number of at least 1, got 0"),
        (lambda: Sage(1, 1, 1, dropout=1.0), r"dropout: expected a share in \[0, 1\), got 1.0"),
        (lambda: model()([], torch.ones(1, 5)), "blocks: expected one per layer, 2, got 0"),
        (
            lambda: model(layers=1)([expand(random_graph(), torch.tensor([3]))], torch.ones(9, 5)),
            r"blocks\[0\]: expected dst_in_src, got False",
        ),
        (
            lambda: full_graph(model(), random_graph(), torch.ones(29, 5)),
            "features: expected one row per node, 30, got 29",
        ),
        (
            lambda: full_graph(model(), random_graph(), torch.ones(30, 5), entries=0),
            "entries: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: full_graph(model(), random_graph(), torch.ones(30, 5), torch.tensor([30])),
            r"ids: expected ids in \[0, 30\), got 30",
        ),
        (
            lambda: full_graph(model(), Csr.from_lists([[1]], n_cols=2), torch.ones(1, 5)),
            "graph: expected a square Csr",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    """Sizes below one, a missing or wrong block, features of another graph: one line each."""
    with pytest.raises(InputError, match=message):
        call()
