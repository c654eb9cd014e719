"""A tiny model and data for sentence-transformers' trainer; imported when a test asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="session")
def st() -> Any:
    """The package, in which no model hub is asked for anything."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("datasets", reason="needs the extra sentence-transformers")
    return pytest.importorskip(
        "sentence_transformers", reason="needs the extra sentence-transformers"
    )


@pytest.fixture
def static_model(st: Any) -> Callable[[], Any]:
    """Make a bag of 60 random token vectors, always the same."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    def make() -> Any:
        vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        vectors = torch.randn(61, 8, generator=torch.Generator().manual_seed(0))
        bag = StaticEmbedding(tokenizer, embedding_weights=vectors.numpy())
        return st.SentenceTransformer(modules=[bag], device="cpu")

    return make


@pytest.fixture
def transformer_model(st: Any, tmp_path: Path) -> Any:
    """One BERT layer of width 16 with random weights."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast  # pyright: ignore

    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return st.SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")


@pytest.fixture
def pairs(st: Any) -> Any:
    """48 anchors with one to three positives each: 96 rows."""
    from datasets import Dataset

    rows = [(i, j) for i in range(48) for j in range(1 + i % 3)]
    return Dataset.from_dict(
        {
            "anchor": [f"w{i} w{7 * i % 50}" for i, _ in rows],
            "positive": [f"w{(i + 5 * j) % 60} w{i // 4}" for i, j in rows],
        }
    )
