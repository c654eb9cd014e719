"""What other projects call the arrays of a graph, brought to the names of :mod:`.arrays`.

Read are, besides shoal's and PyG's own: scipy's ``save_npz`` (csr, csc, coo), gnn-benchmark
(``adj_indptr`` or ``adj_matrix.indptr``, ``attr_…``, ``labels``), GraphData (the same matrices
pickled as object arrays, which are taken apart and never run), heterophilous-graphs
(``node_features``, ``node_labels``, ``edges`` once for both directions) and DGL's ``feat`` and
``label``, ``src`` and ``dst``. An array under shoal's own name is never replaced.
"""

from __future__ import annotations

import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.data.graphs.pickled import taken_apart

# shoal's names, and what others call them
NAMES = {
    "x": ("node_features", "node_feat", "feat", "features"),
    "y": ("node_labels", "node_label", "label", "labels"),
    "edge_index": ("edges", "edge_list"),
}
_MATRICES = {"": ("adj_matrix", "adj", "A"), "x_": ("attr_matrix", "attr", "X")}
_MATRIX = ("indptr", "indices", "data", "shape")


def kinds_of(path: Path) -> dict[str, str]:
    """The arrays of an ``.npz`` and what each holds, as the kind of its dtype: "f", "U", "O", ….

    Raises:
        Exception: whatever zipfile and numpy find wrong with it.
    """
    kinds = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                kinds[name.removesuffix(".npy")] = _header(file).kind
    return kinds


def _header(file: Any) -> np.dtype:
    """The dtype that an array's header names; what follows it is left to be read.

    Raises:
        ValueError: if it is of a version that numpy writes for names of fields alone.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    read = np.lib.format.read_array_header_2_0 if version == (2, 0) else read
    if read is None:
        raise ValueError("an array of another version")
    return read(file)[2]


def matrix_in(path: Path, name: str) -> dict[str, Tensor]:
    """The arrays of a csr matrix that an object array holds; none where it holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _header(file)
            found = taken_apart(cast(BufferedIOBase, file))  # as zipfile's readers are
    except Exception:  # nothing in it was run; it is named as not read
        return {}
    if not isinstance(found, Csr):
        return {}
    values = torch.ones(found.nnz) if found.values is None else found.values
    parts = (found.indptr, found.indices, values, torch.tensor(found.shape))
    return {f"{name}_{part}": x for part, x in zip(_MATRIX, parts, strict=True)}


def usual(arrays: dict[str, Tensor], form: str | None = None) -> dict[str, Tensor]:
    """The arrays under the names of :mod:`.arrays`, those of no known layout as they are.

    Args:
        arrays: by the names of the file.
        form: of a matrix of scipy's: csr, csc or coo.

    Example:
        >>> edges = torch.tensor([[0, 1], [2, 1], [2, 0]])
        >>> usual({"edges": edges, "label": torch.ones(3)})["edge_index"].tolist()
        [[0, 2, 2], [1, 1, 0]]
    """
    found = dict(arrays)
    undirected = "edges" in found and "node_features" in found
    for ours, others in NAMES.items():
        theirs = [name for name in others if name in found]
        if ours not in found and theirs:
            found[ours] = found.pop(theirs[0])
    for ours, others in _MATRICES.items():
        for theirs in others:
            for part in _MATRIX:
                named = [
                    f"{theirs}{mark}{part}" for mark in "_." if f"{theirs}{mark}{part}" in found
                ]
                # of the graph's own matrix the values are weights, under a name of their own
                target = "edge_weight" if ours == "" and part == "data" else f"{ours}{part}"
                if named and target not in found:
                    found[target] = found.pop(named[0])
    if undirected:  # a row of masks for each of its splits, where PyG has a column
        for part in ("train", "val", "test"):
            if f"{part}_masks" in found:
                found[f"{part}_mask"] = found.pop(f"{part}_masks").T
    if {"src", "dst"} <= set(found) and "edge_index" not in found:
        found["edge_index"] = torch.stack([found.pop("src"), found.pop("dst")])
    _of_scipy(found, form)
    edges = found.get("edge_index")
    if edges is not None and edges.dim() == 2 and edges.shape[1] == 2 != edges.shape[0]:
        found["edge_index"] = edges = edges.T.contiguous()
    weights = found.get("edge_weight")
    if weights is not None and "edge_weight" not in arrays and bool((weights == 1).all()):
        del found["edge_weight"]  # the values of a matrix that says only where edges are
    if undirected and edges is not None:
        found["edge_index"] = torch.cat([edges, edges.flip(0)], 1).unique(dim=1)
    return found


def _of_scipy(found: dict[str, Tensor], form: str | None) -> None:
    """Turn what ``scipy.sparse.save_npz`` writes into a graph whose rows read, in place."""
    if form is None:
        return
    expect(form in ("csr", "csc", "coo"), "format", "csr, csc or coo", form, "save it as .tocsr()")
    rows, columns = found["shape"].tolist()
    remedy = "save the matrix of nodes and nodes"
    expect(rows == columns, "shape", "as many rows as columns, the nodes", (rows, columns), remedy)
    if form == "coo":
        csr = Csr.from_coo(found.pop("row").long(), found.pop("col").long(), (rows, rows))
        found |= {"indptr": csr.indptr, "indices": csr.indices}
    if form == "csc":
        csr = Csr(found["indptr"].long(), found["indices"].long(), rows).validate().transpose()
        found |= {"indptr": csr.indptr, "indices": csr.indices}
    found["edge_weight"] = found.pop("data")
