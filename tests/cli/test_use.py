"""What is done with runs: the newest is found, texts are read, lines are written or nothing is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import shoal as library
from shoal.cli.use import newest_run
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.training.run import Run
from tests.command import result, shoal
from tests.planted import planted_labels

FROZEN = Path(__file__).parents[1] / "frozen"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted data and one run of three steps."""
    folder = tmp_path_factory.mktemp("world")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    options = "--batch-size 12 --cluster-size 4 --dim 8 --steps 3 --keep-resume".split()
    options += ["--rank", "encoder"]
    result("train", "labels", folder / "planted", *options, "--out", folder / "runs" / "one")
    return folder


def test_evaluate_repeats_the_training_result(world: Path) -> None:
    """Again, on its own data or on a copy named by hand, a run has the same metrics."""
    run = world / "runs" / "one"
    test = next(event for event in Run.open(run).log() if event["event"] == "test")
    found = result("evaluate", run)
    assert found["test"].items() <= test.items() and found["test"]
    again = result("evaluate", run, "--source", world / "planted")
    assert again["test"] == found["test"]


def test_the_command_does_what_the_library_does(world: Path) -> None:
    """Predictions of ``shoal predict`` and ``query`` are those of the opened model."""
    run, text = world / "runs" / "one", "w1 w2 w3"
    (row,) = library.open(run).predict([text], k=3)
    labels = result("query", text, "--run", run, "--k", 3)["labels"]
    assert [x["label"] for x in labels] == [x.label for x in row]
    assert [x["score"] for x in labels] == [round(x.score, 3) for x in row]


def test_predict_writes_a_line_per_text(world: Path, tmp_path: Path) -> None:
    """Lines come in the order of the texts, blank ones included, from text and JSON lines."""
    texts = ["w1 w2", "", "nothing that is known"]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    found = []
    for name in ("a.txt", "a.jsonl"):
        words = [world / "runs" / "one", tmp_path / name, "--k", 3, "--out", tmp_path / "out"]
        assert result("predict", *words) == {
            "texts": 3,
            "scores": "cosines",
            "out": str(tmp_path / "out"),
        }
        found.append([json.loads(x) for x in (tmp_path / "out").read_text().splitlines()])
    assert found[0] == found[1] and [line["text"] for line in found[0]] == texts
    assert [len(line["labels"]) for line in found[0]] == [3, 3, 3]


def test_a_threshold_leaves_out_what_scores_less(world: Path, tmp_path: Path) -> None:
    """Labels at or above it stay in order, others go; the command refuses one of cosines."""
    model = library.open(world / "runs" / "one")
    every = model.predict("w1 w2", k=8)
    least = every[3].score
    some = model.predict("w1 w2", k=8, threshold=least)
    assert 0 < len(some) < 8 and some == [x for x in every if x.score >= least]
    (tmp_path / "a.txt").write_text("w1 w2\n")
    words = [world / "runs" / "one", tmp_path / "a.txt", "--k", 8, "--threshold", 0.5]
    found = shoal("predict", *words)
    assert found.refused and not model.probabilities


def test_failed_prediction_leaves_the_old_file(world: Path, tmp_path: Path) -> None:
    """Too small a k is refused before a line is written; what was there stays, nothing is left."""
    (tmp_path / "a.txt").write_text("w1\n")
    (tmp_path / "out").write_text("precious")
    words = ["predict", world / "runs" / "one", tmp_path / "a.txt", "--out"]
    assert shoal(*words, tmp_path / "out", "--k", 0).refused
    assert (tmp_path / "out").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out"]
    assert "got Not a directory" in shoal(*words, tmp_path / "out" / "sub").err


@pytest.mark.parametrize("line", ["{", "[]", '"text"', '{"title": "x"}', '{"text": 3}'])
def test_bad_json_lines_are_named(world: Path, tmp_path: Path, line: str) -> None:
    """The file and the line of a record without a text."""
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n' + line + "\n")
    found = shoal("predict", world / "runs" / "one", tmp_path / "a.jsonl")
    assert found.refused and "a.jsonl:2: expected a" in found.err


def test_newest_run_is_the_last_on_labels(world: Path, tmp_path: Path) -> None:
    """The run whose weights are youngest, of either layout; runs on graphs left out."""
    runs = tmp_path / "runs"
    shutil.copytree(world / "runs" / "one", runs / "one")
    for name, has_lexicon, has_checkpoint in (
        ("nodes", False, True),
        ("killed", True, False),
        ("newer", True, True),
    ):
        (runs / name / "lexicon").mkdir(parents=True) if has_lexicon else (runs / name).mkdir()
        if has_checkpoint:
            (runs / name / "last.safetensors").write_bytes(b"")
    for name in ("model", "last"):
        os.utime(runs / "one" / f"{name}.safetensors", (1, 1))
    assert newest_run(runs) == runs / "newer"
    os.utime(runs / "newer" / "last.safetensors", (0, 0))
    assert newest_run(runs) == runs / "one"
    with pytest.raises(InputError, match="expected a run on labels, got none"):
        newest_run(world)
    with pytest.raises(InputError, match="got nothing there"):
        newest_run(world / "absent")


def test_query_without_known_words(world: Path) -> None:
    """A text of which nothing is known is refused, rather than answered at random."""
    for text in ("", "?!"):
        found = shoal("query", text, "--run", world / "runs" / "one")
        assert found.refused and "text: expected some word that the model knows" in found.err


def test_graphs_find_what_exact_search_finds(world: Path, tmp_path: Path) -> None:
    """Among few labels none is missed; the graph lies in the run, and a damaged one is refused."""
    run = shutil.copytree(world / "runs" / "one", tmp_path / "one")
    found = shoal("evaluate", run, "--search", "hnsw", "--json")
    assert json.loads(found.out) == result("evaluate", run)
    assert "search: built" in found.err and "recall of the ten best labels 1.000" in found.err
    words = ["query", "w1 w2", "--run", run, "--k", 3]
    again = shoal(*words, "--search", "hnsw", "--json")
    assert json.loads(again.out) == result(*words) and "search: read" in again.err
    (index,) = (run / "indexes").iterdir()
    index.write_bytes(b"damaged")
    found = shoal(*words, "--search", "hnsw")
    assert found.status == 2 and "expected a whole index" in found.err


def test_an_explanation_names_rankers_and_examples(tmp_path: Path) -> None:
    """``query --explain`` shows, per label, what spoke for it; as JSON it is in each prediction."""
    words = ["query", "climbing herbs of Asia", "--run", FROZEN / "run", "--k", 2]
    said = shoal(*words, "--explain")
    assert said.status == 0 and "why\n" in said.out and "rankers" in said.out
    found = result(*words, "--explain")["labels"]
    assert all(x["explanation"]["rankers"] for x in found)
    plain = [{k: v for k, v in x.items() if k != "explanation"} for x in found]
    assert plain == result(*words)["labels"]


def test_runs_of_the_first_layout_work_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluate, predict, query, report, export, add: a run of 0.1 and its export."""
    monkeypatch.chdir(shutil.copytree(FROZEN, tmp_path / "frozen"))
    found = shoal("evaluate", "run", "--json")
    assert json.loads(found.out)["test"]["P@1"] > 50 and "test rows were others" in found.err
    Path("a.txt").write_text("climbing herbs\n")
    for run in ("run", "export"):
        (line,) = result("predict", run, "a.txt", "--k", 2)["predictions"]
        assert len(line["labels"]) == 2
    assert Path(result("report", "run")["report"]).exists()
    Path("new.json").write_text('{"uid": "new", "title": "climbing zebra"}\n')
    about = result("add", "run", "new.json", "--out", "more")
    assert about["added"] == 1
    (top, *_) = result("query", "climbing zebra", "--run", "more", "--k", 1)["labels"]
    assert top["label"] == "new"
    for run in ("nodes-run", "links-run"):
        assert result("evaluate", run)["test"]
