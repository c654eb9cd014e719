"""Node models: what a node and its neighbors show is learned; what is saved predicts the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import NodeModel
from shoal.core.block import Block
from shoal.core.checkpoint import load
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs import describe, load_nodes
from shoal.data.nodes import NodeData
from shoal.graph.features import WIDTH, feature_rows
from shoal.graph.layers import full_graph
from shoal.graph.residual import ResidualNetwork
from shoal.graph.sage import Sage, SageLayer
from shoal.models.nodes import known_classes
from shoal.tasks import nodes
from tests.graphs import write_graph
from tests.planted import one_hop_accuracy, planted_graph


def small(**options: Any) -> NodeModel:
    """A small model on small batches."""
    options = {"batch_size": 120, "fanouts": (5,), "hidden": 16, "dropout": 0.0} | options
    options = {"baselines": False} | options
    return NodeModel(device="cpu", **options)


def test_one_layer_reaches_the_best_possible_accuracy() -> None:
    """On two planted classes one hop comes within sampling error of the closed-form optimum."""
    data = planted_graph(n=2000, degree=5, homophily=0.8, dim=8)
    accuracy = small(read_classes=False).fit(data, epochs=15).test["accuracy"]
    best = 100 * one_hop_accuracy(degree=5, homophily=0.8, clarity=0.6)
    error = 100 * (0.25 / 400) ** 0.5
    assert abs(accuracy - best) < 3 * error
    assert accuracy > 60 + 2 * error


def test_planted_splits_hold_every_class() -> None:
    """The split is independent of the classes: no split misses one (it once was one class)."""
    for seed in range(3):
        data = planted_graph(n=300, classes=3, dim=12, seed=seed)
        for ids in (data.train, data.valid, data.test):
            assert data.target[ids].bincount(minlength=3).min() > len(ids) / 6


def test_evaluate_is_the_full_graph_accuracy(tmp_path: Path) -> None:
    """What a fit reports is the accuracy of the best model's layer-wise inference."""
    path = write_graph(planted_graph(n=300, classes=3, dim=12), tmp_path / "g.npz")
    result = small(fanouts=(3, 2)).fit(path, out=tmp_path / "run", steps=6)
    data, network = load_nodes(path), ResidualNetwork(SageLayer, 12, 16, 3, layers=2, classes=3)
    network.load_state_dict(load(tmp_path / "run" / "model.safetensors")["model"])
    assert isinstance(data.features, Csr)
    network.read_classes(known_classes(data.target, data.train, 3))
    logits = full_graph(network, data.graph, data.features.to_dense())
    expected = 100 * (logits.argmax(1) == data.target)[data.test].float().mean().item()
    assert result.test["accuracy"] == pytest.approx(expected)
    assert shoal.open(tmp_path / "run").evaluate(path) == result.test


@pytest.mark.parametrize("layer", ["sage", "gat"])
def test_several_classes_a_node(layer: str) -> None:
    """Two truths that the features show are learned, and evaluated by micro-averaged F1."""
    data = planted_graph(n=300, classes=3, dim=6, clarity=1.0)
    truth = torch.stack([data.target == 0, data.target != 1], 1)
    several = NodeData(**(vars(data) | {"target": truth, "class_names": ("a", "b")}))
    heads = {"heads": 2} if layer == "gat" else {}
    model = small(layer=layer, batch_size=30, lr=0.1, **heads)
    result = model.fit(several, epochs=16)
    assert result.test.keys() == {"micro_F1"} and result.test["micro_F1"] > 90
    rows = model.predict(data.test, k=2, threshold=0.5)
    found = torch.tensor([[c in {x.label for x in row} for c in (0, 1)] for row in rows])
    right = 2 * (found & truth[data.test]).sum() / (found.sum() + truth[data.test].sum())
    assert 100 * right.item() == pytest.approx(result.test["micro_F1"], abs=0.01)


def test_predictions_for_nodes_never_seen() -> None:
    """A graph that has grown needs no classes: old nodes keep theirs, new ones get some."""
    data = planted_graph(n=300, classes=3, dim=12)
    model = small(read_classes=False)
    result = model.fit(data, epochs=3)
    rows = model.predict(data.test)
    right = [row[0].label == data.target[v] for v, row in zip(data.test, rows, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(result.test["accuracy"])

    assert isinstance(data.features, Csr)
    x = torch.cat([data.features.to_dense(), torch.eye(12)[:1]])
    edges = torch.stack([data.graph.indices, data.graph.row_ids()])
    edges = torch.cat([edges, torch.tensor([[0, 1], [300, 300]])], 1)
    grown = SimpleNamespace(x=x, edge_index=edges, num_nodes=301)
    both = [300, int(data.test[0])]
    new, old = model.predict(both, grown, k=9)
    assert old[:1] == rows[0] and sum(p.score for p in new) == pytest.approx(1, abs=1e-5)
    assert [p.name for p in new] == [data.class_names[p.label] for p in new]
    assert model.predict(300, grown, k=9) == new
    with pytest.raises(InputError, match=r"nodes: expected ids in \[0, 300\), got 300"):
        model.predict(both)


def test_sparse_and_dense_features_are_read_alike(tmp_path: Path) -> None:
    """One graph saved both ways, wider than what is made dense: neither loses what words tell."""
    generator, n, wide = torch.Generator().manual_seed(0), 600, WIDTH + 44
    target = torch.arange(n) % 3
    # each class has a hundred words, of which a node shows three, and three of any kind
    own = target.repeat_interleave(3) * 100 + torch.randint(100, (3 * n,), generator=generator)
    words = torch.stack([own.view(n, 3), torch.randint(wide, (n, 3), generator=generator)], 1)
    x = torch.zeros(n, wide).scatter_(1, words.flatten(1), 1.0)
    other = torch.randint(n, (2 * n,), generator=generator)
    graph = {"edge_index": torch.stack([other, torch.arange(n).repeat(2)]).numpy()}
    sparse, arrays = Csr.from_dense(x), {"y": target.numpy()} | graph
    np.savez(tmp_path / "dense.npz", x=x.numpy(), **arrays)
    parts = {"indptr": sparse.indptr, "indices": sparse.indices, "data": sparse.values}
    np.savez(
        tmp_path / "sparse.npz",
        **{f"x_{name}": x.numpy() for name, x in parts.items()},
        x_shape=np.array(sparse.shape),
        **arrays,
    )
    model = NodeModel(device="cpu", hidden=16, baselines=False)
    found = [model.fit(tmp_path / f"{x}.npz", steps=100).test for x in ("sparse", "dense")]
    assert found[0] == found[1] and found[0]["accuracy"] > 50  # 33 by chance
    model.save(tmp_path / "saved")
    again = shoal.open(tmp_path / "saved")
    assert again.predict([3, 4], k=3) == model.predict([3, 4], k=3)
    others = [again.predict([3, 4], tmp_path / f"{x}.npz", k=3) for x in ("sparse", "dense")]
    assert others[0] == others[1]


def test_classes_of_neighbors_are_read_but_never_ones_own() -> None:
    """Where features say nothing, neighbors' classes do; a seed's own class changes no output."""
    data = planted_graph(n=600, classes=3, degree=6, homophily=0.9, dim=3, clarity=1 / 3)
    accuracy = {}
    for read in (True, False):
        model = small(read_classes=read, fanouts=(None,))
        accuracy[read] = model.fit(data, epochs=30).test["accuracy"]
    assert accuracy[True] > 80 > 70 > accuracy[False]

    network = ResidualNetwork(SageLayer, 3, 8, 3, layers=1, classes=3).eval()
    known = known_classes(data.target, torch.arange(600), 3)
    other = known_classes((data.target + 1) % 3, torch.arange(600), 3)
    seeds = torch.arange(0, 600, 7)
    blocks = shoal.NeighborSampler(data.graph, [None])(seeds, torch.Generator())
    inner = torch.isin(blocks[0].indices, torch.arange(len(seeds)))
    found = []
    for classes in (known, other):
        network.read_classes(classes)
        found.append(network(blocks, torch.zeros(len(blocks[0].src), 3)))
    row = blocks[0].csr.row_ids()
    alone = torch.ones(len(seeds), dtype=torch.bool)
    alone[row[~inner]] = False  # these read other nodes, whose classes changed
    assert torch.equal(found[0][alone], found[1][alone]) and not torch.equal(*found)


def test_nodes_without_features_are_classified(tmp_path: Path) -> None:
    """Each node is a word of its own, and neighbors' classes are read."""
    data = planted_graph(n=300, classes=2, degree=6, homophily=0.9)
    edges = torch.stack([data.graph.indices, data.graph.row_ids()]).numpy()
    np.savez(tmp_path / "g.npz", edge_index=edges, y=data.target.numpy())
    model = NodeModel(device="cpu", hidden=16, baselines=False)
    result = model.fit(tmp_path / "g.npz", steps=60, out=tmp_path / "run")
    assert result.test["ROC_AUC"] > 85
    assert shoal.open(tmp_path / "run").evaluate() == result.test


@pytest.mark.parametrize("wide", [False, True])
def test_simple_models_are_shown_and_pooled(tmp_path: Path, wide: bool) -> None:
    """What is saved predicts as the pool; a model of several classes has one, too."""
    data = planted_graph(n=300, classes=3, degree=6, homophily=0.8, dim=6)
    if wide:
        x = data.features
        assert isinstance(x, Csr)
        data = NodeData(**(vars(data) | {"features": Csr(x.indptr, x.indices, WIDTH + 1)}))
    model = NodeModel(device="cpu", hidden=16)
    result = model.fit(data, steps=20, out=tmp_path / "run")
    lines = {line["model"]: line for line in result.details["compared"]}
    names = ["network", "linear", "perceptron", "smoothed", "deep", "spread", "pool"]
    assert list(lines) == names
    assert lines["pool"]["test_accuracy"] == pytest.approx(result.test["accuracy"], abs=0.006)
    assert min(line["weight"] for line in lines.values()) >= 0
    best = max(line["valid_accuracy"] for line in lines.values())
    assert lines["pool"]["valid_accuracy"] > best - 5
    again = shoal.open(tmp_path / "run")
    assert again.evaluate(data) == result.test
    assert again.predict([1, 2], data, k=3) == model.predict([1, 2], k=3)


def test_a_small_graph_is_read_as_a_whole() -> None:
    """All neighbors, and half of the training nodes a step, so that the others' classes show."""
    data = planted_graph(n=300, classes=3, dim=6)
    model = NodeModel(device="cpu", hidden=8, baselines=False)
    model.fit(data, steps=1)
    (batch, _) = model.job().loader
    assert len(batch.seeds) == len(data.train) / 2
    near = batch.blocks[-1].csr.degrees()
    assert torch.equal(near, data.graph.degrees()[batch.seeds])


def test_only_training_nodes_are_seeds() -> None:
    """An epoch's seeds are the training nodes, each once, with their own classes."""
    data = planted_graph(n=100, classes=2, dim=4)
    rows = feature_rows(data.features)
    job = nodes.build(data, Sage(rows.shape[1], 8, 2, layers=1), rows, batch_size=16, fanouts=(2,))
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
    path = write_graph(planted_graph(n=100, classes=4, degree=3), tmp_path / "g.npz")
    about = describe(path)
    assert (about["nodes"], about["edges"], about["edges_per_node"]) == (100, 300, 3.0)
    assert about["train"] + about["valid"] + about["test"] == 100
    assert about["classes"] == {str(c): 25 for c in range(4)}
    assert (about["nodes_without_edges"], about["features_per_node"]) == (0, 1.0)


def test_features_without_classes_are_described_and_classes_without_features(tmp_path) -> None:
    """What a file lacks is no reason to refuse what it has."""
    n = torch.arange(30)
    edges, y = torch.stack([n, (n + 1) % 30]).numpy(), (n % 2).numpy()
    np.savez(tmp_path / "y.npz", edge_index=edges, y=y)
    np.savez(tmp_path / "x.npz", edge_index=edges, x=np.eye(30, dtype=np.float32))
    assert describe(tmp_path / "y.npz")["classes"] == {"0": 15, "1": 15}
    assert describe(tmp_path / "x.npz")["features"] == 30


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": 3, "dim": 9}, "features: expected 12 columns, as the model's, got 9"),
        ({"classes": 4, "dim": 12}, "expected the model's 3 classes, got 4"),
    ],
)
def test_another_graph_is_refused(other: dict[str, int], message: str) -> None:
    """A model is not evaluated on other features, though rows be as wide, nor other classes."""
    model = small(batch_size=50)
    model.fit(planted_graph(n=300, classes=3, dim=12), steps=1)
    with pytest.raises(InputError, match=message):
        model.evaluate(planted_graph(n=360, **other))


def test_classes_are_matched_by_name() -> None:
    """A graph that numbers the same classes in another order, or lacks one, is judged alike."""
    data = planted_graph(n=300, classes=3, dim=12)
    data = replace(data, class_names=("ant", "bee", "cat"))
    model = small(batch_size=50)
    found = model.fit(data, steps=40).test
    turned = replace(data, target=(data.target + 1) % 3, class_names=("cat", "ant", "bee"))
    assert model.evaluate(turned) == found
    assert model.predict([1, 2], turned) == model.predict([1, 2], data)
    with pytest.raises(InputError, match="the model's 3 classes, got 3, 'cow' among them"):
        model.evaluate(replace(data, class_names=("ant", "bee", "cow")))


def test_what_is_saved_predicts_the_same(tmp_path: Path) -> None:
    """In memory, saved, and as the folder of its run: the same bits, on its own graph too."""
    path = write_graph(planted_graph(n=120, classes=3, dim=6), tmp_path / "g.npz")
    model = small(batch_size=30, fanouts=(3, 2))
    result = model.fit(path, out=tmp_path / "run", epochs=2)
    model.save(tmp_path / "saved")
    wanted, vectors = model.predict(k=3), model.encode()
    assert len(wanted) == 120 and vectors.shape == (120, 16)
    for folder in (tmp_path / "run", tmp_path / "saved"):
        again = shoal.open(folder)
        assert again.predict(k=3) == wanted and torch.equal(again.encode(), vectors)
        assert again.evaluate() == result.test and again.arguments() == model.arguments()
    assert result.folder == tmp_path / "run" and result.size > 0
    left = {path.name for path in result.folder.iterdir()}
    assert left == {"model.json", "model.safetensors", "settings.json", "log.jsonl"}


def test_hidden_vectors_are_what_the_last_map_reads() -> None:
    """The last linear map of encoded nodes gives the logits; the mode is kept."""
    data = planted_graph(n=60, classes=3, dim=6)
    model = small(batch_size=30, fanouts=(3, 2), dropout=0.5)
    model.fit(data, steps=2)
    network: Any = model.job().objective.model
    network.train()
    logits = network.outward[-1](model.encode())
    torch.testing.assert_close(
        logits.softmax(1).max(1).values,
        torch.tensor([row[0].score for row in model.predict()]),
    )
    assert network.training


class Flat(torch.nn.Module):
    """A layer of a user's own: it reads the node alone."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(in_dim, out_dim)

    def forward(self, block: Block, rows: torch.Tensor) -> torch.Tensor:
        return self.weight(rows[: block.dst.numel()])


def test_a_users_objects_are_arguments(tmp_path: Path) -> None:
    """A layer, a loss, batches, blocks and an optimizer train; opening needs the layer again."""
    data = planted_graph(n=90, classes=3, dim=6, clarity=1.0)
    seen: set[str] = set()

    def loss(outputs, batch):
        seen.add("loss")
        return torch.nn.functional.cross_entropy(outputs, batch.target, label_smoothing=0.1)

    def batches(n, size, seed):
        seen.add("batches")
        return [list(range(i, n, 4)) for i in range(4)]

    def blocks(graph, fanouts):
        seen.add("blocks")
        return shoal.NeighborSampler(graph, [None] * len(fanouts))

    def optimizer(parameters, lr):
        seen.add("optimizer")
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    own = {"loss": loss, "batches": batches, "blocks": blocks, "optimizer": optimizer}
    model = small(layer=Flat, lr=0.5, **own)
    result = model.fit(data, epochs=40)
    assert seen == set(own) and result.steps == 160 and result.test["accuracy"] > 90
    model.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"the layer of the model, .*:Flat, got none; pass layer="):
        shoal.open(tmp_path / "saved")
    again = shoal.open(tmp_path / "saved", layer=Flat)
    assert again.predict([1, 2], data) == model.predict([1, 2])
    with pytest.raises(InputError, match="data: expected the graph to read, got None; pass data="):
        again.predict([1, 2])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, 'heads: expected none, but with layer="gat" or "gatv2", got 4'),
        ({"layer": "gin"}, "layer: expected sage, gcn, gat, gatv2 or a class of layers, got gin"),
        ({"fanouts": ()}, "fanouts: expected one number per layer, got none"),
        ({"lr": 0.0}, "lr: expected a number above 0, got 0.0"),
        ({"layer": "gat", "heads": 3}, "hidden: expected a multiple of the 3 heads, got 16"),
        ({"hidden": 0}, "hidden: expected a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a share in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"precision": "half"}, "precision: expected auto, float32 or bfloat16, got half"),
        ({"device": "nowhere"}, "device: expected a device that torch can use here"),
        ({"host_rows": 3}, "host_rows: expected a run for the file of rows, got None; pass out="),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """Each by its name, before anything is trained."""
    with pytest.raises(InputError, match=message):
        NodeModel(**{"hidden": 16, "device": "cpu"} | options).fit(planted_graph(n=60), steps=1)


def test_a_model_that_is_not_fitted_says_so(tmp_path: Path) -> None:
    """Predicting, evaluating and saving need a fit."""
    for call in (lambda m: m.predict(0), lambda m: m.evaluate(), lambda m: m.save(tmp_path / "x")):
        with pytest.raises(InputError, match="NodeModel: expected a fitted model"):
            call(NodeModel())


def test_batches_shrink_to_the_data() -> None:
    """Fewer training nodes than a batch are one batch."""
    model = NodeModel(hidden=4, device="cpu", fanouts=(2,))
    assert model.fit(planted_graph(n=60), epochs=2).steps == 2


def test_a_fit_after_a_fit_begins_anew() -> None:
    """The second is as the first, also after another graph."""
    one, two = planted_graph(n=90, classes=3, dim=6), planted_graph(n=80, classes=2, dim=6)
    model = small(batch_size=20)
    first = model.fit(one, steps=4)
    rows = model.predict([0, 1])
    model.fit(two, steps=4)
    again = model.fit(one, steps=4)
    assert (again.loss, again.test) == (first.loss, first.test) and model.predict([0, 1]) == rows


def test_an_interrupted_fit_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    """A run that a callback ends midway, resumed, has the weights and metrics of one that is not;
    a finished run that kept no checkpoint is not resumed."""
    data = planted_graph(n=120, classes=3, dim=6)
    options: dict[str, Any] = {"epochs": 4, "valid_every": 1}
    whole = small(batch_size=20)
    result = whole.fit(data, out=tmp_path / "whole", **options)

    class Stop(shoal.Callback):
        def step(self, progress, metrics):
            progress.stopped = "interrupt" if progress.step == 7 else progress.stopped

    out = tmp_path / "cut"
    cut = small(batch_size=20).fit(data, out=out, callbacks=[Stop()], **options)
    assert (cut.stopped, cut.steps, cut.test) == ("interrupt", 7, {})
    assert shoal.open(out).predict(0, data)  # what was trained so far
    with pytest.raises(InputError, match="cut: expected a folder without a run, got a run"):
        small(batch_size=20).fit(data, out=out, **options)
    with pytest.raises(InputError, match=r"lr: expected 0\.01, as the run in"):
        small(batch_size=20, lr=0.1).fit(data, out=out, resume=True, **options)
    model = small(batch_size=20)
    again = model.fit(data, out=out, resume=True, **options)
    assert (again.loss, again.valid, again.test) == (result.loss, result.valid, result.test)
    assert model.predict() == whole.predict()
    with pytest.raises(InputError, match="expected a run with checkpoints, got a finished one"):
        model.fit(data, out=out, resume=True, **options)
    with pytest.raises(InputError, match="expected a folder without a model, got a model"):
        model.fit(data, out=out, **options)


def test_a_directed_graph_is_read_both_ways_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored one way, a graph says so; read both ways, it is the graph with all reverses."""
    n = torch.arange(60)
    y = n % 2
    # every node cites the one after the next, of its own class; features tell nothing
    edges = torch.stack([n, (n + 2) % 60])
    arrays = {"x": torch.ones(60, 2), "y": y}
    np.savez(tmp_path / "one.npz", edge_index=edges, **arrays)
    np.savez(tmp_path / "two.npz", edge_index=torch.cat([edges, edges.flip(0)], 1), **arrays)
    settings: dict[str, Any] = {"baselines": False, "dropout": 0.0, "hidden": 8}
    NodeModel(**settings).fit(tmp_path / "one.npz", steps=3)
    assert "60 of 60 edges have no reverse" in caplog.text
    caplog.clear()
    one = NodeModel(both_ways=True, **settings)
    one.fit(tmp_path / "one.npz", steps=3, out=tmp_path / "run")
    two = NodeModel(**settings)
    two.fit(tmp_path / "two.npz", steps=3)
    assert "reverse" not in caplog.text
    torch.testing.assert_close(one.encode(), two.encode())
    source = tmp_path / "one.npz"  # as a graph without a split, of which no class is known
    again = shoal.open(tmp_path / "run").encode(data=source)
    torch.testing.assert_close(again, one.encode(data=source))
