"""The node job: GraphSAGE learns what a node and its neighbors show, and is judged on all nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs import load_nodes
from shoal.data.nodes import NodeData
from shoal.graph.layers import full_graph
from shoal.graph.sage import Sage
from shoal.tasks import nodes
from shoal.tasks.graphs import describe
from shoal.tasks.rows import WIDTH, feature_rows
from shoal.training.run import Run
from tests.planted import one_hop_accuracy, planted_graph


def write(data: NodeData, path: Path) -> Path:
    """The graph as plain arrays."""
    x = data.features
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


def settings(path: Path, **options: Any) -> Train:
    """A small model on small batches."""
    options = {"batch_size": 120, "fanouts": (5,), "hidden": 16, "dropout": 0.0} | options
    return Train(source=str(path), out=path.parent / "run", **options)


def test_one_layer_reaches_the_best_possible_accuracy(tmp_path: Path) -> None:
    """On two planted classes one hop comes within sampling error of the closed-form optimum."""
    path = write(planted_graph(n=2000, degree=5, homophily=0.8, dim=8), tmp_path / "g.npz")
    result = nodes.train(settings(path, epochs=15, lr=0.03))
    best = 100 * one_hop_accuracy(degree=5, homophily=0.8, clarity=0.6)
    error = 100 * (0.25 / 400) ** 0.5
    assert abs(result["test"]["accuracy"] - best) < 3 * error
    assert result["test"]["accuracy"] > 60 + 2 * error


def test_planted_splits_hold_every_class() -> None:
    """The split is independent of the classes: no split misses one (it once was one class)."""
    for seed in range(3):
        data = planted_graph(n=300, classes=3, dim=12, seed=seed)
        for ids in (data.train, data.valid, data.test):
            assert data.target[ids].bincount(minlength=3).min() > len(ids) / 6


def test_judge_is_the_full_graph_accuracy(tmp_path: Path) -> None:
    """What the job reports is the accuracy of the best model's layer-wise inference."""
    path = write(planted_graph(n=300, classes=3, dim=12), tmp_path / "g.npz")
    result = nodes.train(settings(path, fanouts=(3, 2), steps=6))
    run, data = Run.open(tmp_path / "run"), load_nodes(str(path))
    model = Sage(12, 16, 3, layers=2)
    model.load_state_dict(run.load_model()["model"])
    logits = full_graph(model, data.graph, data.features.to_dense())
    expected = 100 * (logits.argmax(1) == data.target)[data.test].float().mean().item()
    assert result["test"]["accuracy"] == pytest.approx(expected)
    assert nodes.judge(run, str(path)) == result["test"]


@pytest.mark.parametrize("model", ["sage", "gat"])
def test_several_classes_a_node(tmp_path: Path, model: str) -> None:
    """Two truths that the features show are learned, and judged by micro-averaged F1."""
    data = planted_graph(n=300, classes=3, dim=6, clarity=1.0)
    truth = torch.stack([data.target == 0, data.target != 1], 1)
    several = NodeData(**(vars(data) | {"target": truth, "class_names": ("a", "b")}))
    path = write(several, tmp_path / "g.npz")
    heads = {"heads": 2} if model == "gat" else {}
    result = nodes.train(settings(path, model=model, batch_size=30, epochs=16, lr=0.1, **heads))
    assert result["test"].keys() == {"micro_F1"} and result["test"]["micro_F1"] > 90
    found = list(nodes.predictions(Run.open(tmp_path / "run"), str(path), data.test, 2, 0.5))
    told = torch.tensor(
        [[c in {x["class"] for x in line["classes"]} for c in (0, 1)] for line in found]
    )
    right = 2 * (told & truth[data.test]).sum() / (told.sum() + truth[data.test].sum())
    assert 100 * right.item() == pytest.approx(result["test"]["micro_F1"], abs=0.01)


def test_predictions_for_nodes_never_seen(tmp_path: Path) -> None:
    """A graph that has grown needs no classes: old nodes keep theirs, new ones get some."""
    data = planted_graph(n=300, classes=3, dim=12)
    path = write(data, tmp_path / "g.npz")
    result = nodes.train(settings(path, epochs=3))
    run = Run.open(tmp_path / "run")
    ids = load_nodes(str(path)).test
    found = list(nodes.predictions(run, str(path), ids, 1, None))
    right = [line["classes"][0]["class"] == data.target[line["node"]] for line in found]
    assert 100 * sum(right) / len(right) == pytest.approx(result["test"]["accuracy"])

    x = torch.cat([data.features.to_dense(), torch.eye(12)[:1]])
    edges = torch.stack([data.graph.indices, data.graph.row_ids()])
    edges = torch.cat([edges, torch.tensor([[0, 1], [300, 300]])], 1)
    np.savez(tmp_path / "grown.npz", x=x.numpy(), edge_index=edges.numpy())
    both = torch.tensor([300, int(ids[0])])
    new, old = nodes.predictions(run, str(tmp_path / "grown.npz"), both, 9, None)
    assert old["classes"][:1] == found[0]["classes"]
    assert sum(c["score"] for c in new["classes"]) == pytest.approx(1, abs=1e-3)
    assert [c["name"] for c in new["classes"]] == [str(c["class"]) for c in new["classes"]]
    with pytest.raises(InputError, match=r"nodes: expected ids in \[0, 300\), got 300"):
        list(nodes.predictions(run, str(path), both, 1, None))


def test_only_training_nodes_are_seeds() -> None:
    """An epoch's seeds are the training nodes, each once, with their own classes."""
    data = planted_graph(n=100, classes=2, dim=4)
    asked = Train(source="planted.npz", batch_size=16, fanouts=(2,))
    job = nodes.make_job(data, feature_rows(data.features, 0), asked)
    batches = list(job.loader)
    seeds = torch.cat([batch.seeds for batch in batches])
    assert torch.equal(seeds.sort().values, data.train) and len(batches) == len(job.loader)
    for batch in batches:
        assert batch.target is not None and torch.equal(batch.target, data.target[batch.seeds])


def test_wide_features_keep_their_cosines() -> None:
    """Features wider than the table are projected at random: inner products stay within 1/√d."""
    data = planted_graph(n=100, classes=2, dim=4)
    generator = torch.Generator().manual_seed(0)
    row, col = (
        torch.arange(100).repeat_interleave(20),
        torch.randint(900, (2000,), generator=generator),
    )
    wide = Csr.from_coo(row, col, (100, 900), torch.full((2000,), 20**-0.5)).coalesce()
    data = NodeData(**(vars(data) | {"features": wide}))
    rows, exact = feature_rows(data.features, seed=0), wide.to_dense()
    assert rows.shape == (100, WIDTH)
    error = (rows @ rows.T - exact @ exact.T).std()
    assert 0.5 / WIDTH**0.5 < error < 1.5 / WIDTH**0.5
    assert not torch.equal(rows, feature_rows(data.features, seed=1))


def test_describe_counts(tmp_path: Path) -> None:
    """Nodes, edges, splits and class sizes add up."""
    about = describe(str(write(planted_graph(n=100, classes=4, degree=3), tmp_path / "g.npz")))
    assert (about["nodes"], about["edges"], about["edges_per_node"]) == (100, 300, 3.0)
    assert about["train"] + about["valid"] + about["test"] == 100
    assert about["classes"] == {str(c): 25 for c in range(4)}
    assert (about["nodes_without_edges"], about["features_per_node"]) == (0, 1.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": 3, "dim": 9}, "features: expected 12 columns, as the run's, got 9"),
        ({"classes": 4, "dim": 12}, "expected a model of this graph's size, got size mismatch"),
    ],
)
def test_another_graph_is_refused(tmp_path: Path, other: dict[str, int], message: str) -> None:
    """A model is not judged on other features, though rows be as wide, nor on other classes."""
    path = write(planted_graph(n=300, classes=3, dim=12), tmp_path / "g.npz")
    nodes.train(settings(path, steps=1, batch_size=50))
    path = write(planted_graph(n=360, **other), tmp_path / "other.npz")
    with pytest.raises(InputError, match=message):
        nodes.judge(Run.open(tmp_path / "run"), str(path))
