"""Compressed sparse rows: one noun for label matrices, graphs and ragged texts.

Row i of a :class:`Csr` is ``indices[indptr[i]:indptr[i + 1]]``: the labels of an example, the
neighbors of a node, the tokens of a document. Rows may be empty, unsorted, and may hold the same
column more than once (a multigraph; a word that occurs twice); :meth:`Csr.coalesce` sorts them and
sums what is double. An entry's *position* in ``indices`` is its edge id, so weights, relevances and
edge features find their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from shoal.core.errors import expect, expect_folder, expect_ids, fail, naming
from shoal.core.mapped import map_rows
from shoal.core.state import count, integers, numbers

_INDEX = (torch.int32, torch.int64)
_FORMAT = "shoal.csr/1"


@dataclass(frozen=True, eq=False)
class Csr:
    """A sparse matrix ``[n_rows, n_cols]`` by rows.

    Attributes:
        indptr: int64 ``[n_rows + 1]``, from 0 to ``nnz``, never falling.
        indices: int32 or int64 ``[nnz]``, each in ``[0, n_cols)``.
        n_cols: how many columns there are.
        values: one number per entry, or None where every entry counts one.

    Example:
        >>> labels = Csr.from_lists([[0, 2], [], [1]], n_cols=3)
        >>> labels.shape, labels.nnz
        ((3, 3), 3)
        >>> ids, offsets = labels.take(torch.tensor([2, 0]))
        >>> ids.tolist(), offsets.tolist()
        ([1, 0, 2], [0, 1, 3])
    """

    indptr: Int[Tensor, " n_plus_1"]
    indices: Int[Tensor, " e"]
    n_cols: int
    values: Shaped[Tensor, " e"] | None = None

    def __post_init__(self) -> None:
        """Check shapes and types; entries are checked by :meth:`validate`.

        Raises:
            InputError: if a shape or type cannot be that of a Csr.
        """
        ptr, idx = self.indptr, self.indices
        good = ptr.dim() == 1 and ptr.dtype == torch.int64 and ptr.numel() >= 1
        kind = f"{ptr.dtype} {tuple(ptr.shape)}"
        expect(good, "indptr", "int64 [n_rows + 1]", kind, "convert it with .long()")
        good = idx.dim() == 1 and idx.dtype in _INDEX
        kind = f"{idx.dtype} {tuple(idx.shape)}"
        expect(good, "indices", "int32 or int64 [nnz]", kind, "convert it with .long()")
        if self.values is not None:
            good = self.values.shape == idx.shape
            expect(
                good, "values", f"one per entry, [{self.nnz}]", tuple(self.values.shape), "align"
            )

    def __repr__(self) -> str:
        """Name the shape, not the numbers."""
        values = "" if self.values is None else f", values={self.values.dtype}"
        return f"Csr({self.n_rows} x {self.n_cols}, nnz={self.nnz}, {self.indices.dtype}{values})"

    # -- constructors ------------------------------------------------------------------------

    @staticmethod
    def from_coo(
        row: Int[Tensor, " e"],
        col: Int[Tensor, " e"],
        shape: tuple[int, int],
        values: Shaped[Tensor, " e"] | None = None,
    ) -> Csr:
        """Build from one (row, column) pair an entry, in any order.

        Entries keep the order that they come in within their row, and doubles are kept: call
        :meth:`coalesce` to sort and sum them.

        Raises:
            InputError: if an id is out of range or lengths differ.
        """
        expect_ids("row", row, shape[0])
        expect_ids("col", col, shape[1])
        same = row.shape == col.shape
        expect(same, "col", f"as many as rows, {len(row)}", len(col), "pass one pair an entry")
        order = torch.argsort(row, stable=True)
        indptr = offsets_of(torch.bincount(row, minlength=shape[0]))
        return Csr(indptr, col[order], shape[1], None if values is None else values[order])

    @staticmethod
    def from_lists(rows: Sequence[Sequence[int]], n_cols: int) -> Csr:
        """Build from a list of column ids a row.

        Raises:
            InputError: if a column id is out of range.
        """
        lengths = torch.tensor([len(r) for r in rows], dtype=torch.int64)
        flat = torch.tensor([c for r in rows for c in r], dtype=torch.int64)
        expect_ids("rows", flat, n_cols)
        return Csr(offsets_of(lengths), flat, n_cols)

    @staticmethod
    def from_dense(matrix: Shaped[Tensor, "n m"]) -> Csr:
        """Build from the non-zero entries of a matrix; boolean matrices carry no values."""
        row, col = matrix.nonzero(as_tuple=True)
        values = None if matrix.dtype == torch.bool else matrix[row, col]
        n, m = matrix.shape
        return Csr.from_coo(row, col, (n, m), values)

    @staticmethod
    def from_scipy(matrix: Any) -> Csr:
        """Build from any scipy sparse matrix; its explicit zeros and doubles are kept."""
        csr = matrix.tocsr()
        return Csr(
            torch.from_numpy(csr.indptr.astype(np.int64)),
            torch.from_numpy(np.array(csr.indices)),
            csr.shape[1],
            torch.from_numpy(np.array(csr.data)),
        ).validate()

    @staticmethod
    def from_edge_index(edge_index: Int[Tensor, "2 e"], n: int) -> Csr:
        """Build the in-neighbor lists of a graph from PyG's ``edge_index``.

        PyG stores (source, target) and passes messages from source to target, so row v holds the
        sources u of all edges (u, v).

        Raises:
            InputError: if a node id is out of range.
        """
        return Csr.from_coo(edge_index[1], edge_index[0], (n, n))

    def validate(self) -> Csr:
        """Return self after looking at every entry.

        Raises:
            InputError: if indptr falls or does not end at nnz, or a column is out of range.
        """
        expect(self.n_cols >= 0, "n_cols", "a number of columns", self.n_cols, "check its writer")
        ends = int(self.indptr[0]) == 0 and int(self.indptr[-1]) == self.nnz
        got = f"{int(self.indptr[0])} … {int(self.indptr[-1])}"
        expect(ends, "indptr", f"0 … {self.nnz}", got, "check that the file is whole")
        falls = bool((self.indptr.diff() < 0).any())
        expect(not falls, "indptr", "a sequence that never falls", "a fall", "check its writer")
        expect_ids("indices", self.indices, self.n_cols)
        return self

    # -- shape -------------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self.indptr.numel() - 1

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return self.indices.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_cols)."""
        return self.n_rows, self.n_cols

    @property
    def device(self) -> torch.device:
        """Where the entries live."""
        return self.indices.device

    def degrees(self) -> Int[Tensor, " n"]:
        """Entries a row."""
        return self.indptr.diff()

    def row_ids(self) -> Int[Tensor, " e"]:
        """The row of every entry."""
        return torch.repeat_interleave(self.degrees(), output_size=self.nnz)

    # -- reading -----------------------------------------------------------------------------

    def spans(self, ids: Int[Tensor, " b"]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Where the entries of rows `ids` begin in ``indices``, and how many each row has."""
        start = self.indptr.index_select(0, ids)
        return start, self.indptr.index_select(0, ids + 1) - start

    def edges(self, ids: Int[Tensor, " b"]) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
        """Return the positions of the entries of rows `ids`, and where each row's begin.

        Returns:
            positions ``[e]`` in ``indices``, row after row, and offsets ``[b + 1]`` into them.
        """
        start, lengths = self.spans(ids)
        offsets = offsets_of(lengths)
        return positions_of(start, offsets), offsets

    def take(self, ids: Int[Tensor, " b"]) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
        """Gather ragged rows: their columns one after the other, and offsets ``[b + 1]``."""
        positions, offsets = self.edges(ids)
        return self.indices[positions], offsets

    def rows(self, ids: Int[Tensor, " b"]) -> Csr:
        """The matrix of rows `ids`, in that order; repeats allowed.

        Raises:
            InputError: if an id is out of range.
        """
        expect_ids("ids", ids, self.n_rows)
        positions, offsets = self.edges(ids)
        values = None if self.values is None else self.values[positions]
        return Csr(offsets, self.indices[positions], self.n_cols, values)

    def span(self, start: int, stop: int) -> Csr:
        """Rows `start` to `stop` in the same memory, so that what is mapped stays so.

        Example:
            >>> Csr.from_lists([[0], [1, 2], [2]], n_cols=3).span(1, 3).to_dense().tolist()
            [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
        """
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        values = None if self.values is None else self.values[first:last]
        indptr = self.indptr[start : stop + 1] - first
        return Csr(indptr, self.indices[first:last], self.n_cols, values)

    def find(
        self, row: Int[Tensor, " e"], col: Int[Tensor, " e"]
    ) -> tuple[Bool[Tensor, " e"], Int[Tensor, " e"]]:
        """Look up entries (row, col) in a matrix whose rows are sorted.

        Returns:
            whether each pair is an entry, and its position (meaningless where it is not).
        """
        key = row.long() * self.n_cols + col.long()
        keys = self.row_ids() * self.n_cols + self.indices
        at = torch.searchsorted(keys, key).clamp_(max=max(self.nnz - 1, 0))
        if self.nnz == 0:
            return torch.zeros_like(key, dtype=torch.bool), at
        return keys[at] == key, at

    # -- reshaping ---------------------------------------------------------------------------

    def transpose(self) -> Csr:
        """Columns as rows: from labels of examples to examples of labels; rows come sorted."""
        order = torch.argsort(_narrow(self.indices, self.n_cols), stable=True)
        indptr = offsets_of(torch.bincount(self.indices, minlength=self.n_cols))
        rows = self.row_ids().index_select(0, order).to(self.indices.dtype)
        return Csr(indptr, rows, self.n_rows, None if self.values is None else self.values[order])

    def both_ways(self) -> Csr:
        """A graph's edges and their reverses, each once, without values.

        Example:
            >>> Csr.from_lists([[1], [0, 2], []], n_cols=3).both_ways().to_dense().tolist()
            [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
        """
        row, col = self.row_ids(), self.indices.long()
        shape = self.n_rows, self.n_cols
        return Csr.from_coo(torch.cat([row, col]), torch.cat([col, row]), shape).coalesce()

    def one_way(self) -> int:
        """How many of a graph's edges have no reverse.

        Example:
            >>> Csr.from_lists([[1], [0, 2], []], n_cols=3).one_way()
            1
        """
        pairs = self.coalesce()  # sorted, as find wants them
        return int((~pairs.find(pairs.indices, pairs.row_ids())[0]).sum())

    def coalesce(self) -> Csr:
        """Sort each row by column and sum doubles (without values: keep one)."""
        key, inverse = torch.unique(
            self.row_ids() * self.n_cols + self.indices, sorted=True, return_inverse=True
        )
        rows = torch.div(key, max(self.n_cols, 1), rounding_mode="floor")
        values = self.values
        if values is not None:
            summed = torch.zeros(len(key), dtype=values.dtype, device=values.device)
            values = summed.index_add_(0, inverse, values)
        columns = (key - rows * self.n_cols).to(self.indices.dtype)
        return Csr(
            offsets_of(torch.bincount(rows, minlength=self.n_rows)), columns, self.n_cols, values
        )

    def stack(self, below: Csr) -> Csr:
        """Put the rows of `below` under these; both need the same columns.

        Raises:
            InputError: if columns differ, or only one of the two has values.
        """
        same = self.n_cols == below.n_cols and (self.values is None) == (below.values is None)
        expect(same, "below", f"a Csr like {self!r}", repr(below), "give both the same columns")
        return Csr(
            torch.cat([self.indptr, below.indptr[1:] + self.nnz]),
            torch.cat([self.indices, below.indices]),
            self.n_cols,
            None
            if self.values is None or below.values is None
            else torch.cat([self.values, below.values]),
        )

    def beside(self, other: Csr) -> Csr:
        """Each row's entries, then those of the same row of `other`; values are left out.

        Raises:
            InputError: if shapes differ.

        Example:
            >>> one, other = (Csr.from_lists(x, n_cols=3) for x in ([[0], [1, 2]], [[2], []]))
            >>> one.beside(other).take(torch.tensor([0, 1]))
            (tensor([0, 2, 1, 2]), tensor([0, 2, 4]))
        """
        same = self.shape == other.shape
        expect(same, "other", f"a Csr of {self.shape}", other.shape, "give both the same shape")
        indptr = self.indptr + other.indptr
        at = torch.arange(self.nnz, device=self.device) + other.indptr[self.row_ids()]
        behind = torch.arange(other.nnz, device=self.device) + self.indptr[1:][other.row_ids()]
        indices = self.indices.new_empty(self.nnz + other.nnz)
        indices[at], indices[behind] = self.indices, other.indices.to(indices.dtype)
        return Csr(indptr, indices, self.n_cols)

    def with_values(self, values: Shaped[Tensor, " e"] | None) -> Csr:
        """The same entries with other values."""
        return replace(self, values=values)

    def to(self, device: torch.device | str) -> Csr:
        """The same matrix on `device`."""
        values = None if self.values is None else self.values.to(device)
        return Csr(self.indptr.to(device), self.indices.to(device), self.n_cols, values)

    def to_dense(self) -> Shaped[Tensor, "n m"]:
        """A dense matrix; doubles are summed, entries without values count one."""
        values = self.values
        if values is None:
            values = torch.ones(self.nnz, device=self.device)
        dense = torch.zeros(self.shape, dtype=values.dtype, device=self.device)
        return dense.index_put_((self.row_ids(), self.indices.long()), values, accumulate=True)

    def padded(self) -> tuple[Shaped[Tensor, "n w"], Int[Tensor, "n w"]]:
        """Values and columns of each row, -inf and -1 behind the last; w is the longest row.

        Example:
            >>> Csr.from_lists([[0, 2], [1]], n_cols=3).padded()
            (tensor([[1., 1.],
                    [1., -inf]]), tensor([[ 0,  2],
                    [ 1, -1]]))
        """
        values = torch.ones(self.nnz, device=self.device) if self.values is None else self.values
        degrees = self.degrees()
        row, width = self.row_ids(), int(degrees.max()) if self.n_rows else 0
        at = torch.arange(self.nnz, device=self.device) + (row * width - self.indptr[row])
        scores = values.new_full((self.n_rows * width,), -torch.inf)
        ids = torch.full_like(scores, -1, dtype=torch.int64)
        scores[at], ids[at] = values, self.indices.long()
        return scores.view(self.n_rows, width), ids.view(self.n_rows, width)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.csr_matrix`` that shares this one's memory where it can."""
        from scipy.sparse import csr_matrix

        values = torch.ones(self.nnz) if self.values is None else self.values
        arrays = (values.numpy(), self.indices.numpy(), self.indptr.numpy())
        return csr_matrix(arrays, shape=self.shape)

    # -- files -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        parts = {"indptr": self.indptr, "indices": self.indices, "values": self.values}
        return parts | {"n_cols": self.n_cols}

    @staticmethod
    def of_state(
        state: Mapping[str, Any], n_rows: int | None = None, n_cols: int | None = None
    ) -> Csr:
        """What :meth:`state_dict` gave.

        Args:
            state: the parts.
            n_rows: how many rows there must be; None for any number.
            n_cols: how many columns.

        Raises:
            InputError: if the parts are not those of such a matrix.
        """
        wide = count(state, "n_cols")
        indptr = integers(state, "indptr", None if n_rows is None else n_rows + 1)
        indices = integers(state, "indices", None, below=wide, keep=_INDEX)
        values = state.get("values")
        values = None if values is None else numbers(state, "values", len(indices))
        right = n_cols is None or wide == n_cols
        expect(right, "n_cols", f"{n_cols} columns", wide, "take all parts from one model")
        return Csr(indptr, indices, wide, values).validate()

    def save(self, folder: str | Path) -> None:
        """Write ``indptr.npy``, ``indices.npy``, perhaps ``values.npy``, and ``csr.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "indptr.npy", self.indptr.cpu().numpy())
        np.save(folder / "indices.npy", self.indices.cpu().numpy())
        if self.values is not None:
            np.save(folder / "values.npy", self.values.cpu().numpy())
        about = {"format": _FORMAT, "shape": self.shape, "values": self.values is not None}
        (folder / "csr.json").write_text(json.dumps(about))

    @staticmethod
    def open(folder: str | Path) -> Csr:
        """Map what :meth:`save` wrote; rows are read from disk when they are touched.

        Writing to the tensors changes this process's copy, never the file.

        Raises:
            InputError: if the folder does not hold a whole Csr.
        """
        folder = expect_folder(folder, "a saved Csr")
        about_path = folder / "csr.json"
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
            form = about.get("format")
            expect(form == _FORMAT, str(about_path), _FORMAT, form, "save it with this version")
            (n_rows, n_cols), has_values = about["shape"], about["values"]
            names = ("indptr", "indices", "values") if has_values else ("indptr", "indices")
            parts = {x: map_rows(folder / f"{x}.npy") for x in names}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            fail(str(folder), "a whole saved Csr", error, "save it again")
        except RecursionError:
            fail(str(about_path), "a whole saved Csr", "brackets without end", "save it again")
        with naming(folder):
            rows = count({"shape": n_rows}, "shape")
            wide = count({"shape": n_cols}, "shape")
            return Csr.of_state({**parts, "n_cols": wide}, rows, wide)


def offsets_of(lengths: Shaped[Tensor, " n"]) -> Int[Tensor, " n_plus_1"]:
    """Offsets from lengths, or from truth values: the running sum, with a zero in front."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int64), (1, 0))


def positions_of(start: Int[Tensor, " b"], offsets: Int[Tensor, " b_plus_1"]) -> Int[Tensor, " e"]:
    """The numbers of some stretches, one stretch after the other.

    Args:
        start: the first number of each.
        offsets: where each begins in the result.

    Example:
        >>> positions_of(torch.tensor([7, 0]), torch.tensor([0, 2, 5])).tolist()
        [7, 8, 0, 1, 2]
    """
    total = int(offsets[-1])
    owner = torch.repeat_interleave(offsets.diff(), output_size=total)
    shift = (start - offsets[:-1]).index_select(0, owner)
    return shift.add_(torch.arange(total, device=start.device))


def flagged(truth: Bool[Tensor, " n"]) -> Int[Tensor, " e"]:
    """Where a vector is true; numpy finds it in a sixth of the time that torch takes on a CPU.

    Example:
        >>> flagged(torch.tensor([False, True, True])).tolist()
        [1, 2]
    """
    if truth.is_cpu:
        return torch.from_numpy(np.flatnonzero(truth.numpy()))
    return truth.nonzero().squeeze(1)


def _narrow(ids: Int[Tensor, " e"], bound: int) -> Int[Tensor, " e"]:
    """Ids below `bound` in the narrowest integers that hold them.

    A stable sort of 50,000 int64 takes twice as long as of int32, five times as long as of int16.
    """
    fits = (kind for kind in (torch.int16, torch.int32) if bound - 1 <= torch.iinfo(kind).max)
    return ids.to(next(fits, ids.dtype))
