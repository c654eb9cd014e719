"""Graphs by name or path: which reader a source needs.

``wordnet-graph``, an ``.npz`` or ``.safetensors`` of arrays, an OGB folder, a Planetoid folder.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import fail
from shoal.data import arrays, links, nodes, ogb, planetoid
from shoal.data.links import LinkData, split_links
from shoal.data.nodes import NodeData


def load_nodes(source: str) -> NodeData:
    """A graph whose nodes have classes.

    Raises:
        InputError: if it is missing, damaged, or of a kind that is not known.
    """
    if source == "wordnet-graph":
        from shoal.data import wordnet

        return wordnet.graph()
    path = Path(source)
    if path.suffix in arrays.SUFFIXES:
        return nodes.read(path)
    if ogb.is_folder(path):
        return ogb.read(path)
    if planetoid.prefix_of(path) is not None:
        return planetoid.read(path)
    fail(source, "a graph", "none", "check the path; docs/formats.md lists what is read")


def load_graph(source: str) -> Csr:
    """Who reads whom in a graph, whether or not its nodes have classes or features.

    Raises:
        InputError: if it is missing, damaged, or of a kind that is not known.
    """
    path = Path(source)
    if path.suffix in arrays.SUFFIXES:
        with arrays.naming(path):
            return arrays.graph_of(arrays.read(path))
    return ogb.links(path).graph if ogb.holds_links(path) else load_nodes(source).graph


def load_features(source: str) -> tuple[Csr, Csr | Tensor]:
    """A graph and the features of its nodes, which need no classes.

    Raises:
        InputError: if it is missing or damaged, or has no features.
    """
    path = Path(source)
    if path.suffix not in arrays.SUFFIXES:
        data = load_nodes(source)
        return data.graph, data.features
    with arrays.naming(path):
        found = arrays.read(path)
        graph = arrays.graph_of(found)
        features = arrays.features_of(found, graph.n_rows)
    if features is None:
        fail(source, "features of nodes", "none", "add x, one row a node")
    return graph, features


def load_links(source: str, seed: int = 0) -> LinkData:
    """A graph whose links are to be predicted: its own split, or one drawn from `seed`.

    Raises:
        InputError: if it is missing, damaged, or of a kind that is not known.
    """
    path = Path(source)
    if path.suffix in arrays.SUFFIXES:
        return links.read(path, seed)
    if ogb.holds_links(path):
        return ogb.links(path)
    data = load_nodes(source)
    return split_links(data.name, data.graph, data.features, seed=seed)
