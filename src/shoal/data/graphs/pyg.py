"""PyTorch Geometric's ``Data``: anything with ``edge_index`` and tensors, in memory or ``.pt``."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import expect_file, fail, naming
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.arrays import of_arrays
from shoal.data.graphs.layouts import usual
from shoal.data.unread import say_unread


@graph_format("pyg", lambda source: hasattr(source, "edge_index") or hasattr(source, "edge_types"))
def read(source: Any) -> GraphData:
    """Take a homogeneous ``Data`` apart; messages pass from the sources of its edges.

    Raises:
        InputError: if it is heterogeneous, or an attribute does not fit.

    Example:
        >>> from types import SimpleNamespace
        >>> edge_index = torch.tensor([[0, 2], [1, 1]])
        >>> read(SimpleNamespace(edge_index=edge_index, num_nodes=3)).graph.degrees().tolist()
        [0, 2, 0]
    """
    if not isinstance(getattr(source, "edge_index", None), Tensor):
        want = "a homogeneous Data with an edge_index"
        fail("data", want, type(source).__name__, "convert it, as HeteroData.to_homogeneous does")
    keys = getattr(source, "keys", None)
    names: Any = keys() if callable(keys) else vars(source)
    found = {str(key): getattr(source, str(key), None) for key in names}
    tensors = {key: x.detach().cpu() for key, x in found.items() if isinstance(x, Tensor)}
    if getattr(source, "num_nodes", None) is not None:
        tensors["num_nodes"] = torch.tensor(int(source.num_nodes))
    return of_arrays("data in memory", tensors)


@graph_format(
    "saved", lambda source: isinstance(source, str | Path) and Path(source).suffix == ".pt"
)
def read_saved(path: str | Path) -> GraphData:
    """Read a ``Data``, or a dictionary of tensors, that ``torch.save`` wrote; no pickle is run.

    torch reads it by ``weights_only``, which makes tensors and, of other classes, PyG's own holders
    of them alone.

    Raises:
        InputError: naming the file, if it is damaged or names anything else.
    """
    path = expect_file(path, "a saved Data")
    known = []
    if find_spec("torch_geometric"):
        data = import_module("torch_geometric.data.data")
        known = [data.Data, data.DataEdgeAttr, data.DataTensorAttr]
        known.append(import_module("torch_geometric.data.storage").GlobalStorage)
    try:
        with torch.serialization.safe_globals(known):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, torch: each has its own
        got = "a class that is not read" if "Unsupported" in str(error) else "a damaged file"
        remedy = (
            "save its tensors: torch.save(dict(edge_index=data.edge_index, x=data.x, y=data.y), "
        )
        remedy += f'"{path.name}"); a saved Data needs torch_geometric here'
        fail(str(path), "a graph as tensors", got, remedy)
    found = found[0] if isinstance(found, tuple) and found else found  # as PyG keeps processed data
    with naming(path):
        if isinstance(found, dict):
            tensors = {str(key): x for key, x in found.items() if isinstance(x, Tensor)}
            say_unread(path, sorted(str(key) for key in found if key not in tensors))
            return of_arrays(path.stem, usual(tensors))
        if isinstance(found, Tensor):
            return of_arrays(path.stem, usual({"edge_index": found}))
        return replace(read(found), name=path.stem)
