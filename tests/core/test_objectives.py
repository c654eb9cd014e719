"""Objectives: two halves of one scalar, which reads its arguments and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal.core.block import Batch, Block
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.losses import decoupled_softmax
from shoal.core.objectives import (
    Objective,
    in_batch,
    link_binary_cross_entropy,
    link_softmax,
    node_binary_cross_entropy,
    node_cross_entropy,
)
from shoal.text.bag import BagSum
from shoal.training.gradients import trained
from tests.training.test_loop import node_job


def test_calling_composes_the_halves() -> None:
    """objective(p, b) is loss(outputs(p, b), b), of p and not of the model's own parameters."""
    job = node_job(dropout=0.0)
    batch, objective = next(iter(job.loader)), job.objective
    params = {name: value + 1 for name, value in trained(objective.model).items()}
    outputs = objective.outputs(params, batch)
    assert objective(params, batch) == objective.loss(outputs, batch)
    assert objective(params, batch) != objective(trained(objective.model), batch)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.add_(1)
    torch.testing.assert_close(objective.outputs({}, batch), outputs)


def test_in_batch_reads_points_then_labels() -> None:
    """Scores are inner products of the first b outputs with the others, the shortlist's labels."""
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    points, found = torch.arange(2), torch.tensor([0, 2, 1])
    shortlist = Block(points, torch.arange(3), torch.tensor([0, 2, 3]), found, found)
    bags = Block(
        torch.arange(5), torch.arange(5), torch.arange(6), torch.arange(5), torch.arange(5)
    )
    batch = Batch(points, (bags, shortlist), rows)
    seen: list[Tensor] = []

    def loss(scores: Tensor, block: Block) -> Tensor:
        seen.append(scores)
        return decoupled_softmax(scores, block, temperature=0.5)

    got = Objective(BagSum(), in_batch(loss))({}, batch)
    unit = functional.normalize(rows, dim=1)
    expected = unit[:2] @ unit[2:].T
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(got, decoupled_softmax(expected, shortlist, temperature=0.5))


def test_node_cross_entropy() -> None:
    """Mean of -log softmax at the target, in float32; without a target InputError."""
    batch = Batch(torch.arange(2), (), torch.zeros(2, 0), torch.tensor([0, 1]))
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(node_cross_entropy(logits, batch), torch.tensor(2.0).log())
    with pytest.raises(InputError, match="target: expected one class per seed, got None"):
        node_cross_entropy(logits, replace(batch, target=None))


def test_link_softmax_leaves_oneself_out() -> None:
    """Against a loop: each link among the nodes that are not linked with its source, nor it."""
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    links = Csr.from_lists([[1, 2], [3]], n_cols=4)
    ids = torch.arange(4)
    block = Block(ids[:2], ids, links.indptr, links.indices, links.indices, dst_in_src=True)
    expected = 0.0
    for u, v, others, share in ((0, 1, [3], 2), (0, 2, [3], 2), (1, 3, [0, 2], 1)):
        scores = (rows[[v, *others]] @ rows[u]).float() / 0.5
        expected -= float(scores.log_softmax(0)[0]) / share / 2
    batch = Batch(ids[:2], (block,), rows)
    torch.testing.assert_close(link_softmax(0.5)(rows, batch).item(), expected, rtol=1e-5, atol=0)


def test_link_binary_cross_entropy_weighs_both_sides_the_same() -> None:
    """One link and two negatives of score 0: log 2, and the gradient pulls and pushes alike."""
    rows = torch.zeros(4, 2, requires_grad=True)
    ids, edges = torch.arange(4), torch.tensor([0, -1, -1])
    block = Block(ids[:1], ids, torch.tensor([0, 3]), ids[1:], edges, dst_in_src=True)
    loss = link_binary_cross_entropy()(rows, Batch(ids[:1], (block,), rows))
    torch.testing.assert_close(loss.item(), math.log(2))
    with torch.no_grad():
        rows[0, 0] = 1.0
    link_binary_cross_entropy(1.0)(rows, Batch(ids[:1], (block,), rows)).backward()
    assert rows.grad is not None
    assert rows.grad[1:, 0].tolist() == [-0.25, 0.125, 0.125]


def test_node_binary_cross_entropy() -> None:
    """Logits of 0 cost log 2 for every class; a batch without truth is refused."""
    logits = torch.zeros(2, 3)
    batch = Batch(torch.arange(2), (), logits, torch.eye(3)[:2].bool())
    torch.testing.assert_close(node_binary_cross_entropy(logits, batch).item(), math.log(2))
    with pytest.raises(InputError, match="target: expected one truth value"):
        node_binary_cross_entropy(logits, replace(batch, target=None))
