"""The link job: nothing hidden is read, in-batch and uniform negatives learn what is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs import load_links
from shoal.fetch.unified import unified
from shoal.tasks import links
from shoal.training.run import Run
from tests.planted import planted_graph
from tests.tasks.test_nodes import write


def planted(path: Path, features: bool = True, n: int = 240) -> Path:
    """Four classes; a node's links lie in its own class, and its feature tells the class."""
    data = planted_graph(n=n, classes=4, degree=6, homophily=1.0, dim=4, clarity=1.0)
    if features:
        return write(data, path)
    np.savez(path, indptr=data.graph.indptr, indices=data.graph.indices)
    return path


def settings(path: Path, **options: Any) -> Train:
    options = {"batch_size": 60, "fanouts": (4,), "hidden": 16, "dropout": 0.0} | options
    return Train(source=str(path), task="links", out=path.parent / "run", **options)


@pytest.mark.parametrize("negatives", ["batch", "uniform"])
def test_it_learns_where_links_lie(tmp_path: Path, negatives: str) -> None:
    """A link outranks the nodes of the three other classes and half of its own: AUC near 7/8."""
    path = planted(tmp_path / "g.npz")
    result = links.train(settings(path, negatives=negatives, epochs=12, lr=0.01))
    assert result["test"]["AUC"] > 82
    assert result["test"]["MRR"] > 100 / 60


def test_nodes_without_features_learn_their_rows(tmp_path: Path) -> None:
    """Rows that learn stand in for features; the checkpoint holds them, and judges by them."""
    path = planted(tmp_path / "g.npz", features=False)
    asked = settings(path, epochs=12, lr=0.05, hidden=8)
    result, run = links.train(asked), Run.open(tmp_path / "run")
    losses = [event["loss"] for event in run.log() if event["event"] == "step"]
    assert losses[-1] < 0.9 * losses[0]
    begun = links._new_rows(load_links(str(path)), asked)
    assert not torch.allclose(run.load_model()["rows"], begun.as_subclass(torch.Tensor), atol=0.01)
    assert links.judge(run, str(path)) == result["test"]
    other = planted(tmp_path / "other.npz", features=False, n=120)
    with pytest.raises(InputError, match="other: expected the run's 240 nodes, got 120"):
        links.judge(run, str(other))


@pytest.mark.parametrize("negatives", ["batch", "uniform"])
def test_no_batch_reads_what_it_learns(tmp_path: Path, negatives: str) -> None:
    """No neighborhood holds a link of the batch's pairs, or any hidden one; without, some would."""
    data = load_links(str(planted(tmp_path / "g.npz")))
    job = links.make_job(data, unified(torch.ones(240, 4)), settings(tmp_path, negatives=negatives))
    hidden = {tuple(p) for x in (data.valid, data.test) for p in x.T.tolist()}
    sampler = job.loader.block_sampler
    assert isinstance(sampler, links.LinkSampler)
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
    path = planted(tmp_path / "g.npz")
    links.train(settings(path, epochs=3))
    run, data = Run.open(tmp_path / "run"), load_links(str(path))
    ids = torch.tensor([5, 0, 5])
    found = list(links.predictions(run, str(path), ids, 8, None))
    assert [line["node"] for line in found] == [5, 0, 5] and found[0] == found[2]
    for line in found:
        others = [link["node"] for link in line["links"]]
        known = data.known.rows(torch.tensor([line["node"]])).indices.tolist()
        scores = [link["score"] for link in line["links"]]
        assert len(others) == 8 and not {line["node"], *known} & set(others)
        assert scores == sorted(scores, reverse=True)
    least = found[0]["links"][3]["score"] - 1e-3
    (few,) = links.predictions(run, str(path), ids[:1], 8, least)
    assert few["links"] == [x for x in found[0]["links"] if x["score"] >= least]
    grown = planted(tmp_path / "grown.npz", n=280)
    (new,) = links.predictions(run, str(grown), torch.tensor([279]), 3, None)
    assert len(new["links"]) == 3
    with pytest.raises(InputError, match=r"nodes: expected ids in \[0, 240\), got 279"):
        list(links.predictions(run, str(path), torch.tensor([279]), 3, None))


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
