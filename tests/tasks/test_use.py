"""What is done with runs: the newest is found, texts are read, lines are written or nothing is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from shoal.cli.settings import Evaluate, Predict, Query, Train
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.tasks import labels, use
from shoal.training.run import Run
from tests.planted import planted_labels


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted data and one run of three steps."""
    folder = tmp_path_factory.mktemp("world")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    options: dict[str, Any] = {"batch_size": 12, "cluster_size": 4, "dim": 8, "steps": 3}
    labels.train(Train(source=str(folder / "planted"), out=folder / "runs" / "one", **options))
    return folder


def test_evaluate_repeats_the_training_result(world: Path) -> None:
    """Judged again, on its own data or on a copy named by hand, a run has the same metrics."""
    run = world / "runs" / "one"
    test = next(event for event in Run.open(run).log() if event["event"] == "test")
    result = use.evaluate(Evaluate(run=run))
    assert result["test"].items() <= test.items()
    again = use.evaluate(Evaluate(run=run, source=str(world / "planted")))
    assert again["test"] == result["test"]


def test_evaluate_refuses_other_data(world: Path, tmp_path: Path) -> None:
    """Other labels and another kind of data are refused."""
    run = world / "runs" / "one"
    xc.write(planted_labels(n=60, n_labels=17), tmp_path / "other")
    with pytest.raises(InputError, match="expected the labels of the run, got others"):
        use.evaluate(Evaluate(run=run, source=str(tmp_path / "other")))
    with pytest.raises(InputError, match="expected data of the kind of"):
        use.evaluate(Evaluate(run=run, source="wordnet-graph"))


def test_predict_writes_a_line_a_text(world: Path, tmp_path: Path) -> None:
    """Lines come in the order of the texts, blank ones included, from plain text and JSON lines."""
    texts = ["w1 w2", "", "nothing that is known"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    found = []
    for name in ("a.txt", "a.jsonl"):
        asked = Predict(
            run=world / "runs" / "one", texts=tmp_path / name, out=tmp_path / "out.jsonl", k=3
        )
        assert use.predict(asked) == {"texts": 3, "out": str(tmp_path / "out.jsonl")}
        found.append([json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()])
    assert found[0] == found[1] and [line["text"] for line in found[0]] == texts
    assert [len(line["labels"]) for line in found[0]] == [3, 3, 3]
    answer = use.query(Query(text="w1 w2", run=world / "runs" / "one", k=3))["labels"]
    assert [x["uid"] for x in answer] == [x["uid"] for x in found[0][0]["labels"]]


def test_a_threshold_leaves_out_what_scores_less(world: Path, tmp_path: Path) -> None:
    """Labels at or above it stay in their order, in answers and in files; all others go."""
    run = world / "runs" / "one"
    every = use.query(Query(text="w1 w2", run=run, k=8))["labels"]
    least = every[3]["score"] + 0.0005  # between rounded scores
    some = use.query(Query(text="w1 w2", run=run, k=8, threshold=least))["labels"]
    assert 0 < len(some) < 8 and some == [x for x in every if x["score"] >= least]
    (tmp_path / "a.txt").write_text("w1 w2\n")
    asked = Predict(run=run, texts=tmp_path / "a.txt", out=tmp_path / "b", k=8, threshold=least)
    use.predict(asked)
    (line,) = [json.loads(x) for x in (tmp_path / "b").read_text().splitlines()]
    assert [x["uid"] for x in line["labels"]] == [x["uid"] for x in some]


def test_failed_prediction_leaves_the_old_file(world: Path, tmp_path: Path) -> None:
    """Too large a k is refused before a line is written; what was there stays, nothing is left."""
    (tmp_path / "a.txt").write_text("w1\n")
    (tmp_path / "out").write_text("precious")
    asked = {"run": world / "runs" / "one", "texts": tmp_path / "a.txt"}
    with pytest.raises(InputError, match="k: expected at most the 16 keys, got 17"):
        use.predict(Predict(**asked, out=tmp_path / "out", k=17))
    assert (tmp_path / "out").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out"]
    with pytest.raises(InputError, match="a file to write to, got Not a directory"):
        use.predict(Predict(**asked, out=tmp_path / "out" / "sub"))


@pytest.mark.parametrize("line", ["{", "[]", '"text"', '{"title": "x"}', '{"text": 3}'])
def test_bad_json_lines_are_named(world: Path, tmp_path: Path, line: str) -> None:
    """The file and the line of a record without a text."""
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl:2: expected a"):
        use.predict(Predict(run=world / "runs" / "one", texts=tmp_path / "a.jsonl"))


def test_newest_run_is_the_last_labeler(world: Path) -> None:
    """The run whose checkpoint is youngest, runs on nodes and unfinished ones left out."""
    runs = world / "runs"
    for name, has_lexicon, has_checkpoint in (
        ("nodes", False, True),
        ("killed", True, False),
        ("newer", True, True),
    ):
        (runs / name / "lexicon").mkdir(parents=True) if has_lexicon else (runs / name).mkdir()
        if has_checkpoint:
            (runs / name / "last.safetensors").write_bytes(b"")
    os.utime(runs / "one" / "last.safetensors", (1, 1))
    assert use.newest_run(runs) == runs / "newer"
    os.utime(runs / "newer" / "last.safetensors", (0, 0))
    assert use.newest_run(runs) == runs / "one"
    with pytest.raises(InputError, match="expected a run on labels, got none"):
        use.newest_run(world)
    with pytest.raises(InputError, match="got nothing there"):
        use.newest_run(world / "absent")


def test_query_without_known_words(world: Path) -> None:
    """A text of which nothing is known is refused, rather than answered at random."""
    for text in ("", "?!", "zzz"):
        with pytest.raises(InputError, match="text: expected some word that the model knows"):
            use.query(Query(text=text, run=world / "runs" / "one"))


def test_graphs_find_what_exact_search_finds(world: Path, tmp_path: Path, capsys) -> None:
    """Among few labels none is missed; the graph lies in the run until its model is trained on."""
    run = shutil.copytree(world / "runs" / "one", tmp_path / "one")
    assert use.evaluate(Evaluate(run=run, search="hnsw")) == use.evaluate(Evaluate(run=run))
    facts = json.loads(capsys.readouterr().err)
    assert facts["built"] and facts["recall"] == 1.0 and Path(facts["index"]).exists()
    asked: dict[str, Any] = {"text": "w1 w2", "run": run, "k": 3}
    assert use.query(Query(**asked, search="hnsw")) == use.query(Query(**asked))
    assert not json.loads(capsys.readouterr().err)["built"]
    Path(facts["index"]).write_bytes(b"damaged")
    with pytest.raises(InputError, match="expected a whole index"):
        use.query(Query(**asked, search="hnsw"))
    settings = Run.open(run).settings | {"fanouts": (15, 10), "out": run, "resume": True}
    labels.train(Train(**settings))
    assert not Path(facts["index"]).exists()
