"""The losses on ids in the label column: dense oracles, false negatives masked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.integrations.sentence_transformers.losses import (
    HardestTripletsLoss,
    MaskedSoftmaxLoss,
    shortlist,
)
from shoal.sample.seeds import EmbeddingBank

KNOWN = Csr.from_lists([[0, 2], [1, 3], [2], [3, 4], [5]], n_cols=6)
# documents 0 and 2 share label 2, which stands twice; 1 and 3 share label 3, brought by 3 alone
IDS = torch.tensor([[0, 2], [1, 1], [2, 2], [3, 3], [4, 5]])


class _Table(nn.Module):
    """A model whose features are ids of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(11, 7, generator=torch.Generator().manual_seed(0)))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.rows[features["input_ids"]]}


def _columns(ids: Tensor = IDS) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids[:, 0]}, {"input_ids": ids[:, 1] + 5}]


def _oracle(model: _Table, per_positive) -> Tensor:
    """Mean over documents of the mean over their positives in the batch, one label at a time."""
    unit = normalize(model.rows, dim=1)
    shortlist = sorted(set(IDS[:, 1].tolist()))
    known = KNOWN.to_dense()
    points = []
    for document in IDS[:, 0].tolist():
        score = {label: unit[document] @ unit[label + 5] for label in shortlist}
        negatives = torch.stack([score[x] for x in shortlist if not known[document, x]])
        own = [per_positive(score[x], negatives) for x in shortlist if known[document, x]]
        points.append(torch.stack(own).mean())
    return torch.stack(points).mean()


def _softmax(positive: Tensor, negatives: Tensor) -> Tensor:
    return -torch.log(
        (20 * positive).exp() / ((20 * positive).exp() + (20 * negatives).exp().sum())
    )


def _triplets(positive: Tensor, negatives: Tensor) -> Tensor:
    hinge = (negatives.topk(2).values - positive + 0.3).clamp(min=0)
    violates = hinge > 0
    weight = (negatives.topk(2).values / 0.1).exp() * violates
    return (weight * hinge).sum() / weight.sum().clamp(min=1e-30)


@pytest.mark.parametrize("kind", ["softmax", "triplets"])
def test_loss_and_gradient_equal_the_dense_oracle(kind: str) -> None:
    """False negatives weigh nothing, a label in two rows counts once; the gradient agrees too."""
    one, two = _Table(), _Table()
    loss = (
        MaskedSoftmaxLoss(one, KNOWN) if kind == "softmax" else HardestTripletsLoss(one, KNOWN, k=2)
    )
    ours = loss(_columns(), IDS)
    literal = _oracle(two, _softmax if kind == "softmax" else _triplets)
    ours.backward()
    literal.backward()
    assert ours.item() == pytest.approx(literal.item(), rel=1e-5)
    assert one.rows.grad is not None and two.rows.grad is not None
    torch.testing.assert_close(one.rows.grad, two.rows.grad, rtol=1e-4, atol=1e-6)
    assert two.rows.grad.abs().sum() > 0.1


def test_a_false_negative_gets_no_push() -> None:
    """Document 1 has label 3, which another row brings: it is pulled there, not pushed away."""
    own = Csr.from_coo(IDS[:, 0], IDS[:, 1], KNOWN.shape)  # each row's own pair and no more
    slopes = []
    for known in (KNOWN, own):
        block, first = shortlist(known, IDS)
        assert IDS[first, 1].tolist() == block.src.tolist() == [2, 1, 3, 5]
        scores = torch.zeros(5, 4, requires_grad=True)
        MaskedSoftmaxLoss(_Table(), known).from_scores(scores, block).backward()
        assert scores.grad is not None
        slopes.append(scores.grad[1, 2].item())
    assert slopes[0] < 0 < slopes[1]


def test_without_shared_labels_it_is_the_plain_ranking_loss() -> None:
    """One positive a document and no label twice: cross entropy of 20 cosines with the diagonal."""
    model = _Table()
    ids = torch.tensor([[0, 0], [2, 2], [4, 5]])
    one = Csr.from_coo(ids[:, 0], ids[:, 1], KNOWN.shape)
    unit = normalize(model.rows, dim=1)
    scores = 20 * unit[ids[:, 0]] @ unit[ids[:, 1] + 5].T
    plain = nn.functional.cross_entropy(scores, torch.arange(3))
    ours = MaskedSoftmaxLoss(model, one)(_columns(ids), ids)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_bank_keeps_training_steps_and_nothing_else() -> None:
    """The anchors' directions land at their documents; without gradients nothing is written."""
    model, bank = _Table(), EmbeddingBank(5, 7, torch.float32)
    loss = MaskedSoftmaxLoss(model, KNOWN, bank=bank)
    with torch.no_grad():
        loss(_columns(), IDS)
    assert bank.filled == 0
    loss(_columns(), IDS)
    assert bank.filled == 1
    torch.testing.assert_close(bank.rows, normalize(model.rows.detach()[:5], dim=1))


@pytest.mark.usefixtures("unchecked")
def test_ids_of_another_numbering_are_refused() -> None:
    """A pair that is not known, a missing or float label column, a third column: one line each."""
    loss = MaskedSoftmaxLoss(_Table(), KNOWN)
    wrong = torch.tensor([[0, 1], [1, 1]])
    with pytest.raises(InputError, match=r"^known: expected the pair of every row"):
        loss(_columns(wrong), wrong)
    with pytest.raises(InputError, match=r"^label: expected .*no such column"):
        loss(_columns(), None)
    with pytest.raises(InputError, match=r"^label: expected .*float32"):
        loss(_columns(), IDS.float())
    with pytest.raises(InputError, match=r"^columns: expected two"):
        loss([*_columns(), *_columns()], IDS)
    with pytest.raises(InputError, match=r"^scale: expected"):
        MaskedSoftmaxLoss(_Table(), KNOWN, scale=0)
    with pytest.raises(InputError, match=r"^k: expected"):
        HardestTripletsLoss(_Table(), KNOWN, k=0)
