"""Losses over a shortlist: literal loops agree, known positives are never pushed away."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad, hessian, jvp

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.losses import decoupled_softmax, hardest_triplets, lowest_triplets

POSITIVES = [[0, 2], [1], [], [3, 0, 2]]


def _block(rows: list[list[int]], n: int) -> Block:
    csr = Csr.from_lists(rows, n)
    return Block(torch.arange(len(rows)), torch.arange(n), csr.indptr, csr.indices, csr.indices)


def _scores() -> torch.Tensor:
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _softmax_loop(scores: torch.Tensor, positives: list[list[int]], tau: float) -> float:
    points = []
    for row, own in zip((scores / tau).tolist(), positives, strict=True):
        negatives = sum(math.exp(s) for j, s in enumerate(row) if j not in own)
        points += [[-math.log(math.exp(row[p]) / (math.exp(row[p]) + negatives)) for p in own]]
    means = [sum(p) / len(p) for p in points if p]
    return sum(means) / len(means)


def _triplet_loop(scores: torch.Tensor, positives: list[list[int]], k: int) -> float:
    points = []
    for row, own in zip(scores.tolist(), positives, strict=True):
        hardest = sorted((s for j, s in enumerate(row) if j not in own), reverse=True)[:k]
        losses = []
        for p in own:
            violators = [s for s in hardest if s - row[p] + 0.3 > 0]
            total = sum(math.exp(s / 0.1) for s in violators)
            losses += [sum(math.exp(s / 0.1) / total * (s - row[p] + 0.3) for s in violators)]
        points += [losses]
    means = [sum(p) / len(p) for p in points if p]
    return sum(means) / len(means)


def _lowest_loop(scores: torch.Tensor, positives: list[list[int]], j: int, k: int) -> float:
    points = []
    for row, own in zip(scores.tolist(), positives, strict=True):
        hardest = sorted((s for i, s in enumerate(row) if i not in own), reverse=True)[:k]
        losses = []
        for p in sorted(own, key=lambda p: row[p])[:j]:
            hinges = [s - row[p] + 0.2 for s in hardest if s - row[p] + 0.2 > 0]
            total = sum(math.exp(x) for x in hinges)
            losses += [sum(math.exp(x) / total * x for x in hinges)]
        points += [losses]
    means = [sum(p) / len(p) for p in points if p]
    return sum(means) / len(means)


@pytest.mark.parametrize(("j", "k"), [(1, 1), (2, 3), (3, 5)])
def test_lowest_triplets_equal_the_formula(j: int, k: int) -> None:
    """The literal loop over the lowest positives and the highest negatives, gradients finite."""
    scores = _scores().requires_grad_()
    ours = lowest_triplets(scores, _block(POSITIVES, 5), positives=j, k=k)
    assert ours.item() == pytest.approx(_lowest_loop(_scores(), POSITIVES, j, k))
    ours.backward()
    assert scores.grad is not None and bool(scores.grad.isfinite().all())
    assert bool((scores.grad[[0, 1, 3]] != 0).any(1).all()) and not scores.grad[2].any()


def test_relevance_weighs_the_positives_of_a_point() -> None:
    """Weights are shares within a point: ones and any constant change nothing, 0 leaves out."""
    block = _block(POSITIVES, 5)
    block = Block(block.dst, block.src, block.indptr, block.indices, torch.arange(6))
    plain = decoupled_softmax(_scores(), block, 1.0)
    same = decoupled_softmax(_scores(), block, 1.0, torch.full((6,), 7.0))
    assert float(plain) == pytest.approx(float(same))
    # entry 1 is label 2 of point 0: without it its loss is that of label 0 alone, against 1, 3, 4
    weights = torch.tensor([2.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    scores = _scores()
    own = [(0, 0, [1, 3, 4]), (1, 1, [0, 2, 3, 4])]
    expected = [
        float(torch.logsumexp(scores[i, [p, *rest]], 0) - scores[i, p]) for i, p, rest in own
    ]
    weighed = decoupled_softmax(scores, block, 1.0, weights)
    assert float(weighed) == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_softmax_equals_the_formula(tau: float) -> None:
    """Decoupled softmax is the literal double sum, points without positives left out."""
    ours = decoupled_softmax(_scores(), _block(POSITIVES, 5), tau)
    assert float(ours) == pytest.approx(_softmax_loop(_scores(), POSITIVES, tau))


@pytest.mark.parametrize("k", [1, 2])
def test_triplets_equal_the_formula(k: int) -> None:
    """Hardest triplets are the literal loop; k counts negatives only."""
    ours = hardest_triplets(_scores(), _block(POSITIVES, 5), k=k)
    assert float(ours) == pytest.approx(_triplet_loop(_scores(), POSITIVES, k))


@pytest.mark.parametrize("loss", [decoupled_softmax, hardest_triplets])
def test_gradient_pulls_positives_and_pushes_negatives(loss) -> None:
    """No known positive has a positive gradient, some negative does; all gradients are finite."""
    scores = _scores().requires_grad_()
    block = _block(POSITIVES, 5)
    (slope,) = torch.autograd.grad(loss(scores, block), scores)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0
    assert bool((slope[block.mask()] <= 0).all())
    assert float(slope[~block.mask()].max()) > 0
    assert torch.equal(slope[2], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("loss", [decoupled_softmax, hardest_triplets])
def test_degenerate_blocks_stay_finite(loss) -> None:
    """Only positives, none at all, or no labels: loss and gradient are 0, not NaN."""
    for rows, n in (([[0, 1], [0, 1]], 2), ([[], []], 2), ([[], []], 0)):
        scores = torch.zeros(2, n, requires_grad=True)
        value = loss(scores, _block(rows, n))
        (slope,) = torch.autograd.grad(value, scores)
        assert value.item() == 0 and torch.equal(slope, torch.zeros(2, n))


def test_softmax_differentiates_twice() -> None:
    """The Hessian of the loss is there for curvature."""
    block = _block(POSITIVES, 5)
    assert torch.autograd.gradgradcheck(
        lambda s: decoupled_softmax(s, block, 1.0), _scores().requires_grad_()
    )


def _softmax_by_torch(scores: torch.Tensor, block: Block, tau: float) -> torch.Tensor:
    """The formula in operations of torch alone; one row of losses a positive."""
    rows, columns = block.csr.row_ids(), block.indices
    negatives = (scores / tau).masked_fill(block.mask(), -torch.inf).logsumexp(1)
    losses = torch.log1p((negatives[rows] - scores[rows, columns] / tau).exp())
    means = [losses[rows == row].mean() for row in rows.unique()]
    return torch.stack(means).mean()


def test_softmax_has_the_derivatives_of_the_formula() -> None:
    """Gradient, forward mode, jvp of the gradient, gradient of the jvp, Hessian."""
    block = _block([[0, 2], [1], [], [3, 0, 2], [4, 4]], 5)
    draw = torch.Generator().manual_seed(0)
    scores, direction = torch.randn(2, 5, 5, dtype=torch.float64, generator=draw)

    def derivatives(loss) -> list[torch.Tensor]:
        def value(x: torch.Tensor) -> torch.Tensor:
            return loss(x, block, 0.3)

        def along(x: torch.Tensor) -> torch.Tensor:
            return jvp(value, (x,), (direction,))[1]

        pair = jvp(grad(value), (scores,), (direction,))
        return [*pair, along(scores), grad(along)(scores), hessian(value)(scores)]

    for ours, theirs in zip(
        derivatives(decoupled_softmax), derivatives(_softmax_by_torch), strict=True
    ):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused() -> None:
    """A temperature of zero, no negatives asked for."""
    with pytest.raises(InputError, match="temperature"):
        decoupled_softmax(_scores(), _block(POSITIVES, 5), 0.0)
    with pytest.raises(InputError, match="k: expected"):
        hardest_triplets(_scores(), _block(POSITIVES, 5), k=0)
