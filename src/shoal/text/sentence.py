"""Encoders as folders that sentence-transformers and transformers open with their own loaders.

A bag is the mean of token vectors behind a tokenizer, scaled to length one: what
sentence-transformers calls a StaticEmbedding and a Normalize. All rows that a token adds up are
summed once and for all,

    vector(token) = Σ rows of its word and pieces + the row of (role, token)

and the mean has the direction of the sum. A word of which nothing is known is a token there, too,
with a vector of zeros: it makes the mean shorter and leaves its direction. So vectors are equal but
for rounding, for texts that play one role. That format reads one string, hence tells no title from
content: of a text that has both, it makes a neighbor of shoal's vector (:func:`mixed_vectors`).

A transformer is a Transformer, a Pooling and a Normalize, its folder one of transformers as well;
adapters of low rank are added to the weights that they adapt.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.core.sparse import matmul
from shoal.data.texts import Texts
from shoal.text.pretrained import TransformerVocabulary
from shoal.text.roles import RoleVocabulary
from shoal.text.transformer import TransformerEncoder
from shoal.text.vocabulary import Vocabulary

# Short names of modules: sentence-transformers 3.2 to 6.2 know them.
_MODULES = "sentence_transformers.models."


def token_vectors(
    vocabulary: Vocabulary | RoleVocabulary, rows: Float[Tensor, "r d"], role: int
) -> Float[Tensor, "v d"]:
    """The sum of all rows that each token adds to a text.

    Args:
        vocabulary: of v tokens, unknown ones among them; theirs is the zero vector.
        rows: of tokens, pieces and roles.
        role: that the texts play, a position in :data:`~shoal.text.roles.ROLES`; without rows for
            roles it says nothing.

    Example:
        >>> from shoal.text.vocabulary import learn
        >>> words = learn(["ab ab"], n_pieces=4)
        >>> vectors = token_vectors(words, torch.ones(len(words), 1), role=0)
        >>> {name: vectors[i].item() for name, i in words.tokenizer.get_vocab().items()}["ab"]
        3.0
    """
    with_roles = isinstance(vocabulary, RoleVocabulary)
    words = vocabulary.words if with_roles else vocabulary
    pieces = vocabulary.pieces_in(role) if with_roles else vocabulary.pieces
    with torch.no_grad():
        vectors = matmul(pieces, rows)
    if words.unknown is not None:
        vectors[words.unknown] = 0
    return vectors


def mixed_vectors(
    vocabulary: RoleVocabulary, rows: Float[Tensor, "r d"], documents: Texts
) -> Float[Tensor, "v d"]:
    """For a title and its content in one string: of all that a token may add, the mean.

    Each token's vectors in the roles of documents, weighed by how often it plays them
    (:meth:`~shoal.text.roles.RoleVocabulary.shares`): of all single vectors a token, the one
    whose squared distance from what the token really adds is least in the mean.

    Args:
        vocabulary: of v tokens.
        rows: of tokens, pieces and roles.
        documents: with titles and contents, to count on.
    """
    shares = vocabulary.shares(documents)
    parts = (token_vectors(vocabulary, rows, role) for role in range(len(shares)))
    weighed = [share[:, None] * part for share, part in zip(shares, parts, strict=True)]
    return torch.stack(weighed).sum(0)


def save_bag(folder: Path, words: Vocabulary, vectors: Float[Tensor, "v d"]) -> None:
    """Write a bag as a StaticEmbedding and a Normalize.

    Args:
        folder: to be made.
        words: whose tokenizer finds tokens.
        vectors: of the tokens, from :func:`token_vectors` or :func:`mixed_vectors`.

    Raises:
        OSError: if the folder cannot be written to; safetensors has an error of its own for it.
    """
    _save_modules(folder, {"StaticEmbedding": "", "Normalize": "1_Normalize"})
    (folder / "tokenizer.json").write_text(words.save(), encoding="utf-8")
    save_file({"embedding.weight": vectors.contiguous()}, folder / "model.safetensors")


def save_transformer(
    folder: Path, vocabulary: TransformerVocabulary, encoder: TransformerEncoder
) -> None:
    """Write a transformer as a Transformer, a Pooling and a Normalize.

    Raises:
        OSError: if the folder cannot be written to; safetensors has an error of its own for it.
    """
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    _save_modules(folder, modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": vocabulary.max_length})
    of_tokens = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    pooling = {name: kind == encoder.pooling for kind, name in of_tokens.items()}
    _write(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": encoder.dim} | pooling
    )
    without_adapters(encoder.backbone).save_pretrained(folder)
    vocabulary.save(folder)


def without_adapters(backbone: nn.Module) -> Any:
    """A backbone whose adapters are added to the weights that they adapt; itself if it has none."""
    adapted = [name for name, part in backbone.named_modules() if hasattr(part, "base_layer")]
    if not adapted:
        return backbone
    backbone = copy.deepcopy(backbone)
    for name in adapted:
        layer: Any = backbone.get_submodule(name)
        layer.merge()
        backbone.set_submodule(name, layer.base_layer)
    return backbone


def _save_modules(folder: Path, modules: dict[str, str]) -> None:
    """What sentence-transformers reads first: which modules there are, and in which folders."""
    for path in modules.values():
        (folder / path).mkdir(parents=True, exist_ok=True)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULES + name}
        for i, (name, path) in enumerate(modules.items())
    ]
    _write(folder / "modules.json", listed)
    _write(folder / modules["Normalize"] / "config.json", {})
    about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    _write(folder / "config_sentence_transformers.json", about)


def _write(path: Path, facts: Any) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
