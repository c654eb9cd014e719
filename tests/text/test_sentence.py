"""Encoders as other libraries load them: same vectors, by the formula and by their loaders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from shoal.data.texts import Texts
from shoal.text.bag import Bag, embed
from shoal.text.fields import FieldVocabulary
from shoal.text.pretrained import add_lora, open_backbone, open_vocabulary
from shoal.text.sentence import mixed_vectors, save_bag, token_vectors
from shoal.text.transformer import Pooling, TokenTransformer, save_transformer, without_adapters
from shoal.text.vocabulary import Vocabulary, learn
from tests.tiny import save_tiny_bert

DOCUMENTS = Texts(list("abc"), ["red cup", "tea pot", "red hats"], ["holds tea", "for tea", ""])
LABELS = Texts(list("xy"), ["cups", "hat"], ["red thing", ""])
WORDS = learn(DOCUMENTS.all() * 2 + LABELS.all() * 2, n_pieces=30)
FIELDS = FieldVocabulary.of(WORDS, DOCUMENTS, LABELS, least=1)
# known words, pieces of unknown ones, nothing known, nothing at all, more of one than of another
TEXTS = ["red cup", "cuphat teared", "Ünknown ΩΩ red", "ΩΩ", "", "tea tea tea hat_red"]


def static_embedding(folder: Path, texts: list[str]) -> Tensor:
    """The formula of sentence-transformers' StaticEmbedding and Normalize, literally."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vectors = load_file(folder / "model.safetensors")["embedding.weight"]
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(vectors[ids].mean(0) if ids else torch.zeros(vectors.shape[1]))
    return functional.normalize(torch.stack(rows), dim=1)


def rows_of(vocabulary: Vocabulary | FieldVocabulary) -> Tensor:
    return torch.randn(len(vocabulary), 8, generator=torch.Generator().manual_seed(0))


def by_library(folder: Path, texts: list[str]) -> Tensor:
    """What sentence-transformers makes of the folder, where it is installed."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, convert_to_tensor=True)


def test_a_bag_is_a_static_embedding(tmp_path: Path) -> None:
    """Mean and sum have one direction, so the plain formula gives the bag's vectors."""
    save_bag(tmp_path, WORDS, token_vectors(WORDS, rows_of(WORDS), field=0))
    expected = embed(WORDS.bags(TEXTS), rows_of(WORDS))
    torch.testing.assert_close(static_embedding(tmp_path, TEXTS), expected, rtol=0, atol=1e-6)
    assert (expected[3:5] == 0).all() and (expected[:3].norm(dim=1) > 0.99).all()


@pytest.mark.parametrize("field", [0, 3])
def test_a_field_is_a_static_embedding(tmp_path: Path, field: int) -> None:
    """Titles of documents and of labels have the vectors of their field, and no other's."""
    save_bag(tmp_path, WORDS, token_vectors(FIELDS, rows_of(FIELDS), field))
    texts, encoder = Texts.of(TEXTS), Bag(FIELDS, rows_of(FIELDS))
    sides = [encoder.embed(FIELDS.documents(texts)), encoder.embed(FIELDS.labels(texts))]
    own, other = sides if field == 0 else reversed(sides)
    found = static_embedding(tmp_path, TEXTS)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-6)
    assert (found - other).abs().max() > 0.1


def test_mixed_vectors_are_nearest_in_the_mean() -> None:
    """Summed over a token's occurrences, no other single vector has a smaller squared distance.

    Counts of hundreds, so that the one occurrence that is counted besides does not show.
    """
    many = Texts(list("ab") * 200, ["red cup", "tea"] * 200, ["tea", "red red"] * 200)
    rows = rows_of(FIELDS)
    vectors = mixed_vectors(FIELDS, rows, many)
    fields = torch.stack([token_vectors(FIELDS, rows, field) for field in range(3)])
    red = WORDS.tokenizer.token_to_id("red")
    assert red is not None and not torch.equal(fields[0, red], fields[1, red])
    # a third of its occurrences are in titles, the others open contents
    expected = (fields[0, red] + 2 * fields[1, red]) / 3
    torch.testing.assert_close(vectors[red], expected, rtol=0.02, atol=0.02)


def test_sentence_transformers_loads_a_bag(tmp_path: Path) -> None:
    """Its own loader gives the vectors of the formula."""
    save_bag(tmp_path, WORDS, token_vectors(FIELDS, rows_of(FIELDS), field=3))
    found, expected = by_library(tmp_path, TEXTS), static_embedding(tmp_path, TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_both_libraries_load_a_transformer(tmp_path: Path, pooling: Pooling) -> None:
    """transformers reads the weights bit for bit; sentence-transformers makes the same vectors."""
    bert = save_tiny_bert(tmp_path / "bert")
    vocabulary = open_vocabulary(str(bert), max_length=6)
    encoder = TokenTransformer(open_backbone(str(bert)), pooling)
    out = tmp_path / "out"
    save_transformer(out, vocabulary, encoder)
    again = TokenTransformer(open_backbone(str(out)), pooling)
    assert open_vocabulary(str(out)).max_length == 6
    texts = ["w1 w2 w3 w4 w5 w6 w7", "red cups", ""]
    expected = encoder.embed(vocabulary.bags(texts))
    assert torch.equal(again.embed(open_vocabulary(str(out)).bags(texts)), expected)
    assert {path.suffix for path in out.rglob("*.*")} == {".json", ".safetensors"}
    # weights, too, are for others to read
    assert len({path.stat().st_mode for path in out.rglob("*") if path.is_file()}) == 1
    torch.testing.assert_close(by_library(out, texts), expected, rtol=0, atol=1e-5)


def test_adapters_are_added_to_their_weights(tmp_path: Path) -> None:
    """What is written needs no peft and answers alike; the model in memory keeps its adapters."""
    pytest.importorskip("peft", reason="adapters need the extra lora")
    bert = save_tiny_bert(tmp_path / "bert")
    vocabulary, backbone = open_vocabulary(str(bert)), open_backbone(str(bert))
    add_lora(backbone, rank=2)
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    encoder = TokenTransformer(backbone)
    save_transformer(tmp_path / "out", vocabulary, encoder)
    bags = vocabulary.bags(["w1 w2", "red"])
    again = TokenTransformer(open_backbone(str(tmp_path / "out")))
    torch.testing.assert_close(again.embed(bags), encoder.embed(bags), rtol=0, atol=1e-5)
    assert any("lora" in name for name in encoder.state_dict())
    assert without_adapters(again.backbone) is again.backbone


def test_names_are_those_of_every_release(tmp_path: Path) -> None:
    """Modules are named as sentence-transformers 3 names them, which 6 still knows."""
    save_bag(tmp_path, WORDS, token_vectors(WORDS, rows_of(WORDS), field=0))
    modules = json.loads((tmp_path / "modules.json").read_text())
    kinds = [module["type"].rpartition(".") for module in modules]
    assert [kind[2] for kind in kinds] == ["StaticEmbedding", "Normalize"]
    assert {kind[0] for kind in kinds} == {"sentence_transformers.models"}
