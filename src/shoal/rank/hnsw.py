"""Approximate top-k by inner product among millions of keys: an HNSW graph, scored again exactly.

A hierarchical navigable small world (Malkov and Yashunin, TPAMI 2020) links each key to some that
are near it. A query walks from neighbor to neighbor, remembers the `breadth` best keys that it met
(their ef), and has looked at some thousands when it can get no nearer. usearch builds and walks the
graph.

The graph links keys by their inner product, which is no distance where lengths differ: a long key
is near all of them. That is as it should be, since long keys are what queries look for (Morozov and
Babenko, "Non-metric similarity graphs", NeurIPS 2018); to make all lengths one by a further
coordinate, as is often advised, found half as much (docs/LOG.md).

It holds keys in half precision; what a walk has met is scored again by the keys themselves
in float32. Scores are therefore those of :func:`shoal.core.search.top_k`, and the only thing that
can go wrong is that a key is missed. The share that is found, the recall, is measured when the
graph is built, and `breadth` doubles until it is high enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core import checkpoint
from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import InputError, expect, fail
from shoal.core.search import expect_alike, expect_rows, top_k
from shoal.rank.ranking import member

if TYPE_CHECKING:
    from usearch.index import Index

_BREADTHS = (64, 128, 256, 512)
# The recall of the ten best at which the breadth stops doubling. Assumption: three labels in a
# hundred are worth the time that a walk twice as broad takes; not yet measured in P@1.
_ENOUGH, _BEST = 0.97, 10
# Fewer queries than these say little about the recall; more than the sample add nothing.
_FEWEST, _SAMPLE = 100, 500
# Rows that are copied into the graph, or queries that walk, at a time.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Hnsw:
    """Keys and the graph that finds them.

    Attributes:
        keys: the rows that are searched.
        graph: usearch's index of them.
        breadth: keys that a walk remembers, at least.
        recall: of the ten best keys, the share found in the mean over a sample of queries, [0, 1].

    Example:
        >>> index = Hnsw.build(torch.eye(8))
        >>> index.search(torch.eye(8)[5:6], 2)
        (tensor([[1., 0.]]), tensor([[5, 0]]))
        >>> index.recall
        1.0
    """

    keys: Float[Tensor, "m d"]
    graph: Index
    breadth: int
    recall: float

    @staticmethod
    def build(
        keys: Float[Tensor, "m d"], sample: Float[Tensor, "n d"] | None = None, seed: int = 0
    ) -> Hnsw:
        """Link the keys, and find the breadth.

        Half a millisecond of a core a key, with 100,000 of 128 numbers. With one thread the same
        graph comes of the same seed; several link in the order in which they get there.

        Args:
            keys: any number above zero; on a device they are copied to the host.
            sample: queries that the recall is measured on, of which 500 are taken; by default keys,
                each searched among the others.
            seed: of the order of insertion and of the sample.

        Raises:
            InputError: if usearch is not installed, or a row is not finite.
        """
        expect_rows("keys", keys)
        expect(len(keys) > 0, "keys", "at least one", 0, "pass some")
        generator = torch.Generator().manual_seed(seed)
        graph, longest = _empty(keys.shape[1]), _longest(keys)
        # like keys often stand together in the order of the data, and the first ones link badly
        for ids in torch.randperm(len(keys), generator=generator).split(_ROWS):
            rows = keys[ids.to(keys.device)].float() / longest  # in the range of half precision
            graph.add(ids.numpy(), rows.cpu().numpy(), threads=torch.get_num_threads())
        return Hnsw(keys, graph, _BREADTHS[0], 0.0)._tuned(sample, generator)

    def _tuned(self, sample: Float[Tensor, "n d"] | None, generator: torch.Generator) -> Hnsw:
        """The same index with the least breadth that finds enough."""
        source = self.keys if sample is None else sample
        some = torch.randperm(len(source), generator=generator)[:_SAMPLE]
        queries = source[some.to(source.device)]
        drop = None
        if sample is None:
            indptr = torch.arange(len(some) + 1)
            drop = Csr(indptr, some, len(self.keys)).to(self.keys.device)
        k = min(_BEST, len(self.keys))
        truth, index = top_k(queries, self.keys, k, drop)[1], self
        for breadth in _BREADTHS:
            found = replace(self, breadth=breadth).search(queries, k, drop)[1]
            index = replace(self, breadth=breadth, recall=recall(found, truth))
            if index.recall >= _ENOUGH:
                break
        return index

    def search(
        self, queries: Float[Tensor, "n d"], k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
        """Find k keys of large inner product with each query.

        The contract is that of :func:`shoal.core.search.top_k` but for keys that are missed: scores
        are exact, equal ones stand by rising id, and a walk remembers as many keys more as a query
        drops.

        Args:
            queries: on the device of the keys.
            k: at most the number of keys.
            drop: ``[n, m]``, pairs that may not be returned.

        Raises:
            InputError: if shapes or devices disagree, k exceeds m, or a query is not finite.
        """
        expect_rows("queries", queries)
        expect_alike(queries, self.keys, k, drop)
        scores = torch.empty(len(queries), k, device=self.keys.device)
        ids = torch.empty(len(queries), k, dtype=torch.int64, device=self.keys.device)
        every = torch.arange(len(queries), device=self.keys.device)
        for block in every.split(_ROWS) if len(queries) else ():
            pairs = None if drop is None else drop.rows(block)
            scores[block], ids[block] = self._found(queries[block].float(), k, pairs)
        return scores, ids

    def _found(
        self, queries: Float[Tensor, "b d"], k: int, drop: Csr | None
    ) -> tuple[Float[Tensor, "b {k}"], Int[Tensor, "b {k}"]]:
        most = 0 if drop is None or not drop.nnz else int(drop.degrees().max())
        # the last of as many keys as are remembered are found badly, so no fewer than 2 k are
        met = self._met(queries, min(len(self.keys), max(self.breadth, 2 * k) + most))
        scores = torch.empty(met.shape, device=self.keys.device)
        for query, some, out in zip(queries, met, scores, strict=True):
            torch.mv(self.keys[some.clamp(min=0)].float(), query, out=out)
        gone = met < 0
        if drop is not None:
            gone |= member(met, drop)
        best, at = scores.masked_fill_(gone, -torch.inf).sort(dim=1, descending=True, stable=True)
        best, ids = best[:, :k], met.gather(1, at[:, :k])
        return best, ids.masked_fill(best == -torch.inf, -1)

    def _met(self, queries: Float[Tensor, "b d"], count: int) -> Int[Tensor, "b c"]:
        """The best keys that each query meets, ids rising; -1 where it met fewer."""
        found = self.graph.search(queries.cpu().numpy(), count, threads=torch.get_num_threads())
        ids = torch.from_numpy(found.keys.astype(np.int64)).view(len(queries), -1)
        counts = torch.as_tensor(getattr(found, "counts", ids.shape[1])).view(-1, 1)
        missing = torch.arange(ids.shape[1]) >= counts
        return ids.masked_fill(missing, -1).sort(dim=1).values.to(self.keys.device)

    def save(self, path: str | Path) -> None:
        """Write the graph, all of it or nothing; the keys are not in it.

        Raises:
            InputError: if it cannot be written.
        """
        graph = torch.frombuffer(self.graph.save() or b"", dtype=torch.uint8)
        facts = {"keys": digest(self.keys), "breadth": self.breadth, "recall": self.recall}
        checkpoint.save(path, {"graph": graph, **facts})

    @staticmethod
    def load(path: str | Path, keys: Float[Tensor, "m d"]) -> Hnsw:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            keys: those that it was built for.

        Raises:
            InputError: if the file is missing or damaged, or was built for other keys, or usearch
                is not installed.
        """
        remedy = "delete the file and build the index again"
        try:
            state = checkpoint.load(path)
        except InputError as error:
            fail(str(path), "a whole index", error, remedy)
        same = state.get("keys") == digest(keys)
        expect(same, str(path), "an index of these keys", "one of others", remedy)
        graph = _empty(keys.shape[1])
        try:
            graph.load(state["graph"].numpy().data)
        except (RuntimeError, ValueError) as error:  # the bytes are whole: another usearch's
            fail(str(path), "a graph that this usearch reads", error, remedy)
        return Hnsw(keys, graph, state["breadth"], state["recall"])


class HnswSearch:
    """A :class:`shoal.core.search.Search` by graphs that a folder keeps.

    A file is named by the keys it was built for, so that those of another model never answer.

    Args:
        folder: made when it is needed.
        tell: is given the facts of an index that was built, or read for the first time.
    """

    def __init__(self, folder: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        self.folder = folder
        self.tell = tell
        self._open: list[Hnsw] = []

    def __call__(
        self,
        queries: Float[Tensor, "n d"],
        keys: Float[Tensor, "m d"],
        k: int,
        drop: Csr | None = None,
    ) -> tuple[Float[Tensor, "n {k}"], Int[Tensor, "n {k}"]]:
        """See :meth:`Hnsw.search`; the first call for some keys reads their graph or builds it.

        Raises:
            InputError: as :meth:`Hnsw.build`, :meth:`Hnsw.load` and :meth:`Hnsw.search` do.
        """
        return self._index(keys, queries).search(queries, k, drop)

    def _index(self, keys: Tensor, queries: Tensor) -> Hnsw:
        for index in self._open:
            if index.keys is keys:
                return index
        path = self.folder / f"{digest(keys)}.hnsw"
        if known := path.exists():
            index = Hnsw.load(path, keys)
        else:
            index = Hnsw.build(keys, queries if len(queries) >= _FEWEST else None)
            index.save(path)
        self._open.append(index)
        facts = {"keys": len(keys), "breadth": index.breadth, "recall": round(index.recall, 4)}
        self.tell({"index": str(path), "built": not known, **facts})
        return index


def recall(found: Int[Tensor, "n k"], truth: Int[Tensor, "n k"]) -> float:
    """The share of the true ids that was found.

    Example:
        >>> recall(torch.tensor([[3, 1], [4, -1]]), torch.tensor([[1, 3], [4, 7]]))
        0.75
    """
    hit = (truth.unsqueeze(2) == found.unsqueeze(1)).any(2)
    real = truth >= 0
    return (hit & real).sum().item() / max(int(real.sum()), 1)


def digest(keys: Float[Tensor, "m d"]) -> str:
    """Sixteen hexadecimal digits that other keys do not have."""
    whole = hashlib.sha256(f"{keys.dtype} {tuple(keys.shape)}".encode())
    whole.update(keys.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return whole.hexdigest()[:16]


def _empty(width: int) -> Index:
    """A graph without keys.

    16 links a key and a breadth of 128 while building are usearch's own defaults, named so that
    another version does not change them.

    Raises:
        InputError: if usearch is not installed.
    """
    library = require("usearch.index", "search", "ann")
    return library.Index(ndim=width, metric="ip", dtype="f16", connectivity=16, expansion_add=128)


def _longest(keys: Float[Tensor, "m d"]) -> float:
    """M, the largest length of a key; 1 where all are zero."""
    return max(float(part.float().norm(dim=1).max()) for part in keys.split(_ROWS)) or 1.0
