"""Shoal's own objectives: both halves split where the loss is convex, rows for parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal import (
    BagSum,
    Batch,
    Csr,
    Hop,
    InputError,
    Loader,
    NeighborSampler,
    Objective,
    RandomBatchSampler,
    RowAdam,
    Sage,
    decoupled_softmax,
    in_batch,
    node_cross_entropy,
    spectrum,
    unified,
)
from shoal.sample.expand import Chain, ShortlistSampler, dst_then_src
from tests.planted import planted_graph


def label_loader() -> tuple[Objective, Loader, Csr, Csr]:
    """Eight documents of two tokens each and four labels, of a bag encoder."""
    documents = Csr.from_lists([[i % 6, (i + 1 + i // 6) % 6] for i in range(8)], n_cols=6)
    names = Csr.from_lists([[0, 1], [2], [3, 4], [5]], n_cols=6)
    labels = Csr.from_lists([[i % 4, (i + 1) % 4] for i in range(8)], n_cols=4)

    def join(shortlist: object) -> torch.Tensor:
        return dst_then_src(shortlist, offset=8)  # pyright: ignore

    sampler = Chain(ShortlistSampler(labels), Hop(documents.stack(names)), join)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    table = unified(rows, RowAdam(lr=0.1))
    loader = Loader(RandomBatchSampler(8, batch_size=4, seed=0), sampler, table, seed=0)
    objective = Objective(BagSum(), in_batch(lambda s, b: decoupled_softmax(s, b, 0.5)))
    return objective, loader, documents, labels


def test_rows_are_the_parameters_of_a_bag_encoder() -> None:
    """The Hessian is that of the objective as a function of the table, by torch.func."""
    objective, loader, _, _ = label_loader()
    state = loader.state_dict()
    batches = list(loader)
    loader.load_state_dict(state)

    def whole(table: torch.Tensor) -> torch.Tensor:
        losses = []
        for batch in batches:
            src = table.view(6, 3)[batch.blocks[0].src]
            losses.append(objective({}, Batch(batch.seeds, batch.blocks, src, batch.target)))
        return torch.stack(losses).mean()

    flat = loader.table.gather(torch.arange(6)).reshape(-1)  # pyright: ignore
    dense = torch.autograd.functional.hessian(whole, flat)
    found = spectrum(objective, loader=loader, curvature="hessian", steps=18, probes=0)
    torch.testing.assert_close(found.ritz[:4].float(), torch.linalg.eigvalsh(dense).flip(0)[:4])
    assert found.parameters == 18 and found.batch_size == 4 and found.dataset_size == 8
    assert found.noise.sampling == "in-batch" and found.sampler == "RandomBatchSampler"
    text = " ".join(found.warnings)
    assert "table's rows" in text and "fit two of them" in text
    assert loader.state_dict() == state


def test_scores_make_gauss_newton_semidefinite() -> None:
    """Split at the embeddings the same matrix would have negative eigenvalues."""
    objective, loader, _, _ = label_loader()
    found = spectrum(objective, loader=loader, steps=18, probes=0)
    assert found.lam_max > 0.01 and found.ritz[-1] > -1e-6
    apart = Objective(objective.model, lambda outputs, batch: objective.criterion(outputs, batch))
    other = spectrum(apart, loader=loader, steps=18, probes=0)
    assert other.ritz[-1] < -1e-3
    assert any("not convex in the outputs" in note for note in other.warnings)


def test_a_graph_s_objective() -> None:
    """Sage's weights are measured on sampled neighborhoods; the loader stands where it stood."""
    data = planted_graph(n=120, classes=2, degree=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sage(in_dim=16, hidden=4, out_dim=2, layers=2, dropout=0.0)
    nodes = RandomBatchSampler(120, batch_size=20, seed=0)
    sampler = NeighborSampler(data.graph, [2, 2])
    loader = Loader(nodes, sampler, data.features.to_dense(), data.target, seed=0)
    next(iter(loader))
    position = loader.state_dict()
    found = spectrum(Objective(model, node_cross_entropy), loader=loader, max_batches=3)
    assert found.samples == 60 and found.dataset_size == 120
    assert found.noise.sampling == "neighborhoods" and found.lam_max > 0
    assert loader.state_dict() == position and position["position"] == 1


def test_an_objective_has_its_own_loss() -> None:
    """A second one is refused."""
    objective, loader, _, _ = label_loader()
    with pytest.raises(InputError, match="loss_fn: expected None"):
        spectrum(objective, nn.MSELoss(), loader)
