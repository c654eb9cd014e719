"""Graphs as named arrays: in one ``.npz`` or ``.safetensors``, or out of a PyG ``Data``.

Two layouts are understood, and others are brought to them (:mod:`.layouts`). shoal's has ``indptr``
and ``indices`` (row v lists the nodes that v reads) and sparse features in ``x_indptr``,
``x_indices``, ``x_data``, ``x_shape``; PyG's has ``edge_index`` (sources above targets, so v reads
the sources of its edges) and dense features ``x``. Either may hold ``y``, of an ``.npz`` also as
names of classes, and the split, as masks or as ids: ``train_mask``, ``val_mask``, ``test_mask``, or
``train_idx``, ``valid_idx``, ``test_idx`` and the like, as scripts for DGL and OGB keep it. Arrays
of other names are not read, and named. No pickle is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import (
    expect,
    expect_file,
    expect_finite,
    expect_ids,
    expect_numbered,
    naming,
)
from shoal.core.mapped import map_array, tensors_of
from shoal.core.state import floats, integers
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.layouts import NAMES, kinds_of, matrix_in, usual
from shoal.data.matrix import read_arrays
from shoal.data.unread import say_unread

Arrays = Mapping[str, Tensor]

_SUFFIXES = (".npz", ".safetensors")
_PARTS = {"train": ("train",), "valid": ("val", "valid", "validation", "dev"), "test": ("test",)}
_KINDS = ("mask", "idx", "index", "ids", "id", "nid", "nodes")
_KNOWN = {"indptr", "indices", "edge_index", "x", "y", "num_nodes", "x_indptr", "x_indices"}
_KNOWN |= {"x_data", "x_shape", "shape"}


def _holds(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix in _SUFFIXES


@graph_format("arrays", _holds)
def read(source: str | Path) -> GraphData:
    """Read a graph from an ``.npz`` or ``.safetensors``, named after the file.

    Raises:
        InputError: naming the file and the key, if one is missing or damaged, or a feature is NaN.
    """
    path = expect_file(source, "arrays (.npz or .safetensors)")
    with naming(path):
        if path.suffix == ".safetensors":
            return of_arrays(path.stem, usual(read_arrays_of(path)))
        return _of_npz(path)


def _of_npz(path: Path) -> GraphData:
    """A graph of an ``.npz``, which may hold texts and pickled matrices beside its numbers."""
    try:
        kinds = kinds_of(path)
    except Exception:  # read_arrays_of says what is wrong with it
        kinds = {}
    texts = read_arrays(path, tuple(key for key in kinds if kinds[key] in "US")) if kinds else {}
    matrices = {key: matrix_in(path, key) for key in kinds if kinds[key] == "O"}
    arrays = read_arrays_of(path, leaving={*texts, *matrices})
    for found in matrices.values():
        arrays |= found
    form = texts.pop("format").astype(str).item() if "format" in texts else None
    arrays, names = usual(arrays, form), None
    classes = next((key for key in ("y", *NAMES["y"]) if key in texts), None)
    if classes is not None and "y" not in arrays:
        found, numbers = np.unique(texts.pop(classes).reshape(-1).astype(str), return_inverse=True)
        names, arrays["y"] = tuple(found.tolist()), torch.from_numpy(numbers)
    elif "y" in arrays and "class_names" in texts:
        names = tuple(texts.pop("class_names").reshape(-1).astype(str).tolist())
    say_unread(path.stem, sorted({*texts, *(key for key, found in matrices.items() if not found)}))
    return of_arrays(path.stem, arrays, class_names=names)


def of_arrays(
    name: str, arrays: Arrays, *, class_names: tuple[str, ...] | None = None
) -> GraphData:
    """Put named arrays together, as :func:`read` does with those of a file.

    Args:
        name: of the graph.
        arrays: under the names of this module's documentation.
        class_names: of the classes in ``y``; None numbers them.

    Raises:
        InputError: naming the key, if one is missing or does not fit.
    """
    graph = graph_of(arrays)
    features = features_of(arrays, graph.n_rows)
    keys = _split_keys(arrays)
    say_unread(name, sorted(set(arrays) - _KNOWN - set(keys.values())))
    parts = {part: _part(key, arrays[key], graph.n_rows) for part, key in keys.items()}
    return GraphData(name, graph, features, arrays.get("y"), parts, class_names=class_names)


def _split_keys(arrays: Arrays) -> dict[str, str]:
    """The arrays that hold the split, by part; all of one kind.

    Raises:
        InputError: if there are two splits.
    """
    found = {
        kind: {
            part: key
            for part, names in _PARTS.items()
            for key in (f"{name}_{kind}" for name in names)
            if key in arrays
        }
        for kind in _KINDS
    }
    kinds = [keys for keys in found.values() if keys]
    got = [key for keys in kinds for key in keys.values()]
    expect(len(kinds) < 2, "split", "masks or ids, one of both", got, "leave out the others")
    return kinds[0] if kinds else {}


def _part(key: str, array: Tensor, n: int) -> Tensor:
    """A part of the split: a mask, or ids of nodes."""
    if key.endswith("_mask"):
        return array.bool()
    ids = array.flatten()
    good = ids.dtype != torch.bool and not ids.is_floating_point()
    expect(good, key, "ids of nodes", f"{array.dtype} {tuple(array.shape)}", "convert it")
    expect_ids(key, ids.long(), n)
    return ids.long()


def read_arrays_of(path: str | Path, leaving: Collection[str] = ()) -> dict[str, Tensor]:
    """All arrays of a file but those to leave; large ones are mapped, and read when touched.

    Raises:
        InputError: naming the file, if it is missing, damaged or holds anything but numbers.
    """
    path = expect_file(path, "arrays (.npz or .safetensors)")
    if path.suffix == ".safetensors":
        found = {name: _usual(map_array(found)) for name, found in tensors_of(path).items()}
        bad = [name for name, array in found.items() if array.is_complex()]
        expect(not bad, str(path), "arrays of numbers", f"complex ones as {bad}", "leave them out")
        return found
    arrays = read_arrays(path, tuple(key for key in _names(path) if key not in leaving))
    bad = [key for key, array in arrays.items() if array.dtype.kind not in "biuf"]
    expect(not bad, str(path), "arrays of numbers", f"others as {bad}", "leave them out")
    return {key: _usual(torch.from_numpy(_native(array))) for key, array in arrays.items()}


def _usual(array: Tensor) -> Tensor:
    """The array in a type that torch computes with; some it can only hold."""
    if array.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return array.long()
    return array.float() if array.dtype.itemsize == 1 and array.is_floating_point() else array


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, and no more exact than torch's numbers are."""
    kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return array if array.dtype == kind else array.astype(kind)


def _names(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return tuple(file.files)
    except Exception:  # read_arrays says what is wrong with it
        return ("indptr",)


def graph_of(arrays: Arrays) -> Csr:
    """The graph in either layout, ``[n, n]``.

    Raises:
        InputError: if there is none, or an id is out of range.

    Example:
        >>> graph_of({"edge_index": torch.tensor([[0, 2], [1, 1]])}).take(torch.arange(3))
        (tensor([0, 2]), tensor([0, 0, 2, 2]))
    """
    if "indptr" in arrays and "indices" in arrays:
        indptr, indices = _ints(arrays, "indptr"), _ints(arrays, "indices")
        return Csr(indptr, indices, max(len(indptr) - 1, 0)).validate()
    expect(
        "edge_index" in arrays,
        "graph",
        "indptr and indices, or edge_index",
        list(arrays),
        "add them",
    )
    edge_index = arrays["edge_index"]
    good = edge_index.dim() == 2 and len(edge_index) == 2 and not edge_index.is_floating_point()
    shape = f"{edge_index.dtype} {tuple(edge_index.shape)}"
    expect(good, "edge_index", "whole numbers, [2, edges]", shape, "transpose or convert it")
    ids = edge_index.long()
    known = [len(arrays[key]) for key in ("x", "y") if key in arrays and arrays[key].dim()]
    given = [_counts(arrays, "x_shape", 2)[0]] if "x_shape" in arrays else []
    given += _counts(arrays, "num_nodes", 1) if "num_nodes" in arrays else []
    given += [int(ids.max()) + 1 if ids.numel() else 0]
    n = [*known, *given][0]
    if not known:
        expect_numbered("edge_index", "nodes", n, ids.shape[1])
    expect_ids("edge_index", ids.flatten(), n)
    return Csr.from_edge_index(ids, n)


def _counts(arrays: Arrays, key: str, n: int) -> list[int]:
    """So many counts: below 2^31, as many rows and columns as a matrix has."""
    return integers({key: _ints({key: arrays[key].reshape(-1)}, key)}, key, n, below=2**31).tolist()


def _ints(arrays: Arrays, key: str) -> Int[Tensor, " k"]:
    array = arrays[key]
    good = array.dim() == 1 and not array.is_floating_point()
    expect(good, key, "1-d whole numbers", f"{array.dtype} {tuple(array.shape)}", "convert it")
    return array.long()


def features_of(arrays: Arrays, n: int) -> Csr | Float[Tensor, "n f"] | None:
    """Sparse or dense features, one row for each of `n` nodes; None where there are none.

    Raises:
        InputError: if they are not finite numbers, or have another number of rows.
    """
    sparse = [key for key in ("x_indptr", "x_indices", "x_data", "x_shape") if key in arrays]
    if len(sparse) == 4:
        _, width = _counts(arrays, "x_shape", 2)
        indptr, indices = _ints(arrays, "x_indptr"), _ints(arrays, "x_indices")
        values = floats({"x_data": arrays["x_data"].float()}, "x_data", len(indices))
        expect_numbered("x_shape", "columns", width, len(indices))
        features = Csr(indptr, indices, width, values).validate()
        expect(
            features.n_rows == n, "features", f"{n} rows, one per node", features.n_rows, "align"
        )
        return features
    expect(not sparse, "features", "x_indptr, x_indices, x_data, x_shape", sparse, "add the others")
    if "x" not in arrays:
        return None
    rows = arrays["x"].float()
    good = rows.dim() == 2 and len(rows) == n and rows.shape[1] > 0
    expect(good, "x", f"numbers [{n}, features], one row per node", tuple(rows.shape), "reshape it")
    expect_finite("x", rows)
    return rows
