"""PyTorch Geometric's ``Data`` in memory: any object with ``edge_index`` and tensors beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import fail
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.arrays import of_arrays


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
