"""Folders of the Open Graph Benchmark (Hu et al., NeurIPS 2020), as its archives unpack.

``raw/`` holds ``edge.csv.gz`` and perhaps ``node-feat.csv.gz``, ``edge-feat.csv.gz``,
``node-label.csv.gz``, or all of it in ``data.npz``; ``split/KIND/`` holds ``{train,valid,test}``,
ids of nodes in ``.csv.gz`` (ogbn-…) or links in ``.pt`` (ogbl-…), which torch reads with
``weights_only``. Whether OGB itself adds the reverse of each edge is known to its package alone;
here a node reads both ends' neighbors in every case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_file, expect_finite, expect_ids, fail, naming
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.arrays import read_arrays_of
from shoal.data.matrix import read_arrays

_PARTS = ("train", "valid", "test")


def _holds(source: Any) -> bool:
    if not isinstance(source, str | Path):
        return False
    raw = any(Path(source, "raw", name).exists() for name in ("edge.csv.gz", "data.npz"))
    return raw and Path(source, "split").is_dir()


@graph_format("ogb", _holds)
def read(folder: str | Path) -> GraphData:
    """Read a folder of the node or of the link property benchmark: ogbn-arxiv, ogbl-collab, ….

    Where nodes have no features but edges do (ogbn-proteins), a node's are the mean of its edges',
    as in OGB's own examples. A split of links (``.pt``) is one of links; OGB's own negatives are
    left out: links are ranked against all other nodes.

    Raises:
        InputError: naming the file, if one is missing or damaged, or the graph has several types.
    """
    folder = Path(folder)
    raw, split = _Raw(folder), _split(folder)
    if any(split.glob("*.pt")):
        train, valid, test = (_pairs(split / f"{name}.pt") for name in _PARTS)
        with naming(folder):
            for name, pairs in zip(_PARTS, (train, valid, test), strict=True):
                expect_ids(name, pairs.flatten(), raw.graph.n_rows)
        return GraphData(_name(folder), raw.graph, raw.features, links=(train, valid, test))
    y = _node_labels(folder / "raw")
    features = raw.features if raw.features is not None else raw.mean_of_edges()
    parts = {name: _numbers(split / f"{name}.csv.gz", np.int64).flatten() for name in _PARTS}
    return GraphData(_name(folder), raw.graph, features, y, parts)


class _Raw:
    """What ``raw/`` holds: edges both ways, features of nodes and edges where there are any."""

    graph: Csr
    features: Float[Tensor, "n f"] | None

    def __init__(self, folder: Path) -> None:
        raw = folder / "raw"
        typed = (raw / "triplet-type-list.csv.gz").exists()
        remedy = "convert it to one type of nodes and edges"
        expect(not typed, str(folder), "one type of nodes and edges", "several", remedy)
        edges, self.features, self.edge_rows = _binary(raw) if _is_binary(raw) else _text(raw)
        counts = raw / "num-node-list.csv.gz"
        with naming(raw):
            n = len(self.features) if self.features is not None else 0
            n = n or (int(_numbers(counts, np.int64)[0, 0]) if counts.exists() else 0)
            n = n or int(edges.max()) + 1
            if self.features is not None:
                expect_finite("node-feat", self.features)
            expect_ids("edge", edges.flatten(), n)
            self.edges = edges
            both = torch.cat([edges, edges.flip(0)], 1)
            self.graph = Csr.from_edge_index(both, n).coalesce()

    def mean_of_edges(self) -> Float[Tensor, "n f"] | None:
        """The mean of each node's edges' features, zeros where it has none."""
        if self.edge_rows is None:
            return None
        n, ends = self.graph.n_rows, self.edges.flatten()
        total = torch.zeros(n, self.edge_rows.shape[1])
        total.index_add_(0, ends, self.edge_rows.repeat(2, 1))
        return total / torch.bincount(ends, minlength=n).clamp(min=1).unsqueeze(1)


Parts = tuple[Int[Tensor, "2 e"], Float[Tensor, "n f"] | None, Float[Tensor, "e f"] | None]


def _is_binary(raw: Path) -> bool:
    return (raw / "data.npz").exists()


def _binary(raw: Path) -> Parts:
    arrays = read_arrays_of(raw / "data.npz")
    expect("edge_index" in arrays, str(raw / "data.npz"), "edge_index", list(arrays), "download it")
    rows = [arrays[key].float() if key in arrays else None for key in ("node_feat", "edge_feat")]
    return arrays["edge_index"].long(), rows[0], rows[1]


def _text(raw: Path) -> Parts:
    edges = _numbers(raw / "edge.csv.gz", np.int64)
    pairs = edges.shape[1] == 2
    expect(pairs, str(raw / "edge.csv.gz"), "two columns", edges.shape[1], "download it again")
    paths = [raw / "node-feat.csv.gz", raw / "edge-feat.csv.gz"]
    rows = [_numbers(path, np.float32) if path.exists() else None for path in paths]
    return edges.T.contiguous(), rows[0], rows[1]


def _node_labels(raw: Path) -> Tensor:
    if (raw / "node-label.npz").exists():
        return torch.from_numpy(read_arrays(raw / "node-label.npz", ("node_label",))["node_label"])
    return _numbers(raw / "node-label.csv.gz", np.float32)


def _numbers(path: Path, dtype: type[np.generic]) -> Tensor:
    """A table of numbers without a header, ``[rows, columns]``.

    Raises:
        InputError: naming the file, if it is missing, damaged, or holds anything else.
    """
    path = expect_file(path, "numbers between commas")
    try:
        return torch.from_numpy(np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2))
    except (OSError, EOFError, ValueError) as error:
        fail(str(path), "numbers between commas", error, "download it again")


def _split(folder: Path) -> Path:
    kinds = sorted(path for path in (folder / "split").glob("*") if path.is_dir())
    got = [path.name for path in kinds]
    expect(len(kinds) == 1, str(folder / "split"), "the folder of one split", got, "keep one")
    return kinds[0]


def _pairs(path: Path) -> Int[Tensor, "2 e"]:
    """Links of a part, sources above targets; negatives, weights and years are left out."""
    part = _unsaved(path)
    expect("relation" not in part, str(path), "links of one type", "relations", "choose other data")
    try:
        if "edge" in part:
            return torch.as_tensor(part["edge"]).long().T.contiguous()
        return torch.stack(
            [torch.as_tensor(part[f"{end}_node"]).long() for end in ("source", "target")]
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        fail(str(path), "edge, or source_node and target_node", error, "download it again")


def _unsaved(path: Path) -> dict[str, Any]:
    path = expect_file(path, "links that torch saved")
    try:
        with torch.serialization.safe_globals(_numpy_arrays()):
            part = torch.load(path, weights_only=True)
    except Exception as error:  # pickle, zipfile, torch: each has its own
        got = str(error).partition("\n")[0] or type(error).__name__
        fail(str(path), "a dictionary of arrays, saved by torch", got, "download it again")
    good = isinstance(part, dict)
    expect(good, str(path), "a dictionary of arrays", type(part).__name__, "download it again")
    return part


def _numpy_arrays() -> list[Any]:
    """What a pickled numpy array names; OGB's links are such arrays, or tensors."""
    dtypes = [type(np.dtype(kind)) for kind in (np.int64, np.int32, np.float32, np.float64)]
    rebuild = np.empty(0).__reduce__()[0]
    legacy = (rebuild, "numpy.core.multiarray._reconstruct")
    return [rebuild, legacy, np.ndarray, np.dtype, *dtypes]


def _name(folder: Path) -> str:
    return folder.resolve().name.replace("_", "-")
