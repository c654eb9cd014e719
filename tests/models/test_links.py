"""Link models: nothing hidden is read, in-batch and uniform negatives learn what is planted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal import LinkModel
from shoal.core.checkpoint import load
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs import load_links, load_nodes
from shoal.graph.layers import LinkEncoder
from shoal.graph.sage import Sage
from shoal.tasks import links
from shoal.training.run import Run
from tests.graphs import write_graph, write_links
from tests.planted import planted_graph

NEGATIVES = {"batch": None, "uniform": shoal.PairSampler}


def small(**options: Any) -> LinkModel:
    options = {"batch_size": 60, "fanouts": (4,), "hidden": 16, "heuristics": False} | options
    return LinkModel(device="cpu", **options)


@pytest.mark.parametrize("negatives", ["batch", "uniform"])
def test_it_learns_where_links_lie(tmp_path: Path, negatives: str) -> None:
    """A link outranks the nodes of the three other classes and half of its own: AUC near 7/8."""
    path = write_links(tmp_path / "g.npz")
    result = small(negatives=NEGATIVES[negatives]).fit(path, epochs=12)
    assert result.test["AUC"] > 82
    assert result.test["MRR"] > 100 / 60


def test_nodes_without_features_learn_their_rows(tmp_path: Path) -> None:
    """Trained rows stand in for features; the folder holds them, and predicts by them."""
    path = write_links(tmp_path / "g.npz", features=False)
    model = small(lr=0.05, hidden=8)
    result = model.fit(path, out=tmp_path / "run", epochs=12)
    losses = [x["loss"] for x in Run.open(tmp_path / "run").log() if x["event"] == "step"]
    assert losses[-1] < 0.9 * losses[0]
    begun = shoal.word_rows(240, 8)
    state = load(tmp_path / "run" / "model.safetensors")
    assert not torch.allclose(state["rows"], begun, atol=0.01)
    again = shoal.open(tmp_path / "run")
    assert again.evaluate() == result.test and again.predict([3], k=4) == model.predict([3], k=4)
    other = write_links(tmp_path / "other.npz", features=False, n=120)
    with pytest.raises(InputError, match="other: expected the model's 240 nodes, got 120"):
        again.evaluate(other)
    job = again.job()
    assert job.table is not None and torch.equal(job.table.as_subclass(torch.Tensor), state["rows"])


def test_a_row_rule_of_ones_own_moves_the_rows(tmp_path: Path) -> None:
    """What it makes is asked for once per fit, and its rate decides how far rows move."""
    path, moved = write_links(tmp_path / "g.npz", features=False), []
    for lr in (0.0, 1.0):
        model = small(hidden=8, row_rule=lambda lr=lr: shoal.RowSGD(lr=lr))
        model.fit(path, out=tmp_path / str(lr), steps=3)
        rows = load(tmp_path / str(lr) / "model.safetensors")["rows"]
        moved.append(float((rows - shoal.word_rows(240, 8)).norm()))
    assert moved[0] == 0 < moved[1]


@pytest.mark.parametrize("negatives", ["batch", "uniform"])
def test_no_batch_reads_what_it_learns(tmp_path: Path, negatives: str) -> None:
    """No neighborhood holds a link of the batch's pairs, or any hidden one; without, some would."""
    data = load_links(write_links(tmp_path / "g.npz"))
    encoder = LinkEncoder(Sage(4, 16, 16, layers=1))
    asked = {"batch_size": 60, "fanouts": (4,), "negatives": NEGATIVES[negatives]}
    job = links.build(data, encoder, torch.ones(240, 4), **asked)
    hidden = {tuple(p) for x in (data.valid, data.test) for p in x.T.tolist()}
    sampler = job.loader.block_sampler
    assert isinstance(sampler, shoal.LinkSampler)
    would = 0
    for batch in job.loader:
        *hops, pairs = batch.blocks
        linked = pairs.edges >= 0
        ends = pairs.dst[pairs.csr.row_ids()[linked]], pairs.src[pairs.indices[linked]]
        told = {frozenset(p) for p in zip(*(x.tolist() for x in ends), strict=True)}
        assert told and all(data.train.find(*ends)[0])
        for hop in hops:
            read = hop.src[hop.indices], hop.dst[hop.csr.row_ids()]
            for u, v in zip(*(x.tolist() for x in read), strict=True):
                assert frozenset((u, v)) not in told
                assert (u, v) not in hidden and (v, u) not in hidden
            assert torch.equal(data.graph.indices[hop.edges], read[0])
        (whole,) = sampler.hops(pairs.src, torch.Generator().manual_seed(0))
        read = zip(
            whole.src[whole.indices].tolist(), whole.dst[whole.csr.row_ids()].tolist(), strict=True
        )
        would += sum(frozenset(p) in told for p in read)
    assert would > 0


def test_predictions_are_new_links(tmp_path: Path) -> None:
    """No link that is known, never the node itself, best first; a grown graph serves new nodes."""
    path = write_graph(planted_graph(n=240, classes=4, degree=6, dim=12), tmp_path / "g.npz")
    model, data = small(), load_links(path)
    model.fit(path, epochs=3)
    ids = torch.tensor([5, 0, 5])
    found = model.predict(ids, k=8)
    assert len(found) == 3 and found[0] == found[2]
    assert [x.node for x in model.predict(5, k=8)] == [x.node for x in found[0]]
    for node, row in zip(ids.tolist(), found, strict=True):
        others, scores = [x.node for x in row], [x.score for x in row]
        known = data.known.rows(torch.tensor([node])).indices.tolist()
        assert len(others) == 8 and not {node, *known} & set(others)
        assert scores == sorted(scores, reverse=True)
        pairs = [(node, other) for other in others]
        assert model.score(pairs).tolist() == pytest.approx(scores, abs=1e-6)
    least = (found[0][3].score + found[0][4].score) / 2
    kept = [x.node for x in found[0] if x.score >= least]
    assert [x.node for x in model.predict(5, k=8, threshold=least)] == kept
    some = model.predict(5, k=8, candidates=[1, 2, 3, 5])
    assert {x.node for x in some} <= {1, 2, 3}
    grown = write_graph(planted_graph(n=280, classes=4, dim=12), tmp_path / "grown.npz")
    assert len(model.predict(279, grown, k=3)) == 3
    assert model.encode([1, 2]).norm(dim=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match=r"nodes: expected ids in \[0, 240\), got 279"):
        model.predict(279)
    with pytest.raises(InputError, match=r"pairs: expected pairs of nodes, \[p, 2\]"):
        model.score([1, 2])


def test_nodes_to_classify_have_links_to_predict(tmp_path: Path) -> None:
    """NodeData's edges are split as those of its file are."""
    path = write_links(tmp_path / "g.npz")
    one, two = (small().fit(x, steps=4) for x in (path, load_nodes(path)))
    assert (one.loss, one.test) == (two.loss, two.test)


def test_ranking_is_the_literal_one() -> None:
    """Against a loop over nodes: known links and oneself are no candidates, ties count half."""
    from shoal.core.graph_metrics import link_metrics, link_ranks

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-2, 3, (12, 3), generator=generator).float()
    known = Csr.from_dense(torch.rand(12, 12, generator=generator) < 0.3)
    pairs = torch.stack([known.row_ids(), known.indices])
    ranks, against = link_ranks(rows, pairs, known)
    dense = known.to_dense().bool()
    for (u, v), rank, many in zip(pairs.T.tolist(), ranks.tolist(), against.tolist(), strict=True):
        others = [w for w in range(12) if w != u and w != v and not dense[u, w]]
        score = [float(rows[u] @ rows[w]) for w in others]
        own = float(rows[u] @ rows[v])
        assert many == len(others)
        assert rank == 1 + sum(s > own for s in score) + sum(s == own for s in score) / 2
    told = link_metrics(ranks, against, ks=(1, 12))
    assert told["hits@12"] == 100 > told["AUC"] > told["MRR"] > told["hits@1"] > 0


def dense_scores(graph: Csr, u: int, v: int) -> dict[str, float]:
    """The definitions, by loops over sets."""
    links = graph.to_dense() > 0
    near = [set(row.nonzero().flatten().tolist()) for row in links]
    common, degree = near[u] & near[v], [len(x) for x in near]
    walk = sum(
        1 / degree[u] / degree[a] / degree[b] for a in near[u] for b in near[a] if v in near[b]
    )
    return {
        "common_neighbors": math.log1p(len(common)),
        "adamic_adar": math.log1p(sum(1 / math.log(max(degree[w], 2)) for w in common)),
        "resource_allocation": math.log1p(sum(1 / degree[w] for w in common)),
        "walks": math.log1p(1e3 * walk),
        "reached": float(walk > 0),
        "degree": math.log1p(degree[v]),
    }


def test_heuristics_are_their_definitions() -> None:
    """Every score of every pair, against loops."""
    generator = torch.Generator().manual_seed(0)
    half = torch.rand(14, 14, generator=generator) < 0.15
    graph = Csr.from_dense((half | half.T) & ~torch.eye(14, dtype=torch.bool)).with_values(None)
    x = torch.rand(14, 5, generator=generator)
    scorer = shoal.LinkScorer(graph, torch.eye(14), x)
    found = dict(zip(scorer.names, scorer.scores(torch.arange(14)), strict=True))
    unit = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found["features"], unit @ unit.T)
    for u in range(14):
        for v in range(14):
            for name, value in dense_scores(graph, u, v).items():
                assert float(found[name][u, v]) == pytest.approx(value, abs=1e-4), name


def test_a_bipartite_graph_gets_links_across(tmp_path: Path) -> None:
    """Users and items of four tastes, without features: no user is proposed to a user, and the sum
    of scores ranks at least as well as the best of them."""
    generator = torch.Generator().manual_seed(0)
    users, items = (
        torch.arange(160).repeat_interleave(8),
        torch.randint(25, (1280,), generator=generator),
    )
    items = 160 + items * 4 + users % 4
    edges = torch.cat([torch.stack([users, items]), torch.stack([items, users])], 1)
    np.savez(tmp_path / "g.npz", edge_index=edges.unique(dim=1).numpy())
    model = LinkModel(device="cpu", hidden=16)
    result = model.fit(tmp_path / "g.npz", steps=60, out=tmp_path / "run")
    lines = {line["score"]: line["test_MRR"] for line in result.details["compared"]}
    assert lines["pool"] == pytest.approx(result.test["MRR"], abs=0.006)
    assert lines["pool"] > max(lines.values()) - 1
    rows = model.predict(list(range(160)), k=5)
    assert sum(x.node < 160 for row in rows for x in row) < 8  # of 800
    again = shoal.open(tmp_path / "run")
    assert again.evaluate() == result.test and again.predict(3) == model.predict(3)
    pairs = [(3, x.node) for x in model.predict(3)]
    assert model.score(pairs).tolist() == pytest.approx(
        [x.score for x in model.predict(3)], rel=1e-4
    )
