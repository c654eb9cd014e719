"""``wordnet-graph``, the shipped one, read from :mod:`shoal.data.wordnet`."""

from __future__ import annotations

from typing import Any

from shoal.data.graph import GraphData, graph_format


@graph_format("wordnet", lambda source: isinstance(source, str) and source == "wordnet-graph")
def read(source: Any) -> GraphData:
    """WordNet's synsets, their relations, words and lexicographer files."""
    from shoal.data import wordnet  # which builds one of the nouns that formats are turned into

    data = wordnet.graph()
    parts = {"train": data.train, "valid": data.valid, "test": data.test}
    names = data.class_names
    return GraphData(data.name, data.graph, data.features, data.target, parts, class_names=names)
