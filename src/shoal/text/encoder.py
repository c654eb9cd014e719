"""What a text encoder is: a specification that begins, and the encoder that is trained and used.

A specification (:class:`~shoal.text.bag.BagEncoder`,
:class:`~shoal.text.transformer.TransformerEncoder`, or one of your own) is a frozen dataclass. From
training texts it makes a :class:`TextEncoder`, which brings the four things that the label job
asks for: token ids of texts, a module that the objective calls on a batch of them, rows or
parameters that are trained, and unit vectors for inference.

:func:`encoder_kind` registers the class that opens a saved encoder by its name, so that a folder
names a kind that this process already has and never code to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.kinds import Kind, register_kind
from shoal.data.texts import Texts
from shoal.text.vocabulary import Vocabulary


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to token ids to unit vectors, trained through :attr:`module`, :attr:`table` or both.

    One that reads features in place of texts also has ``columns``: how many an example has.

    Attributes:
        kind: the name under which its class is registered.
        dim: width of the vectors.
        n_tokens: token ids are below this.
        module: called with a batch's blocks and rows; makes one unit vector per `dst` of the first.
        table: rows that are trained, or None.
        optimizer: moves the module's parameters, or None where it has none.
    """

    kind: str

    @property
    def dim(self) -> int: ...  # noqa: D102

    @property
    def n_tokens(self) -> int: ...  # noqa: D102

    @property
    def module(self) -> nn.Module: ...  # noqa: D102

    @property
    def table(self) -> Any | None: ...  # noqa: D102

    @property
    def optimizer(self) -> torch.optim.Optimizer | None: ...  # noqa: D102

    def begin(
        self, documents: Texts, labels: Texts, *, seed: int, device: str, folder: Path | None
    ) -> tuple[TextEncoder, Csr]:
        """A copy to train further, and token ids: see :meth:`EncoderSpec.begin`."""
        ...

    @property
    def words(self) -> Vocabulary | None:
        """Words that lexical rankers match; None where its tokens are of another kind."""
        ...

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as documents: each a title, or a content."""
        ...

    def known(self, texts: Sequence[str]) -> Csr:
        """Known tokens of plain texts, special ones left out; a row without any says nothing."""
        ...

    def documents(self, texts: Texts) -> Csr:
        """Token ids of documents, one row each."""
        ...

    def labels(self, texts: Texts) -> Csr:
        """Token ids of labels, one row each."""
        ...

    def embed(self, tokens: Csr) -> Float[Tensor, "n d"]:
        """Unit vectors of documents, without a gradient."""
        ...

    def embed_labels(self, tokens: Csr) -> Float[Tensor, "l d"]:
        """Unit vectors of labels, without a gradient."""
        ...

    def without_fields(self, label_tokens: Csr) -> tuple[TextEncoder, Csr] | None:
        """The encoder without field embeddings, and label tokens for it; None without fields."""
        ...

    def load_trained(self, state: Mapping[str, Any]) -> TextEncoder:
        """The encoder with the weights of a checkpoint of :func:`shoal.fit`, ready to be used."""
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what inference needs into `folder`; return what :meth:`open` is called with."""
        ...

    @staticmethod
    def open(folder: Path, about: Mapping[str, Any], device: str) -> TextEncoder:
        """Read what :meth:`save` wrote."""
        ...

    def export(self, folder: Path, documents: Texts, labels: Texts) -> list[Exported]:
        """Write encoders that other libraries load; may do nothing.

        Args:
            folder: of the export.
            documents: texts of the kind that it was trained on.
            labels: all labels.
        """
        ...


class EncoderSpec(Protocol):
    """How to begin an encoder, and the numbers that it is best trained with.

    Attributes:
        batch_size: examples per batch where none is asked for.
        warmup: steps until the full learning rate.
    """

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def warmup(self) -> int: ...  # noqa: D102

    def begin(
        self, documents: Texts, labels: Texts, *, seed: int, device: str, folder: Path | None
    ) -> tuple[TextEncoder, Csr]:
        """Make the encoder as it is before training.

        Args:
            documents: training texts; test texts never.
            labels: all labels.
            seed: of everything random in it.
            device: where its module and its vectors live.
            folder: where token ids may be kept in files; None keeps them in memory.

        Returns:
            the encoder, and token ids of all documents, then of all labels, one row per text.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """An encoder that another library loads, and how near its vectors are to shoal's own.

    Attributes:
        folder: where it lies in the export.
        reads: what it takes a text for.
        sample: the texts on which it was measured; empty where it takes any text.
        mean: mean cosine between its vectors and shoal's for those texts.
        least: the least of them.
    """

    folder: str
    reads: str
    sample: str = ""
    mean: float = 1.0
    least: float = 1.0


KINDS: dict[str, type] = {}
"""Encoder classes by the name that a saved model records."""


def encoder_kind(name: str) -> Callable[[Kind], Kind]:
    """Register the class of encoders that saved models call `name`.

    Example:
        >>> @encoder_kind("constant")
        ... class Constant: ...
        >>> Constant.kind, KINDS.pop("constant") is Constant
        ('constant', True)
    """
    return register_kind(KINDS, name)


def open_encoder(folder: Path, about: Mapping[str, Any], device: str = "cpu") -> TextEncoder:
    """Open the encoder of a saved model.

    Args:
        folder: of the model.
        about: what its :meth:`TextEncoder.save` returned, and its ``kind``.
        device: where its vectors are computed.

    Raises:
        InputError: if no class of that kind is registered in this process.
    """
    kind = about.get("kind")
    known = isinstance(kind, str) and kind in KINDS
    remedy = "import the module that registers it with shoal.encoder_kind first"
    expect(known, str(folder), f"an encoder of kind {', '.join(sorted(KINDS))}", kind, remedy)
    opened: TextEncoder = KINDS[str(kind)].open(folder, about, device)
    return opened
