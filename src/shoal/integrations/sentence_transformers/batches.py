"""Hard batches for sentence-transformers' trainer, through its ``batch_sampler`` argument.

:class:`NgameBatches` is a callable that the trainer asks for batch samplers: for the data set that
it was made of it gives one that clusters the anchors (NGAME, section 4.2: Dahiya et al., WSDM
2023), one row an anchor an epoch; for any other, such as the one for evaluation, it gives what the
trainer would have used. The model, which the trainer does not hand to samplers, comes by the
callback that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.sentence_transformers.pairs import anchors_of, ids_of, texts_of
from shoal.integrations.transformers import callback_of
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank

Embed = Callable[..., Tensor]
"""(model, texts) -> one row a text; one with parameters prompt and task is told the trainer's."""

_CLUSTER_SIZE = 64


def encode(
    model: Any,
    texts: list[str],
    batch_size: int = 256,
    dtype: torch.dtype | None = None,
    prompt: str | None = None,
    task: str | None = None,
) -> Float[Tensor, "n d"]:
    """Embed texts with a SentenceTransformer and leave its mode as it was.

    Args:
        model: a SentenceTransformer.
        texts: what to embed.
        batch_size: texts a forward pass.
        dtype: compute and keep rows in it (``torch.float16``, ``torch.bfloat16``); as the model
            does by default.
        prompt: what goes before each text; None for what the model itself has for the task.
        task: ``"query"`` or ``"document"``, or another route of the model; None for its default.
    """
    named = {"query": model.encode_query, "document": model.encode_document}
    embed = named.get(task or "", partial(model.encode, **({} if task is None else {"task": task})))
    mode, kind = model.training, model.device.type
    try:
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            rows = embed(
                texts,
                prompt=prompt,
                batch_size=batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
    finally:
        model.train(mode)
    return rows if dtype is None else rows.to(dtype)


class NgameBatches:
    """What ``batch_sampler`` of the training arguments takes, for one training set.

    Pickled, as the trainer does with its arguments, it leaves data, clusters and model behind.

    Args:
        dataset: the training set with ids, from
            :func:`~shoal.integrations.sentence_transformers.number_pairs`; the very object that the
            trainer gets.
        cluster_size: anchors a cluster, or a curriculum of (epoch, size) pairs; sizes must divide
            the batch size. None for the largest that does, up to 64, which was the best of ``shoal
            train`` on WordNet.
        embed: how to embed the anchors where clusters are due: a function of (model, texts), such
            as ``functools.partial(encode, dtype=torch.float16)``; or a bank that the loss fills,
            which costs no forward pass. If the function has parameters ``prompt`` and ``task``, it
            is told what the training arguments give anchors (``prompts``, ``router_mapping``).
        warm_epochs: epochs of random batches before the first clustering.
        refresh_every: epochs between two clusterings.
        otherwise: what gives batches of other data sets, such as the NgameBatches of another one;
            None for the trainer's default.

    Raises:
        InputError: if the data set has no ids or not those of a training set.
    """

    def __init__(
        self,
        dataset: Any,
        cluster_size: int | Sequence[tuple[int, int]] | None = None,
        embed: Embed | EmbeddingBank = encode,
        *,
        warm_epochs: int = 1,
        refresh_every: int = 1,
        otherwise: Callable[..., Any] | None = None,
    ) -> None:
        documents = ids_of(dataset)[:, 0]
        first = int(documents.min())  # above 0 where another data set was numbered before
        documents = documents - first
        n = int(documents.max()) + 1
        self.rows = Csr.from_coo(documents, torch.arange(len(dataset)), (n, len(dataset)))
        every = bool((self.rows.degrees() > 0).all())
        remedy = "pass what number_pairs returns, with all of its rows"
        expect(every, "dataset", "document ids without a gap", "a gap", remedy)
        if isinstance(embed, EmbeddingBank):
            remedy = "number it by itself, with a loss of its own"
            expect(
                first == 0,
                "embed",
                "a function for a data set that is not the first",
                "a bank",
                remedy,
            )
            expect(len(embed.rows) == n, "embed", f"a bank of {n} rows", len(embed.rows), "make it")
        self.dataset, self.cluster_size, self.embed = dataset, cluster_size, embed
        self.warm_epochs, self.refresh_every = warm_epochs, refresh_every
        self.otherwise = otherwise
        self.model: Any = None
        self.args: Any = None
        self.sampler: NgameBatchSampler | None = None

    def __call__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Any:
        """Give the trainer a batch sampler: ours for our data set, another for any other.

        Raises:
            InputError: if the batch size fits neither the data set nor the clusters.
        """
        if dataset is not self.dataset:
            others = _default if self.otherwise is None else self.otherwise
            return others(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        n, size = self.rows.n_rows, self.cluster_size
        if size is None:
            size = next(k for k in range(_CLUSTER_SIZE, 0, -1) if batch_size % k == 0)
        self.sampler = NgameBatchSampler(
            ClusterBatchSampler(n, batch_size, size, seed, drop_last),
            self.embed
            if isinstance(self.embed, EmbeddingBank)
            else partial(self._embed, self.embed),
            self.rows,
            warm_epochs=self.warm_epochs,
            refresh_every=self.refresh_every,
            name=f"ngame-{digest(self._anchors())}",
        )
        return self.sampler

    def callback(self) -> Any:
        """Make the ``TrainerCallback`` that brings the model, and keeps clusters in checkpoints.

        See :func:`shoal.integrations.transformers.refresh_callback`.
        """
        return callback_of(self._meet)

    def _meet(self, args: Any, model: Any) -> NgameBatchSampler:
        """Hold the trainer's arguments and model; give the sampler of its loader."""
        self.args, self.model = args, model
        if self.sampler is None:
            fail("train_dataset", "the data set of NgameBatches", "another", "pass the same object")
        return self.sampler

    def _anchors(self) -> list[str]:
        """The text of each anchor."""
        first = self.rows.indices[self.rows.indptr[:-1]]
        return texts_of(self.dataset, first.tolist())

    def _embed(self, embed: Embed) -> Tensor:
        if self.model is None:
            fail("callbacks", "that of NgameBatches", "none", "add batches.callback()")
        # the trainer's own prompts alone: it leaves the model's defaults out
        how = {
            "prompt": _of_anchors(getattr(self.args, "prompts", None), self.dataset) or "",
            "task": _of_anchors(getattr(self.args, "router_mapping", None), self.dataset),
        }
        takes = signature(embed).parameters
        told = {name: value for name, value in how.items() if name in takes}
        return embed(self.model, self._anchors(), **told)

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: the trainer pickles its arguments into every checkpoint."""
        kept = ("cluster_size", "warm_epochs", "refresh_every")
        return {name: getattr(self, name) for name in kept}


def _default(
    dataset: Any,
    batch_size: int,
    drop_last: bool,
    valid_label_columns: list[str] | None,
    generator: torch.Generator | None,
    seed: int,
) -> Any:
    """What the trainer would have used."""
    from sentence_transformers.base.sampler import DefaultBatchSampler  # pyright: ignore
    from torch.utils.data import RandomSampler

    order: Any = RandomSampler(dataset, generator=generator)
    return DefaultBatchSampler(order, batch_size, drop_last, valid_label_columns, generator, seed)


def _of_anchors(setting: Any, dataset: Any) -> str | None:
    """What an argument that the trainer resolves by data set and column says of anchors."""
    name = dataset[0].get("dataset_name")  # the trainer adds it where there are several
    if isinstance(setting, dict) and name in setting:
        setting = setting[name]
    if isinstance(setting, dict):
        setting = setting.get(anchors_of(dataset))
    return setting if isinstance(setting, str) else None


def digest(texts: list[str]) -> str:
    """A name for texts, in their order, of 16 letters.

    Example:
        >>> digest(["a", "b"]) == digest(["a", "b"]) != digest(["ab"])
        True
    """
    found = blake2b(digest_size=8)
    for text in texts:
        found.update(b"%d:" % len(text))
        found.update(text.encode("utf-8", "surrogatepass"))
    return found.hexdigest()
