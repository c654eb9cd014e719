"""How many samples a batch holds, whoever made it: right, or one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from shoal import spectrum
from shoal.core.errors import InputError
from shoal.curvature.samples import counted
from shoal.curvature.spectrum import Spectrum

QUICK: dict[str, Any] = {"steps": 15, "probes": 1}


class Recurrent(nn.Module):
    """A GRU and logits: of its last state, or of each."""

    def __init__(self, batch_first: bool, each: bool, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(4, 6, batch_first=batch_first), nn.Linear(6, 3)
        self.each, self.first, self.flat = each, batch_first, flat

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        if self.each:
            return self.out(states).flatten(0, 1) if self.flat else self.out(states)
        return self.out(states[:, -1] if self.first else states[-1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("each", "flat"), [(False, False), (True, False), (True, True)])
def test_sequences_count_whichever_axis_is_time(batch_first: bool, each: bool, flat: bool) -> None:
    """Batches of 12 sequences of 5 steps: 12, where the first axis of all tensors may be 5."""
    x = torch.randn(12, 5, 4) if batch_first else torch.randn(5, 12, 4)
    y = torch.zeros(x.shape[:2] if each else 12, dtype=torch.long)
    model = Recurrent(batch_first, each, flat)
    assert counted([(x, y)] * 2, lambda batch: model(batch[0])) == [12, 12]


def test_noise_does_not_depend_on_the_layout() -> None:
    """One model and one data set, time first and batch first: the same spectrum and noise."""
    x, y = torch.randn(64, 5, 4), torch.randint(0, 3, (64,))
    first, last = Recurrent(True, False), Recurrent(False, False)
    parts = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    other = [(u.transpose(0, 1).contiguous(), v) for u, v in parts]
    a, b = (spectrum(m, cross_entropy, p, **QUICK) for m, p in ((first, parts), (last, other)))
    assert a.batch_size == b.batch_size == 16 and a.samples == b.samples == 64
    assert a.noise.frobenius == pytest.approx(b.noise.frobenius, rel=1e-3)


def test_a_data_loader_says_it() -> None:
    """Rows of its data set, the last batch fewer; whatever the collate function makes of them."""
    data = TensorDataset(torch.randn(20, 3))

    def flat(rows: list[Any]) -> Tensor:
        return torch.cat([row[0] for row in rows])

    loader = DataLoader(data, 8, collate_fn=flat)
    assert counted(list(loader), lambda batch: batch, loader) == [8, 8, 4]


def test_packed_tokens_are_asked_about() -> None:
    """One row of tokens may be one sample or many: a sentence, and the argument it names works."""
    ids, model = torch.arange(12).unsqueeze(0), nn.Sequential(nn.Embedding(12, 4), nn.Flatten(0, 1))
    rows = nn.GRU(4, 3, batch_first=True)

    def outputs(batch: Any) -> Tensor:
        return rows(model[0](batch[0]))[0]

    with pytest.raises(InputError, match=r"^batch_size: expected samples .*; pass batch_size="):
        counted([(ids, ids)], outputs)
    assert counted([(ids, ids)], outputs, batch_size=1) == [1]
    assert counted([(ids, ids)], outputs, batch_size=lambda batch: batch[0].numel()) == [12]


def measured(model: nn.Module, loader: Any, loss: Any, forward: Any = None) -> Spectrum:
    return spectrum(model, loss, loader, forward=forward, **QUICK)


def test_what_cannot_be_measured_is_one_sentence(unchecked: None) -> None:
    """The loss for outputs, dictionaries without forward, a penalty inside the loss."""
    net, x, y = nn.Linear(4, 3), torch.randn(32, 4), torch.randint(0, 3, (32,))
    pairs = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]

    def whole(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(InputError, match=r"^forward: expected outputs, got a single number"):
        measured(net, pairs, lambda out, batch: out, whole)
    named = [{"x": u, "y": v} for u, v in pairs]
    with pytest.raises(InputError, match=r"batches \(inputs, targets\), got dict; pass forward="):
        measured(net, named, lambda out, y: out.sum())

    def penalized(out: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(out, y) + sum(p.square().sum() for p in net.parameters())

    with pytest.raises(InputError, match="reads parameters as well; leave a penalty out"):
        measured(net, pairs, penalized)


def test_a_loss_over_pairs_of_the_batch_is_in_batch() -> None:
    """Embeddings in a contrastive loss: no mean over samples, so noise is that of its size."""
    net = nn.Linear(4, 4)

    def contrast(out: Tensor, y: Tensor) -> Tensor:
        scores = out @ out.T - 1e9 * torch.eye(len(out))
        return cross_entropy(scores, torch.arange(len(out)).view(-1, 2).flip(1).flatten())

    found = measured(net, [(torch.randn(8, 4), torch.zeros(8)) for _ in range(4)], contrast)
    assert found.noise.sampling == "in-batch"
    assert measured(net, [(torch.randn(8, 4),) * 2] * 4, mse_loss).noise.sampling == "independent"
