"""Graph attention: blocks, dense formula, layer-wise inference agree; twice differentiable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import leaky_relu

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.graph.gat import Gat
from shoal.graph.layers import full_graph
from shoal.sample.expand import NeighborSampler
from tests.graph.test_sage import random_graph, seeded
from tests.strategies import csrs


def model(layers: int = 2, heads: int = 2, dropout: float = 0.5) -> Gat:
    """A double-precision Gat with fixed weights."""
    torch.manual_seed(0)
    return Gat(5, 6, 3, layers, heads, dropout).double()


def dense_gat(gat: Gat, adjacency: Tensor, rows: Tensor) -> Tensor:
    """Equations 1 to 6 of the paper on the dense matrix, the vector a whole.

    An edge that stands twice counts twice, as it does in a Csr; a loop stands once.
    """
    adjacency = adjacency.clone().fill_diagonal_(1)
    n = len(rows)
    for k, layer in enumerate(gat.layers):
        values = (rows @ layer.value.weight.T).view(n, layer.heads, -1)
        heads = []
        for h in range(layer.heads):
            a = torch.cat([layer.own[h], layer.neighbor[h]])
            ends = [x.expand(n, n, -1) for x in (values[:, None, h], values[None, :, h])]
            score = adjacency * leaky_relu(torch.cat(ends, 2) @ a, 0.2).exp()
            heads.append(score / score.sum(1, keepdim=True) @ values[:, h])
        last = k + 1 == len(gat.layers)
        rows = torch.stack(heads).mean(0) if last else torch.cat(heads, 1)
        rows = rows + layer.bias
        rows = rows if last else torch.nn.functional.elu(rows)
    return rows


@settings(max_examples=20)
@given(csrs(min_rows=1), st.integers(1, 3), st.sampled_from([1, 100]))
def test_three_paths_agree(csr: Csr, layers: int, entries: int) -> None:
    """Blocks of full fan-out, layer-wise inference and the dense formula give the same rows."""
    n = csr.n_rows
    graph = Csr(csr.indptr, csr.indices % n, n)
    rows = torch.randn(n, 5, dtype=torch.float64, generator=seeded())
    gat = model(layers).eval()
    expected = dense_gat(gat, graph.to_dense().double(), rows)
    seeds = torch.randperm(n, generator=seeded())
    blocks = NeighborSampler(graph, [None] * layers)(seeds, seeded())
    torch.testing.assert_close(gat(blocks, rows[blocks[0].src]), expected[seeds])
    torch.testing.assert_close(full_graph(gat, graph, rows, entries=entries), expected)


def test_large_scores_do_not_overflow() -> None:
    """The softmax shifts by each row's largest score: weights of any size give finite rows."""
    graph, gat = random_graph(), model(layers=1).eval()
    rows = 1e6 * torch.randn(30, 5, dtype=torch.float64, generator=seeded())
    found = full_graph(gat, graph, rows)
    assert bool(found.isfinite().all()) and float(found.abs().max()) > 1


def test_differentiable_twice() -> None:
    """First and second derivatives, in rows and in weights, agree with finite differences."""
    gat = model(dropout=0.0)
    blocks = NeighborSampler(random_graph(8, 0.4), [2, 2])(torch.tensor([3, 0]), seeded())
    rows = torch.randn(blocks[0].src.numel(), 5, dtype=torch.float64, generator=seeded())
    own = gat.layers[0].own.detach()

    def run(rows: Tensor, own: Tensor) -> Tensor:
        return torch.func.functional_call(gat, {"layers.0.own": own}, (blocks, rows)).tanh()

    inputs = (rows.requires_grad_(), own.requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    grads = torch.autograd.grad(run(*inputs).sum(), inputs)
    assert all(bool(g.abs().sum() > 0) for g in grads)


@pytest.mark.parametrize("joined", [True, False])
def test_it_is_pygs(joined: bool) -> None:
    """With the same weights a layer is PyG's GATConv, loops in the graph or not."""
    nn = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric")
    layer = model(layers=2).layers[0 if joined else 1]
    conv = nn.GATConv(layer.value.in_features, layer.own.shape[1], heads=2, concat=joined).double()
    state = {"lin.weight": layer.value.weight, "bias": layer.bias}
    state |= {"att_dst": layer.own.unsqueeze(0), "att_src": layer.neighbor.unsqueeze(0)}
    conv.load_state_dict(state)
    graph = Csr.from_dense(random_graph(12, 0.3).to_dense().bool() | (torch.eye(12) > 0))
    block = NeighborSampler(graph, [3])(torch.tensor([4, 0, 9]), seeded())[0]
    rows = torch.randn(len(block.src), layer.value.in_features, dtype=torch.float64)
    expected = conv((rows, rows[:3]), block.edge_index)
    torch.testing.assert_close(layer.eval()(block, rows), expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 6, 3, 2, 4), "hidden: expected a multiple of the 4 heads, got 6"),
        ((5, 6, 3, 2, 0), "heads: expected a whole number of at least 1, got 0"),
        ((5, 6, 3, 2, 2, 1.0), r"dropout: expected a share in \[0, 1\), got 1.0"),
    ],
)
def test_bad_sizes_are_refused(sizes: tuple, message: str) -> None:
    """A width that heads do not divide, no head, all dropped."""
    with pytest.raises(InputError, match=message):
        Gat(*sizes)
