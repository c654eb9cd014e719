"""Graphs as files, for tests of several rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from shoal.core.csr import Csr
from shoal.data.graphs import load_nodes
from shoal.data.nodes import NodeData
from shoal.graph.features import feature_rows
from tests.planted import planted_graph


def write_graph(data: NodeData, path: Path) -> Path:
    """The graph as plain arrays, its features sparse."""
    x = data.features
    assert isinstance(x, Csr)
    np.savez(
        path,
        indptr=data.graph.indptr,
        indices=data.graph.indices,
        x_indptr=x.indptr,
        x_indices=x.indices,
        x_data=x.values if x.values is not None else torch.ones(x.nnz),
        x_shape=np.array(x.shape),
        y=data.target.int(),
    )
    return path


def write_links(path: Path, features: bool = True, n: int = 240) -> Path:
    """Four classes; a node's links lie in its own class, and its feature tells the class."""
    data = planted_graph(n=n, classes=4, degree=6, homophily=1.0, dim=4, clarity=1.0)
    if features:
        return write_graph(data, path)
    np.savez(path, indptr=data.graph.indptr, indices=data.graph.indices)
    return path


def dense(source: Path, suffix: str) -> Path:
    """The same graph with dense features, in a file whose rows can be read where they lie."""
    data = load_nodes(source)
    edges = torch.stack([data.graph.indices.long(), data.graph.row_ids()])
    path = source.with_name(f"dense{suffix}")
    arrays = {"x": feature_rows(data.features), "edge_index": edges, "y": data.target}
    if suffix == ".npz":
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    else:
        save_file(arrays, path)
    return path
