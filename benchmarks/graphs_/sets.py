"""Graphs to classify the nodes of, each with the splits that the field has for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal import NodeData
from shoal.data.graphs import load_nodes

SETS = {
    "cora": "planetoid/cora",
    "citeseer": "planetoid/citeseer",
    "texas": "heterophilous/texas.npz",
    "chameleon": "heterophilous/chameleon_filtered.npz",
    "squirrel": "heterophilous/squirrel_filtered.npz",
    "actor": "heterophilous/actor.npz",
    "minesweeper": "heterophilous/minesweeper.npz",
    "tolokers": "heterophilous/tolokers.npz",
    "coauthor-cs": "coauthor-cs/coauthor-cs.npz",
    "amazon-computers": "amazon-computers/amazon-computers.npz",
    "wordnet": "wordnet-graph",
}


def nodes(folder: Path, name: str, seed: int) -> NodeData:
    """A graph; the seed picks one of ten splits, or draws one, where the field has no single one.

    amazon-computers is stored one way and read in both directions, as the field does.
    """
    source = SETS[name]
    data = load_nodes(source if name == "wordnet" else folder / source, seed)
    return replace(data, graph=data.graph.both_ways())
