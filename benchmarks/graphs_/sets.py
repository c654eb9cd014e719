"""Graphs to classify the nodes of, each with the splits that the field has for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shoal import Csr, NodeData
from shoal.data.graphs import load_nodes

OWN_SPLIT = ("planetoid/cora", "planetoid/citeseer", "wordnet-graph")
TEN_SPLITS = (
    "texas",
    "chameleon_filtered",
    "squirrel_filtered",
    "actor",
    "minesweeper",
    "tolokers",
)
RANDOM_SPLIT = ("amazon-computers", "coauthor-cs")


def nodes(folder: Path, name: str, seed: int) -> NodeData:
    """A graph; of ten splits the one numbered `seed`, drawn anew by the seed where it has none."""
    if name in TEN_SPLITS:
        return _heterophilous(folder / "heterophilous" / f"{name}.npz", seed)
    if name not in RANDOM_SPLIT:
        return load_nodes(name if name == "wordnet-graph" else folder / name)
    data = load_nodes(folder / name / f"{name}.npz")
    known = torch.cat([data.train, data.valid, data.test])
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    train, valid, test = known.split([len(data.train), len(data.valid), len(data.test)])
    graph = data.graph.both_ways()  # amazon-computers is stored one way, the field reads it both
    return replace(data, graph=graph, train=train, valid=valid, test=test)


def _heterophilous(path: Path, split: int) -> NodeData:
    """A graph of Platonov and others (ICLR 2023): edges once each, one mask a row."""
    with np.load(path) as held:
        arrays = {key: torch.from_numpy(held[key]) for key in held.files}
    n, edges = len(arrays["node_labels"]), arrays["edges"].long().T
    target = arrays["node_labels"].long()
    row, col = torch.cat([edges, edges.flip(0)], dim=1)
    train, valid, test = (
        arrays[f"{part}_masks"][split].bool().nonzero().squeeze(1)
        for part in ("train", "val", "test")
    )
    names = tuple(str(x) for x in range(int(target.max()) + 1))
    features = arrays["node_features"].float()
    graph = Csr.from_coo(row, col, (n, n)).coalesce().with_values(None)
    return NodeData(path.stem, graph, features, target, train, valid, test, names)
