"""The transformer encoder: what plain transformers computes, whatever the batch and its padding."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal.core.block import Batch
from shoal.core.csr import Csr
from shoal.core.losses import decoupled_softmax
from shoal.core.objectives import Objective, in_batch
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
from shoal.text.pretrained import (
    TransformerVocabulary,
    add_lora,
    checkpoint_gradients,
    open_backbone,
    open_vocabulary,
)
from shoal.text.transformer import Pooling, TokenTransformer, TwoTransformers, padded
from shoal.training.gradients import Gradients, gradient_of, trained
from tests.tiny import save_tiny_bert

TEXTS = ["red cup", "w1 w2 w3 w4 w5 w6 w7", "", "old red hats", "w8", "w9 " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def backbone(folder: Path) -> Any:
    return open_backbone(str(folder))


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> TransformerVocabulary:
    return open_vocabulary(str(folder), max_length=20)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_plain_transformers(
    folder: Path, backbone: Any, vocabulary: TransformerVocabulary, pooling: Pooling
) -> None:
    """Tokenized, run and pooled by transformers' own means, every text has the same vector."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(2)
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = functional.normalize(mean if pooling == "mean" else states[:, 0], dim=1)
    encoder = TokenTransformer(backbone, pooling)
    got = encoder.embed(vocabulary.bags(TEXTS))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got @ got.T).fill_diagonal_(0).abs().max() < 0.999


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_weights_are_in_memory_of_their_own(tmp_path: Path) -> None:
    """No file stays mapped: whoever overwrites the folder changes no model that is open."""
    backbone = open_backbone(str(save_tiny_bert(tmp_path / "bert")))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert next(backbone.parameters()).isfinite().all()


def test_padding_changes_nothing(
    backbone: Any, vocabulary: TransformerVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text alone, among longer ones, and in pieces of any size: one vector."""
    encoder, tokens = TokenTransformer(backbone), vocabulary.bags(TEXTS)
    together = encoder.embed(tokens)
    alone = [encoder.embed(tokens.rows(torch.tensor([i]))) for i in range(len(TEXTS))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    for budget in (1, 16, 10**6):
        monkeypatch.setattr("shoal.text.transformer._PIECE", budget)
        monkeypatch.setattr("shoal.text.transformer._EMBEDDED", budget)
        torch.testing.assert_close(encoder.embed(tokens), together, rtol=0, atol=1e-5)


def test_a_row_without_tokens_is_finite(backbone: Any) -> None:
    """No token at all, as from a tokenizer without special ones: a unit vector, alone or not."""
    ids, mask = padded(Csr.from_lists([[], []], n_cols=9), padding=4)
    assert ids.tolist() == [[4], [4]] and bool(mask.all())
    encoder = TokenTransformer(backbone)
    vectors = encoder.embed(Csr.from_lists([[], [5, 6, 7]], n_cols=encoder.n_tokens))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_embedding_leaves_the_mode_and_the_random_state(
    backbone: Any, vocabulary: TransformerVocabulary
) -> None:
    """embed() draws no dropout in training mode and leaves the mode; no text, no row."""
    encoder, tokens = TokenTransformer(backbone), vocabulary.bags(TEXTS)
    encoder.train()
    before = torch.get_rng_state()
    first, second = encoder.embed(tokens), encoder.embed(tokens)
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
    assert encoder.training and encoder.backbone.encoder.layer[0].training
    assert not torch.equal(encoder.vectors(tokens), encoder.vectors(tokens))
    assert encoder.embed(vocabulary.bags([])).shape == (0, 32)


def a_batch(vocabulary: TransformerVocabulary, n: int = 6) -> Batch:
    """Examples 0 … n - 1 and their two labels each, of texts that differ in length."""
    documents = [" ".join(f"w{j}" for j in range(i, 2 * i + 1)) for i in range(n)]
    names = [f"w{i} red" for i in range(n)]
    tokens = vocabulary.bags(documents + names)
    labels = Csr.from_lists([[i, (i + 1) % n] for i in range(n)], n_cols=n)
    shortlist = ShortlistSampler(labels, positives=1)
    sampler = Chain(shortlist, Hop(tokens), partial(dst_then_src, offset=n))
    blocks = tuple(sampler(torch.arange(n), torch.Generator().manual_seed(0)))
    return Batch(torch.arange(n), blocks, torch.empty(len(blocks[0].src), 0))


def objective_of(model: torch.nn.Module) -> Objective:
    return Objective(model, in_batch(decoupled_softmax))


def test_a_block_gives_the_vectors_of_its_texts(
    backbone: Any, vocabulary: TransformerVocabulary
) -> None:
    """forward() on a hop over the tokens is embed() of the rows that it starts from."""
    batch, encoder = a_batch(vocabulary), TokenTransformer(backbone)
    encoder.eval()
    block = batch.blocks[0]
    rows = [block.src[part] for part in block.indices.split(block.indptr.diff().tolist())]
    tokens = Csr.from_lists([row.tolist() for row in rows], encoder.n_tokens)
    with torch.no_grad():
        got = encoder(batch.blocks, batch.src)
    torch.testing.assert_close(got, encoder.embed(tokens), rtol=0, atol=1e-6)
    assert [len(x) for x in rows[:6]] == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("chunk", [1, 4, 5])
@pytest.mark.parametrize("sides", ["shared", "separate"])
def test_cached_equals_uncached(
    backbone: Any, vocabulary: TransformerVocabulary, sides: str, chunk: int
) -> None:
    """In chunks, padded and pieced otherwise, a transformer has the same gradient to rounding."""
    model: torch.nn.Module = TokenTransformer(backbone)
    if sides == "separate":
        model = TwoTransformers(model, TokenTransformer(copy.deepcopy(backbone)), 6)  # pyright: ignore[reportArgumentType]
    batch, objective = a_batch(vocabulary), objective_of(model.eval())
    whole = gradient_of(objective, [batch], rows_train=False)
    cached = gradient_of(objective, [batch], rows_train=False, how=Gradients(chunk=chunk))
    assert cached.loss == pytest.approx(whole.loss, rel=1e-5)
    assert_close(cached.dense, whole.dense)


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """All gradients agree to rounding; all but those of rows never read and of keys are nonzero."""
    assert one.keys() == two.keys()
    zero = [name for name, grad in two.items() if grad.abs().max() == 0]
    assert len(zero) < len(two) / 4
    for name, grad in two.items():
        torch.testing.assert_close(one[name], grad, rtol=1e-4, atol=1e-6)


def test_two_encoders_each_read_their_side(
    folder: Path, backbone: Any, vocabulary: TransformerVocabulary
) -> None:
    """Documents have the vectors of one encoder, labels of the other; a side may be absent."""
    one = TokenTransformer(backbone)
    other = TokenTransformer(open_backbone(str(save_tiny_bert(folder / "other", seed=1))))
    model, batch = TwoTransformers(one, other, offset=6).eval(), a_batch(vocabulary)
    with torch.no_grad():
        both, first, second = (x(batch.blocks, batch.src) for x in (model, one, other))
        model.offset = 10**6
        alone = model(batch.blocks, batch.src)
    torch.testing.assert_close(both, torch.cat([first[:6], second[6:]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, first, rtol=0, atol=1e-5)
    assert (first - second).abs().max() > 0.1


def test_gradient_checkpointing_changes_memory_only(
    backbone: Any, vocabulary: TransformerVocabulary
) -> None:
    """The gradient, dropout replayed, is that without; so it is together with chunks."""
    plain, frugal = TokenTransformer(backbone), TokenTransformer(copy.deepcopy(backbone))
    checkpoint_gradients(frugal.backbone)
    grads = []
    for model, chunk in ((plain, None), (frugal, None), (plain, 4), (frugal, 4)):
        torch.manual_seed(3)
        batch, objective = a_batch(vocabulary), objective_of(model.train())
        grads.append(
            gradient_of(objective, [batch], rows_train=False, how=Gradients(chunk=chunk)).dense
        )
    assert_close(grads[1], grads[0])
    assert_close(grads[3], grads[2])


def test_the_pooler_does_not_learn(backbone: Any) -> None:
    """No vector is read from it, so it is frozen; all else is trained."""
    names = set(dict(backbone.named_parameters())) - set(trained(backbone))
    assert names == {"pooler.dense.weight", "pooler.dense.bias"}


def test_adapters_alone_learn(backbone: Any, vocabulary: TransformerVocabulary) -> None:
    """At first adapters change nothing; only they are trained, in every layer; rank 0 is none."""
    pytest.importorskip("peft", reason="adapters need the extra lora")
    encoder, tokens = TokenTransformer(backbone), vocabulary.bags(TEXTS)
    before = encoder.embed(tokens)
    add_lora(encoder.backbone, rank=2)
    torch.testing.assert_close(encoder.embed(tokens), before)
    names = trained(encoder)
    assert len(names) == 2 * 2 * 6 and all("lora" in name for name in names)
    batch, objective = a_batch(vocabulary), objective_of(encoder.train())
    gradient = gradient_of(objective, [batch], rows_train=False, how=Gradients(chunk=4))
    assert max(grad.abs().max() for grad in gradient.dense.values()) > 0
