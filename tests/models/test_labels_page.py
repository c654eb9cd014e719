"""The page of the label task: batches, shortlists, losses, classifiers, and what is held out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import shoal
from shoal.core.csr import Csr
from shoal.core.losses import lowest_triplets
from shoal.data.texts import Examples, LabelData, Texts
from shoal.rank.classifiers import AllLabels
from shoal.tasks.labels import Parts, build
from tests.planted import planted_labels

DATA = planted_labels(n=240, n_labels=32, noise=0.3)
SPEC = shoal.BagEncoder(dim=32, lr=0.02)


def begun(**options: Any) -> tuple[Any, Csr, shoal.Job]:
    """An encoder, token ids and the job that trains it, on small batches of small clusters."""
    parts = Parts(**{"encoder": SPEC, "batches": shoal.Clustered(24, 6)} | options)
    encoder, tokens = SPEC.begin(DATA.train.texts, DATA.labels, seed=0, device="cpu", folder=None)
    return encoder, tokens, build(parts, encoder, tokens, DATA.train.labels)


def test_batches_are_whole_clusters_of_the_rows_as_they_are() -> None:
    """After the warm-up each epoch's clusters are those of the table's rows at its beginning."""
    encoder, tokens, job = begun()
    shoal.fit(job, shoal.Budget(epochs=1))
    sampler: Any = job.loader.batch_sampler
    assert sampler.size == 1 and job.refresh is not None
    told = {"batch_size": 24, "cluster_size": 6, "clusters": 40, "refreshed": True}
    assert job.refresh(1) == told and sampler.size == 6
    examples = encoder.embed(tokens.span(0, 240))
    own = examples[sampler.order.long()].view(40, 6, -1)
    inside = (own @ own.transpose(1, 2)).mean()
    assert inside > 2 * (examples @ examples.T).mean()


def test_losses_and_positives_are_those_asked_for() -> None:
    """Losses differ; fewer positives make a shorter shortlist."""
    lengths, losses = [], []
    hot = partial(shoal.decoupled_softmax, temperature=0.2)
    for options in ({"positives": 1}, {}, {"loss": shoal.hardest_triplets}, {"loss": hot}):
        _, _, job = begun(**options)
        batch = next(iter(job.loader))
        lengths.append(len(batch.blocks[-1].src))
        losses.append(float(job.objective({}, batch)))
    assert lengths[0] < lengths[1] and lengths[1] == lengths[2] == lengths[3]
    assert len(set(losses)) == 4 and torch.tensor(losses).isfinite().all()


def test_a_batch_without_labels_moves_nothing() -> None:
    """Examples that have no label have nothing to learn from, and break nothing."""
    model = shoal.LabelModel(encoder=SPEC, batches=shoal.Random(2), device="cpu")
    model.fit(["red", "blue", "tea", "cup"] * 2, [["a"], [], [], []] * 2, valid=0, epochs=4)
    assert len(model.predict("red")) == 1


@pytest.mark.usefixtures("unchecked")
def test_where_nothing_is_left_to_validate_on_there_is_no_validation() -> None:
    """Every held-out pair is known from its reverse: each example is the other's label."""
    texts = Texts(["a", "b"], ["red cup", "blue cup"], ["", ""])
    examples = Examples.of(texts, Csr.from_lists([[1], [0]], n_cols=2))
    model = shoal.LabelModel(encoder=SPEC, device="cpu")
    data = LabelData("twins", examples, examples, texts)
    result = model.fit(data, valid=0.5, steps=1)
    assert result.valid == {} and result.test


def trained_classifiers(**options: Any) -> tuple[Tensor, Tensor]:
    """Label embeddings of the untrained bag, and classifiers that began as these."""
    encoder, tokens, _ = begun()
    x, labels = encoder.embed(tokens.span(0, 240)), encoder.embed(tokens.span(240, 272))
    made = shoal.Classifiers(**{"epochs": 1, "lr": 0.02} | options)
    batches = shoal.Clustered(24, 6)
    weights, _ = made.fit(x, labels, DATA.train.labels, batches)
    return labels, weights


@pytest.mark.parametrize("texts", [True, False])
def test_label_texts_are_examples_of_these_labels(texts: bool) -> None:
    """Behind the 240 examples stand 32 more, each of its own label alone; or none."""
    seen: list[Csr] = []

    def shortlist(truth: Csr) -> AllLabels:
        seen.append(truth)
        return AllLabels(truth)

    trained_classifiers(label_texts=texts, shortlist=shortlist)
    (truth,) = seen
    assert truth.n_rows == 240 + 32 * texts
    assert torch.equal(truth.rows(torch.arange(240)).to_dense(), DATA.train.labels.to_dense())
    if texts:
        assert torch.equal(truth.rows(torch.arange(240, 272)).to_dense(), torch.eye(32))


@pytest.mark.parametrize("loss", ["decoupled", "softmax", "binary", lowest_triplets])
def test_classifiers_learn_by_every_loss(loss: Any) -> None:
    """From label embeddings they move; those of cosines are unit vectors, others grow lengths."""
    labels, weights = trained_classifiers(loss=loss)
    assert weights.shape == labels.shape and bool(weights.isfinite().all())
    assert (weights - labels).norm(dim=1).mean() > 0.01
    lengths = weights.norm(dim=1)
    if callable(loss):
        torch.testing.assert_close(lengths, torch.ones(32))
    else:
        assert float((lengths - 1).abs().max()) > 1e-3


def test_all_positives_of_a_batch_are_its_labels() -> None:
    """By default the stage scores the union of its examples' labels, each known positive marked."""
    seeds = torch.tensor([3, 5])
    sampler = shoal.Classifiers().shortlist(DATA.train.labels)
    (block,) = sampler(seeds, torch.Generator().manual_seed(0))
    (every,) = AllLabels(DATA.train.labels)(seeds, torch.Generator())
    union = every.mask().any(0).nonzero().flatten()
    assert sorted(block.src.tolist()) == union.tolist()
    assert torch.equal(block.mask(), every.mask()[:, block.src])
