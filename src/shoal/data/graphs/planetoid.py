"""Planetoid folders, ``ind.cora.{x,tx,allx,y,ty,ally,graph,test.index}``, without running code.

The files are pickles (Yang, Cohen, Salakhutdinov, "Revisiting semi-supervised learning with graph
embeddings", ICML 2016), and a pickle may call whatever it names. Here it may name numpy arrays and
their types, lists, dictionaries, and scipy's csr matrix, which is taken apart as data; any other
name ends the reading before anything is called. The split is theirs: the first 20 nodes a class
(the rows of ``x``), the 500 that follow, and those of ``test.index``.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_file, expect_finite, fail
from shoal.data.graph import GraphData, graph_format, naming
from shoal.data.lines import lines

_PICKLES = ("y", "allx", "ally", "tx", "ty", "graph")
_VALID = 500  # nodes to choose by, as in the paper's code


class _Matrix:
    """The state of a scipy matrix, as data; scipy's own class is never made."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]

    def csr(self) -> Csr:
        values = torch.from_numpy(self.data).float()
        expect_finite("data", values)
        indptr, indices = (torch.from_numpy(x).long() for x in (self.indptr, self.indices))
        return Csr(indptr, indices, int(self._shape[1]), values).validate()


def _refuse(what: str) -> NoReturn:
    """End the reading.

    Raises:
        UnpicklingError: always; :func:`unpickle` makes an InputError of it.
    """
    raise pickle.UnpicklingError(what)


def _made(kind: type, base: type = object, state: Any = None) -> Any:
    """What old pickles call to make an object: only ever an empty matrix here."""
    if kind is not _Matrix or base is not object or state is not None:
        _refuse(f"an object of {kind!r}")
    return _Matrix()


def _array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """An array of nothing, which its state then fills: no pickle gets memory it does not bring."""
    if kind is not np.ndarray or shape != (0,):
        _refuse(f"an array {kind!r} of shape {shape}")
    return np.ndarray(shape, np.uint8)


def _latin(text: str, code: str) -> bytes:
    """The bytes that Python 3 writes as a text into old protocols."""
    if code != "latin1":
        _refuse(f"the encoding {code}")
    return text.encode(code)


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | type] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _latin,
    ("copy_reg", "_reconstructor"): _made,
    ("copyreg", "_reconstructor"): _made,
    **{(module, "object"): object for module in ("__builtin__", "builtins")},
    **{(module, "list"): list for module in ("__builtin__", "builtins")},
    **{(f"{x}.multiarray", "_reconstruct"): _array for x in ("numpy.core", "numpy._core")},
    **{(f"scipy.sparse.{x}", "csr_matrix"): _Matrix for x in ("csr", "_csr")},
}


class _Reader(pickle.Unpickler):
    """Unpickles arrays, lists, dictionaries and csr matrices; refuses to look anything else up."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            _refuse(f"the name {module}.{name}")
        return found


def unpickle(path: str | Path) -> Any:
    """What a pickle of arrays, matrices, lists and dictionaries holds; matrices come as Csr.

    Raises:
        InputError: naming the file, if it is missing, damaged, or names anything else.
    """
    path = expect_file(path, "a pickle of arrays")
    try:
        found = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # what a damaged pickle raises has no end of kinds
        got = str(error) or type(error).__name__
        remedy = "download it again from a source that you trust; nothing in it was run"
        fail(str(path), "a pickle of arrays and matrices alone", got, remedy)
    if not isinstance(found, _Matrix):
        return found
    try:
        with naming(path):
            return found.csr()
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        fail(str(path), "a csr matrix", error, "download it again")


def prefix_of(folder: str | Path) -> str | None:
    """``ind.cora`` of a folder that holds ``ind.cora.graph``; None where there is none."""
    names = sorted(path.name for path in Path(folder).glob("ind.*.graph"))
    return names[0].removesuffix(".graph") if names else None


def _holds(source: Any) -> bool:
    return isinstance(source, str | Path) and prefix_of(source) is not None


@graph_format("planetoid", _holds)
def read(folder: str | Path) -> GraphData:
    """Read a Planetoid folder: Cora, CiteSeer, PubMed.

    Nodes of which ``test.index`` leaves a gap (CiteSeer has 15) have no features and no class, and
    stand in no split. A node reads its neighbors in both directions; loops and doubles are dropped.

    Raises:
        InputError: naming the file, if one is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    prefix = prefix_of(folder)
    if prefix is None:
        fail(str(folder), "a folder with ind.NAME.graph", "none", "check the path")
    parts = {part: unpickle(folder / f"{prefix}.{part}") for part in _PICKLES}
    test = _numbers(folder / f"{prefix}.test.index")
    try:
        with naming(folder):
            return _joined(prefix.removeprefix("ind."), parts, test)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fail(str(folder), "the files of one Planetoid data set", error, "download them again")


def _joined(name: str, parts: dict[str, Any], test: Int[Tensor, " t"]) -> GraphData:
    """Put the rows of tests where their numbers are, below those that are known."""
    learned, known = len(parts["y"]), len(parts["ally"])
    both = parts["allx"].stack(parts["tx"])
    classes = np.concatenate([parts["ally"], parts["ty"]])
    rows, n = torch.cat([torch.arange(known), test]), max(int(test.max()) + 1, known)
    same = len(rows) == both.n_rows == len(classes)
    expect(same, "test.index", "a number a row of tx and ty", len(test), "download it again")
    features = Csr.from_coo(rows[both.row_ids()], both.indices, (n, both.n_cols), both.values)
    target = torch.full((n,), -1)
    target[rows] = torch.from_numpy(classes.argmax(1)).long()
    graph = _graph(parts["graph"], n)
    valid = torch.arange(learned, min(learned + _VALID, known))
    split = {"train": torch.arange(learned), "valid": valid, "test": test.sort().values}
    names = tuple(map(str, range(classes.shape[1])))
    return GraphData(name, graph, features, target, split, class_names=names)


def _numbers(path: Path) -> Tensor:
    ids = []
    for number, line in lines(path):
        good = line.strip().isdecimal()
        expect(good, f"{path}:{number}", "a node's number", line, "download it again")
        ids.append(int(line))
    expect(len(ids) > 0, str(path), "a node's number a line", "none", "download it again")
    return torch.tensor(ids)


def _graph(neighbors: dict[int, list[int]], n: int) -> Csr:
    lengths = torch.tensor([len(x) for x in neighbors.values()])
    row = torch.tensor(list(neighbors), dtype=torch.int64).repeat_interleave(lengths)
    col = torch.tensor(list(chain.from_iterable(neighbors.values())), dtype=torch.int64)
    other = row != col
    row, col = row[other], col[other]
    return Csr.from_coo(torch.cat([row, col]), torch.cat([col, row]), (n, n)).coalesce()
