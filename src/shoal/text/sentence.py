"""Encoders as folders that sentence-transformers and transformers open with their own loaders.

A bag is the mean of token vectors behind a tokenizer, scaled to length one: what
sentence-transformers calls a StaticEmbedding and a Normalize. All rows that a token adds up are
summed once and for all,

    vector(token) = Σ rows of its word and pieces + the row of (field, token)

and the mean has the direction of the sum. A word of which nothing is known is a token there, too,
with a vector of zeros: it makes the mean shorter and leaves its direction. So vectors are equal but
for rounding, for texts of one field. That format reads one string, hence tells no title from
content: of a text that has both, it makes a neighbor of shoal's vector (:func:`mixed_vectors`).

A transformer is a Transformer, a Pooling and a Normalize, its folder one of transformers as well
(:func:`shoal.text.transformer.save_transformer`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from shoal.core.sparse import matmul
from shoal.data.texts import Texts
from shoal.text.fields import FieldVocabulary
from shoal.text.vocabulary import Vocabulary

# Short names of modules: sentence-transformers 3.2 to 6.2 know them.
_MODULES = "sentence_transformers.models."
# what an encoder reads that one string cannot express
LONG = "document title and content in one string"


def token_vectors(
    vocabulary: Vocabulary | FieldVocabulary, rows: Float[Tensor, "r d"], field: int
) -> Float[Tensor, "v d"]:
    """The sum of all rows that each token adds to a text.

    Args:
        vocabulary: of v tokens, unknown ones among them; theirs is the zero vector.
        rows: of tokens, pieces and fields.
        field: that the texts stand in, a position in :data:`~shoal.text.fields.FIELDS`; not read
            where the vocabulary has no fields.

    Example:
        >>> from shoal.text.vocabulary import learn
        >>> words = learn(["ab ab"], n_pieces=4)
        >>> vectors = token_vectors(words, torch.ones(len(words), 1), field=0)
        >>> {name: vectors[i].item() for name, i in words.tokenizer.get_vocab().items()}["ab"]
        3.0
    """
    words = vocabulary.words
    with torch.no_grad():
        vectors = matmul(vocabulary.pieces_in(field), rows)
    if words.unknown is not None:
        vectors[words.unknown] = 0
    return vectors


def mixed_vectors(
    vocabulary: FieldVocabulary, rows: Float[Tensor, "r d"], documents: Texts
) -> Float[Tensor, "v d"]:
    """For a title and its content in one string: of all that a token may add, the mean.

    Each token's vectors in the fields of documents, weighed by how often it stands in them
    (:meth:`~shoal.text.fields.FieldVocabulary.shares`): of all single vectors a token, the one
    whose squared distance from what the token really adds is least in the mean.

    Args:
        vocabulary: of v tokens.
        rows: of tokens, pieces and fields.
        documents: with titles and contents, to count on.
    """
    shares = vocabulary.shares(documents)
    parts = (token_vectors(vocabulary, rows, field) for field in range(len(shares)))
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
    save_modules(folder, {"StaticEmbedding": "", "Normalize": "1_Normalize"})
    (folder / "tokenizer.json").write_text(words.tokenizer.to_str(), encoding="utf-8")
    save_file({"embedding.weight": vectors.contiguous()}, folder / "model.safetensors")


def save_modules(folder: Path, modules: dict[str, str]) -> None:
    """What sentence-transformers reads first: which modules there are, and in which folders."""
    for path in modules.values():
        (folder / path).mkdir(parents=True, exist_ok=True)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": _MODULES + name}
        for i, (name, path) in enumerate(modules.items())
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / modules["Normalize"] / "config.json", {})
    about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    write_json(folder / "config_sentence_transformers.json", about)


def write_json(path: Path, facts: Any) -> None:
    """Write `facts` as indented JSON."""
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
