"""Objectives: two halves of one scalar, which reads its arguments and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal._checks import InputError
from shoal.block import Batch, Block
from shoal.gradients import trained
from shoal.losses import decoupled_softmax
from shoal.models.bag import BagEncoder
from shoal.objectives import Objective, in_batch, node_cross_entropy
from tests.test_train import node_job


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

    got = Objective(BagEncoder(), in_batch(loss))({}, batch)
    unit = functional.normalize(rows, dim=1)
    expected = unit[:2] @ unit[2:].T
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(got, decoupled_softmax(expected, shortlist, temperature=0.5))


def test_node_cross_entropy() -> None:
    """Mean of -log softmax at the target, in float32; without a target InputError."""
    batch = Batch(torch.arange(2), (), torch.zeros(2, 0), torch.tensor([0, 1]))
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(node_cross_entropy(logits, batch), torch.tensor(2.0).log())
    with pytest.raises(InputError, match="target: expected one class a seed, got None"):
        node_cross_entropy(logits, replace(batch, target=None))
