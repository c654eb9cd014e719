"""Inside sentence-transformers' own trainer: its batches, its resume, its evaluation."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from shoal.core import metrics
from shoal.core.errors import InputError
from shoal.integrations.sentence_transformers import (
    HardestTripletsLoss,
    MaskedSoftmaxLoss,
    NgameBatches,
    cached,
    encode,
    number_pairs,
    xc_evaluator,
)
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
    pytest.mark.usefixtures("st"),
]


class Watched(MaskedSoftmaxLoss):
    """Writes down the documents of every training batch."""

    seen: list[list[int]]

    def forward(self, sentence_features: Any, labels: Any) -> Any:
        if torch.is_grad_enabled():
            self.seen.append(labels[:, 0].tolist())
        return super().forward(sentence_features, labels)


@pytest.fixture
def train(static_model: Callable[[], Any], pairs: Any, tmp_path: Path) -> Callable[..., Any]:
    """Train the bag on 48 documents in batches of 16: three steps an epoch."""
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    def run(banked=False, resume: str | None = None, embed=encode, **options: Any) -> Any:
        (data, held), known = number_pairs(pairs, pairs.select(range(30)))
        model, bank = static_model(), EmbeddingBank(48, 8) if banked else None
        batches = NgameBatches(data, 4, embed if bank is None else bank)
        loss = Watched(model, known, bank=bank)
        loss.seen = []
        callbacks = options.pop("callbacks", [batches.callback()])
        options = {"output_dir": str(tmp_path / "out"), "num_train_epochs": 3} | options
        args = SentenceTransformerTrainingArguments(
            per_device_train_batch_size=16,
            per_device_eval_batch_size=7,
            learning_rate=0.1,
            batch_sampler=options.pop("batch_sampler", batches),
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **options,
        )
        trainer = SentenceTransformerTrainer(model, args, data, held, loss, callbacks=callbacks)
        if resume is not None or options["num_train_epochs"]:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def test_pairs_are_numbered_by_text(pairs: Any) -> None:
    """Equal texts are one; labels are shared by data sets, documents and known pairs are not."""
    (data, held), known = number_pairs(pairs, pairs.select(range(5)))
    ids, other = torch.tensor(data["label"][:]), torch.tensor(held["label"][:])
    assert known.shape == (48 + 3, len(set(pairs["positive"])))
    assert bool(known.find(ids[:, 0], ids[:, 1])[0].all()) and known.nnz == len(data) + 5
    assert len({*zip(ids[:, 0].tolist(), pairs["anchor"], strict=True)}) == 48
    assert torch.equal(other[:, 1], ids[:5, 1]) and other[:, 0].tolist() == [48, 49, 49, 50, 50]


@pytest.mark.slow
@pytest.mark.parametrize("banked", [False, True])
def test_resumed_training_sees_the_same_batches(
    train: Callable[..., Any], banked: bool, tmp_path: Path
) -> None:
    """Stopped inside the clustered epoch 1, it goes on to the same batches and weights."""
    whole = train(banked, save_steps=4)
    assert len(whole.loss.seen) == 9 and whole.state.epoch == 3
    resumed = train(banked, resume=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.loss.seen == whole.loss.seen[4:]
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_trainer_batches_are_shoals_own(train: Callable[..., Any]) -> None:
    """Every anchor once an epoch, grouped as ClusterBatchSampler groups the model's embeddings."""
    rows: list[Any] = []

    def remember(model: Any, texts: list[str]) -> Any:
        assert texts == [f"w{i} w{7 * i % 50}" for i in range(48)]
        rows.append(encode(model, texts))
        return rows[-1]

    seen = train(embed=remember).loss.seen
    own = ClusterBatchSampler(48, 16, 4, seed=42)  # the trainer's default seed
    for epoch in range(3):
        own.set_epoch(epoch)
        if epoch:
            own.refresh(rows[epoch - 1])
        assert [seeds.tolist() for seeds in own] == seen[3 * epoch : 3 * epoch + 3]
    assert len(rows) == 2 and not torch.equal(*rows)


def test_evaluation_is_untouched(train: Callable[..., Any]) -> None:
    """The evaluation loader has the batches of a trainer that was never told of us."""
    ours = train(num_train_epochs=0).get_eval_dataloader()
    plain = train(num_train_epochs=0, batch_sampler="batch_sampler").get_eval_dataloader()
    batches = [[batch["label"].tolist() for batch in loader] for loader in (ours, plain)]
    assert batches[0] == batches[1] and len(batches[0]) == 5


def test_a_forgotten_callback_is_named(train: Callable[..., Any]) -> None:
    """Without the callback there is no model to cluster by: an error, not random batches."""
    with pytest.raises(InputError, match=r"callbacks: expected that of NgameBatches"):
        train(callbacks=[])


def test_another_training_set_is_named(train: Callable[..., Any], pairs: Any) -> None:
    """Bound to one data set and given another, training refuses instead of going on unclustered."""
    (data,), _ = number_pairs(pairs)
    with pytest.raises(InputError, match=r"train_dataset: expected the data set of NgameBatches"):
        train(callbacks=[NgameBatches(data).callback()])


def test_arguments_leave_the_data_behind(pairs: Any) -> None:
    """Pickled into training_args.bin, it is settings only."""
    (data,), _ = number_pairs(pairs)
    batches = pickle.loads(pickle.dumps(NgameBatches(data, 8, refresh_every=3)))
    assert vars(batches) == {"cluster_size": 8, "warm_epochs": 1, "refresh_every": 3}


def test_encode_changes_nothing_but_the_type(static_model: Callable[[], Any]) -> None:
    """Training mode stays; half precision is the same direction to a thousandth."""
    model = static_model().train()
    rows, half = encode(model, ["w1 w2", "w3"]), encode(model, ["w1 w2", "w3"], dtype=torch.float16)
    assert model.training and half.dtype == torch.float16
    torch.testing.assert_close(half.float(), rows, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("make", [MaskedSoftmaxLoss, partial(HardestTripletsLoss, k=3)])
@pytest.mark.parametrize("size", [4, 5])
def test_cached_equals_uncached(transformer_model: Any, pairs: Any, make: Any, size: int) -> None:
    """Mini-batches bound memory only: same loss, same gradient, whether or not they divide it."""
    (data,), known = number_pairs(pairs.select(range(12)))
    ids = torch.tensor(data["label"][:])
    plain = make(transformer_model.eval(), known)  # no dropout: chunks draw other masks

    def columns() -> list[Any]:
        return [transformer_model.preprocess(data[name][:]) for name in ("anchor", "positive")]

    results = []
    for loss in (plain, cached(plain, size)):
        transformer_model.zero_grad()
        value = loss(columns(), ids)
        value.backward()
        grads = [p.grad.clone() for p in transformer_model.parameters() if p.grad is not None]
        results.append((value.item(), torch.cat([g.flatten() for g in grads])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    assert results[0][1].abs().sum() > 0.1


def test_a_bag_cannot_be_cached(static_model: Callable[[], Any], pairs: Any) -> None:
    """Its inputs are one flat list of tokens, which cannot be cut into rows."""
    _, known = number_pairs(pairs)
    with pytest.raises(InputError, match=r"loss: expected a transformer model"):
        cached(MaskedSoftmaxLoss(static_model(), known))


@pytest.mark.parametrize("name", ["", "held"])
def test_the_evaluator_reports_shoals_metrics(
    static_model: Callable[[], Any], pairs: Any, name: str
) -> None:
    """Equal to shoal.core.metrics on all cosines, dropped pairs out; the primary metric is P@1."""
    from shoal.core.csr import Csr

    (data,), truth = number_pairs(pairs)
    model = static_model()
    documents = list(dict.fromkeys(pairs["anchor"]))
    labels = list(dict.fromkeys(pairs["positive"]))
    drop = Csr.from_coo(torch.arange(48), torch.arange(48) % truth.n_cols, truth.shape)
    inverse = metrics.inverse_propensity(truth)
    evaluator = xc_evaluator(documents, labels, truth, inverse, drop, ks=(1, 5), name=name)
    found = evaluator(model)
    rows, keys = (normalize(encode(model, texts)) for texts in (documents, labels))
    scores = (rows @ keys.T).masked_fill(drop.to_dense().bool(), -torch.inf)
    want = metrics.evaluate(scores.topk(5).indices, truth, inverse, (1, 5))
    prefix = f"{name}_" if name else ""
    assert found == pytest.approx({prefix + key: value for key, value in want.items()})
    assert evaluator.primary_metric == prefix + "P@1" and 0 < found[prefix + "P@5"] < 100
    bare = xc_evaluator(documents, labels, truth, ks=(1,))(model)
    assert set(bare) == {"P@1", "nDCG@1", "R@1"} and len(data) == 96
