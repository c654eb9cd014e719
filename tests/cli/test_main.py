"""The command: one object or a readable table on standard output, one line for what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cli import main as cli
from shoal.core.checkpoint import same_tensors
from shoal.data.formats import xc
from shoal.tasks import TASKS
from shoal.training.callbacks import RunLog
from shoal.training.run import Run
from tests.command import ONE_LINE, result, shoal
from tests.graphs import write_graph
from tests.planted import planted_graph, planted_labels

SMALL = "--batch-size 12 --cluster-size 4 --dim 8".split()
TWICE = ["--valid", "0.5"]  # held out in two folds, not in ten
GRAPH = "--batch-size 12 --hidden 4 --fanouts 2".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted labels, a planted graph, and a finished run of each task under runs/."""
    folder = tmp_path_factory.mktemp("world")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    write_graph(planted_graph(n=90, classes=3, dim=6), folder / "graph.npz")
    (folder / "texts.txt").write_text("w1 w2\n\nnothing known\n")
    (folder / "table.csv").write_text("text,labels\n" + "red mug,red|cup\nblue hat,hat\n" * 10)
    (folder / "nodes.txt").write_text("0\n7\n")
    labels = ["train", "labels", folder / "planted", "--steps", 3, *SMALL]
    nodes = [folder / "graph.npz", "--steps", 3, *GRAPH]
    result(*labels, "--rank", "encoder", "--out", folder / "runs" / "a", "--keep-resume")
    result("train", "nodes", *nodes, "--out", folder / "runs" / "b", "--keep-resume")
    result("train", "links", *nodes, "--out", folder / "runs" / "c")
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in the folder of planted things."""
    monkeypatch.chdir(world)
    return world


VERBS: dict[str, tuple[list[str], set[str]]] = {
    "data": (["data", "planted"], {"train", "test", "labels"}),
    "data of a graph": (["data", "graph.npz"], {"nodes", "edges", "classes"}),
    "cluster": (
        ["cluster", "planted", "--sample", "20", *SMALL],
        {"seconds", "hard_negative_recall"},
    ),
    "train": (
        ["train", "labels", "planted", "--steps", "2", *SMALL, *TWICE],
        {"run", "loss", "test"},
    ),
    "train nodes": (["train", "nodes", "graph.npz", "--steps", "2", *GRAPH], {"run", "test"}),
    "train links": (["train", "links", "graph.npz", "--steps", "2", *GRAPH], {"run", "test"}),
    "train attention": (
        ["train", "nodes", "graph.npz", "--model", "gat", "--heads", "2", "--steps", "2", *GRAPH],
        {"run", "loss", "test"},
    ),
    "evaluate": (["evaluate", "runs/a"], {"test"}),
    "evaluate links": (["evaluate", "runs/c"], {"test"}),
    "report of links": (["report", "runs/c"], {"run", "report"}),
    "predict classes": (["predict", "runs/b", "nodes.txt"], {"nodes", "predictions"}),
    "predict links": (["predict", "runs/c", "nodes.txt"], {"nodes", "predictions"}),
    "evaluate nodes": (["evaluate", "runs/b"], {"test"}),
    "report": (["report", "runs/a"], {"run", "report"}),
    "report of nodes": (["report", "runs/b"], {"run", "report"}),
    "predict": (["predict", "runs/a", "texts.txt"], {"texts", "predictions"}),
    "query": (["query", "w1 w2", "--run", "runs/a"], {"text", "labels"}),
    "plan": (["plan", "graph.npz", "--batch-size", "5"], {"rows", "tiers", "ms_a_batch", "code"}),
    "gather": (
        "gather --mib 1 --disk-mib 1 --rows 9 --repeats 1 --widths 64".split(),
        {"threads", "gathers"},
    ),
    "info": (["info"], {"shoal", "torch", "devices", "extras"}),
}


# progress, and what is logged: a line per epoch, warnings
PROGRESS = re.compile(r"(([\w, ]+: epoch \d+, loss .*|shoal: WARNING: .*)\n)*")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", VERBS)
def test_every_verb_speaks_to_people_and_programs(name: str, tmp_path: Path) -> None:
    """With --json standard output is one JSON object; else words; stderr has progress alone."""
    words, keys = VERBS[name]
    out = ["--out", tmp_path / "json"] if words[0] == "train" else []
    found = shoal(*words, *out, "--json")
    assert found.status == 0 and PROGRESS.fullmatch(found.err), found.err
    about = json.loads(found.out)
    assert isinstance(about, dict) and keys <= about.keys()
    assert found.out == json.dumps(about) + "\n" and "NaN" not in found.out
    out = ["--out", tmp_path / "words"] if words[0] == "train" else []
    said = shoal(*words, *out)
    assert said.status == 0 and PROGRESS.fullmatch(said.err) and said.out.count("\n") >= 2


@pytest.mark.usefixtures("here")
def test_training_ends_with_a_table_and_the_next_step(tmp_path: Path) -> None:
    """Metrics are a table of kinds and k, in per cent; the last line is a command that works."""
    said = shoal(*SMALL_TRAIN, "--out", tmp_path / "run").out
    assert re.search(r"test, per cent\n +@1 +@3 +@5\n +P( +\d+\.\d\d){3}\n +nDCG", said)
    assert said.endswith(f"shoal report {tmp_path / 'run'}\n")
    assert shoal(*said.splitlines()[-1].split()[2:]).status == 0


@pytest.mark.usefixtures("here")
def test_predictions_are_lines_or_a_file(tmp_path: Path) -> None:
    """Without --json standard output is JSON lines alone; with --out they are in the file."""
    lines = [json.loads(x) for x in shoal("predict", "runs/a", "texts.txt").out.splitlines()]
    assert [line["text"] for line in lines] == ["w1 w2", "", "nothing known"]
    about = result("predict", "runs/a", "texts.txt", "--out", tmp_path / "p.jsonl")
    assert about == {"texts": 3, "scores": "cosines", "out": str(tmp_path / "p.jsonl")}
    assert [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()] == lines


@pytest.mark.usefixtures("here")
def test_query_finds_the_newest_run_on_labels() -> None:
    """Without --run the newest run on labels under runs/ answers, though one on nodes is newer."""
    assert shoal("query", "w1 w2").out == shoal("query", "w1 w2", "--run", "runs/a").out


@pytest.mark.usefixtures("here")
def test_table_of_texts_trains_evaluates_and_predicts(tmp_path: Path) -> None:
    """A user's own CSV file is enough to train and to ask; columns of any name, as the run knows.

    The table is read as one by predict too: its text column, not its lines.
    """
    text = Path("table.csv").read_text().replace("text,labels", "Body,Tags").replace("|", ";")
    (tmp_path / "own.csv").write_text(text)
    columns = ["--text-column", "Body", "--labels-column", "Tags", "--separator", ";"]
    words = [tmp_path / "own.csv", *columns, "--steps", 4, "--batch-size", 4, "--dim", 8]
    run = ["--out", tmp_path / "run"]
    trained = result("train", "labels", *words, "--cluster-size", 2, "--valid", 0, *run)
    assert result("evaluate", tmp_path / "run").get("test") == trained.get("test")
    found = result("query", "mug", "--run", tmp_path / "run", "--k", 3)
    assert {x["title"] for x in found["labels"]} == {"red", "cup", "hat"}
    lines = result("predict", tmp_path / "run", tmp_path / "own.csv")["predictions"]
    assert [line["text"] for line in lines[:2]] == ["red mug", "blue hat"] and len(lines) == 20


SMALL_TRAIN = ["train", "labels", "planted", "--steps", "2", *SMALL, *TWICE]
NODES_TRAIN = ["train", "nodes", "graph.npz", "--steps", "2", *GRAPH]
LOOK = ["cluster", "planted", *SMALL]
BAD: dict[str, list[str]] = {
    "no such command": ["trian"],
    "no command": [],
    "no such task": ["train", "label", "planted"],
    "no task": ["train", "planted"],
    "no such module": ["train", "absent_module:task", "planted"],
    "no task in a module": ["train", "json:dumps", "planted"],
    "no such config": ["train", "labels", "--config", "absent.toml"],
    "no such data": ["data", "absent"],
    "no such data to train": ["train", "labels", "absent"],
    "a graph for labels": ["train", "labels", "graph.npz"],
    "texts for nodes": ["train", "nodes", "table.csv"],
    "a column that is missing": ["data", "table.csv", "--text-column", "body"],
    "columns of a folder": ["data", "planted", "--text-column", "body"],
    "no such encoding": ["data", "table.csv", "--encoding", "utf-99"],
    "no such graph": ["data", "absent.npz"],
    "a graph to cluster": ["cluster", "graph.npz"],
    "no such format": ["convert", "planted", "x", "--to", "docx"],
    "device not here": [*SMALL_TRAIN, "--device", "cuda:99"],
    "device unknown": [*SMALL_TRAIN, "--device", "banana"],
    "batch of cut clusters": [*SMALL_TRAIN, "--batch-size", "13"],
    "batch size 0": [*SMALL_TRAIN, "--batch-size", "0"],
    "cluster size 0": [*SMALL_TRAIN, "--cluster-size", "0"],
    "cluster size 0 to look at": ["cluster", "planted", "--cluster-size", "0"],
    "sample 0": [*LOOK, "--sample", "0"],
    "dim 0 to look at": [*LOOK, "--dim", "0"],
    "seed negative to look at": [*LOOK, "--seed", "-1"],
    "negative steps": [*SMALL_TRAIN, "--steps", "-1"],
    "no epochs": [*SMALL_TRAIN, "--epochs", "0"],
    "minutes NaN": [*SMALL_TRAIN, "--minutes", "nan"],
    "patience without validation": [*SMALL_TRAIN, "--patience", "1", "--valid", "0"],
    "lr NaN": [*SMALL_TRAIN, "--lr", "nan"],
    "lr NaN for nodes": [*NODES_TRAIN, "--lr", "nan"],
    "lr 0": [*SMALL_TRAIN, "--lr", "0"],
    "lr infinite": [*SMALL_TRAIN, "--lr", "inf"],
    "seed negative": [*SMALL_TRAIN, "--seed", "-1"],
    "seed negative for nodes": [*NODES_TRAIN, "--seed", "-1"],
    "valid 1": [*SMALL_TRAIN, "--valid", "1"],
    "valid NaN": [*SMALL_TRAIN, "--valid", "nan"],
    "valid_every 0": [*SMALL_TRAIN, "--valid-every", "0"],
    "dim 0": [*SMALL_TRAIN, "--dim", "0"],
    "positives 0": [*SMALL_TRAIN, "--positives", "0"],
    "an option of transformers": [*SMALL_TRAIN, "--max-length", "9"],
    "an option of clusters": [*SMALL_TRAIN, "--batches", "random"],
    "no such step rule": [*SMALL_TRAIN, "--step", "banana"],
    "no such loss": [*SMALL_TRAIN, "--loss", "math:absent"],
    "no such layer": [*NODES_TRAIN, "--model", "banana"],
    "no fanouts": [*NODES_TRAIN, "--fanouts"],
    "fanout -2": [*NODES_TRAIN, "--fanouts", "-2"],
    "hidden 0": [*NODES_TRAIN, "--hidden", "0"],
    "dropout 1": [*NODES_TRAIN, "--dropout", "1"],
    "heads for sage": [*NODES_TRAIN, "--heads", "2"],
    "heads that do not divide": [*NODES_TRAIN, "--model", "gat", "--heads", "3"],
    "predict no node": ["predict", "runs/b", "nodes.txt", "--source", "absent.npz"],
    "predict nodes by a graph of search": ["predict", "runs/b", "nodes.txt", "--search", "hnsw"],
    "predict texts of a graph": ["predict", "runs/a", "texts.txt", "--source", "graph.npz"],
    "query of nodes": ["query", "w1", "--run", "runs/b"],
    "export of nodes": ["export", "runs/b", "runs/x"],
    "add to nodes": ["add", "runs/b", "texts.txt", "--out", "runs/x"],
    "serve nodes": ["serve", "runs/b", "--port", "0"],
    "out below a file": [*SMALL_TRAIN, "--out", "texts.txt/sub"],
    "out is a file": [*SMALL_TRAIN, "--out", "texts.txt"],
    "out is taken": [*SMALL_TRAIN, "--out", "runs/a"],
    "out is taken by nodes": [*SMALL_TRAIN, "--out", "runs/b"],
    "resume with another seed": [*SMALL_TRAIN, "--out", "runs/a", "--resume", "--seed", "9"],
    "evaluate no run": ["evaluate", "absent"],
    "evaluate data": ["evaluate", "planted"],
    "evaluate on another kind": ["evaluate", "runs/a", "--source", "graph.npz"],
    "evaluate nodes on labels": ["evaluate", "runs/b", "--source", "planted"],
    "report of no run": ["report", "absent"],
    "report below a file": ["report", "runs/a", "--out", "texts.txt/sub"],
    "predict from no run": ["predict", "absent", "texts.txt"],
    "predict from nodes": ["predict", "runs/b", "texts.txt"],
    "predict no file": ["predict", "runs/a", "absent.txt"],
    "predict below a file": ["predict", "runs/a", "texts.txt", "--out", "texts.txt/sub"],
    "predict a run": ["predict", "runs/a", "runs/a"],
    "predict into a folder": ["predict", "runs/a", "texts.txt", "--out", "runs"],
    "query nothing known": ["query", "???", "--run", "runs/a"],
    "query none": ["query", "w1", "--run", "runs/a", "--k", "0"],
    "plan of nothing": ["plan"],
    "plan of no graph": ["plan", "table.csv"],
    "plan for no device": ["plan", "graph.npz", "--device", "cuda:99"],
    "rows in memory, negative": [*NODES_TRAIN, "--host-rows", "-1"],
    "a device without numbers": [*NODES_TRAIN, "--device", "meta"],
    "gather of odd widths": ["gather", "--widths", "3"],
    "spectrum of nothing": ["spectrum", "absent"],
}


@pytest.mark.usefixtures("unchecked", "here")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, tmp_path: Path) -> None:
    """Each says in one line what was expected, what came and what to do; status 2, no result."""
    words = BAD[name]
    if words[:1] == ["train"] and "--out" not in words and len(words) > 3:
        words = [*words, "--out", str(tmp_path / "run")]
    found = shoal(*words, *(["--json"] if len(words) > 1 else []))
    lines = [line for line in found.err.splitlines(True) if not line.startswith("shoal: WARNING")]
    assert found.status == 2 and found.out == "" and ONE_LINE.fullmatch("".join(lines)), found
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_mistyped_names_get_the_nearest(tmp_path: Path) -> None:
    """Of a command, a task, a flag and a key of a file."""
    assert "did you mean train?" in shoal("trian").err
    assert "did you mean labels?" in shoal("train", "lables", "planted").err
    assert "--batch-size" in shoal(*SMALL_TRAIN, "--bacth-size", "8").err
    (tmp_path / "a.toml").write_text('task = "labels"\ncluster-sise = 8\n')
    found = shoal("train", "--config", tmp_path / "a.toml")
    assert found.refused and "did you mean cluster-size?" in found.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("size", ["4096", "13", "50", "7"])
def test_a_remedy_that_is_followed_leads_on(size: str, tmp_path: Path) -> None:
    """A batch size that does not fit is shrunk, or refused with sizes that train."""
    words = ["train", "labels", "planted", "--steps", 1, "--dim", 8, "--valid", 0]
    words += ["--cluster-size", 4]
    found = shoal(*words, "--batch-size", size, "--out", tmp_path / "run")
    if found.status:
        assert ONE_LINE.fullmatch(found.err)
        for offered in re.findall(r"\d+", found.err.partition("; ")[2]):
            again = shoal(*words, "--batch-size", offered, "--out", tmp_path / offered)
            assert again.status == 0, again.err


@pytest.mark.usefixtures("here")
@pytest.mark.whole
def test_a_run_writes_what_trains_it_again(tmp_path: Path) -> None:
    """From run.toml alone a run gives the same bits and metrics; flags overrule it."""
    first = result(*SMALL_TRAIN, "--lr", "0.05", "--keep-resume", "--out", tmp_path / "a")
    config = ["--config", tmp_path / "a" / "run.toml"]
    again = result("train", *config, "--out", tmp_path / "b")
    assert again["test"] == first["test"] and again["loss"] == first["loss"]
    assert same_tensors(last_of(tmp_path / "a"), last_of(tmp_path / "b"))
    text = (tmp_path / "a" / "run.toml").read_text()
    assert (tmp_path / "b" / "run.toml").read_text() == text and "lr = 0.05" in text
    other = result("train", "labels", *config, "--steps", 1, "--out", tmp_path / "c")
    assert other["steps"] == 1


def last_of(folder: Path) -> dict[str, Any]:
    """A run's last checkpoint but for its seconds."""
    return Run.open(folder).load_last() | {"progress": {}}


@pytest.mark.usefixtures("here")
def test_config_of_another_task_is_refused() -> None:
    """A file names its task; another one on the command line is a mistake."""
    found = shoal("train", "labels", "planted", "--config", "runs/b/run.toml")
    assert found.refused and "expected labels, got 'nodes'" in found.err


TOY = """
from dataclasses import dataclass
from pathlib import Path

import shoal
from shoal.tasks.settings import Training

@dataclass(frozen=True, kw_only=True)
class ToySettings(Training):
    '''Learn nothing, quickly.'''
    size: int = 3
    '''How much.'''

class Toy:
    def __init__(self, size):
        self.size = size
    def fit(self, data, *, out, steps=None, callbacks=(), settings=None, **rest):
        Path(out).mkdir(parents=True)
        for callback in callbacks:
            callback.begin(None, None)
        return shoal.Result(Path(out), "steps", steps, 0.0, 1.0 * self.size, test={"P@1": 50.0})

@shoal.task("toy", ToySettings, model="toy_task:Toy")
def task(asked):
    return Toy(asked.size)
"""


def test_a_task_of_ones_own_trains_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in the working folder registers a task: it trains, has help and a run.toml."""
    (tmp_path / "toy_task.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["toy_task:task", "here", "--size", 5, "--steps", 2, "--out", "run"]
    found = result("train", *words)
    assert found["loss"] == 5.0 and found["steps"] == 2 and found["test"] == {"P@1": 50.0}
    assert "--size INT" in shoal("train", "toy_task:task", "--help").out
    config = ["--config", "run/run.toml"]
    assert result("train", "toy_task:task", *config, "--out", "again")["loss"] == 5.0
    TASKS.pop("toy")


@pytest.mark.usefixtures("here")
@pytest.mark.whole
def test_the_module_is_the_command() -> None:
    """``python -m shoal`` refuses what the script refuses, with its status and words."""
    words, path = ["evaluate", "no-such-run"], os.pathsep.join(sys.path)
    ran = subprocess.run(
        [sys.executable, "-m", "shoal", *words],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    script = shoal(*words)
    assert ran.returncode == script.status == 2 and ran.stderr == script.err != ""


def test_no_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host's or a device's memory ends, the command says what to lower."""

    def full(settings: object) -> dict[str, Any]:
        torch.empty(2**60)
        return {}

    monkeypatch.setitem(cli.VERBS, "plan", (cli.VERBS["plan"][0], full))
    found = shoal("plan", "--rows", "9")
    assert found.refused and "--host-rows" in found.err


@pytest.mark.usefixtures("unchecked")
def test_damaged_data_is_one_line(world: Path, tmp_path: Path) -> None:
    """A truncated archive, a matrix cut short, a label beyond the last: file and line are named."""
    whole = (world / "planted" / "trn.json.gz").read_bytes()
    truth = (world / "planted" / "trn_X_Y.txt").read_text().splitlines(keepends=True)
    damages: list[tuple[str, bytes, str]] = [
        ("trn.json.gz", whole[:-20], "trn.json.gz"),
        ("trn.json.gz", b"no archive", "trn.json.gz"),
        ("trn.json.gz", gzip.compress(b'{"uid": "a", "title": "\xff"}\n'), "trn.json.gz:1"),
        ("trn_X_Y.txt", "".join(truth[:-1]).encode(), "trn_X_Y.txt"),
        ("trn_X_Y.txt", "".join([*truth[:-1], "16:1\n"]).encode(), "trn_X_Y.txt:61"),
    ]
    for name, content, where in damages:
        shutil.copytree(world / "planted", tmp_path / "planted", dirs_exist_ok=True)
        (tmp_path / "planted" / name).write_bytes(content)
        found = shoal("train", "labels", tmp_path / "planted", "--out", tmp_path / "run", *SMALL)
        assert found.refused and where in found.err, found


@pytest.mark.usefixtures("unchecked")
def test_damaged_runs_are_one_line(world: Path, tmp_path: Path) -> None:
    """A run that lacks a part, or has a cut or a foreign one, is refused; it is left as it is."""
    cut = (world / "runs" / "a" / "model.safetensors").read_bytes()[:-9]
    nodes = (world / "runs" / "b" / "model.safetensors").read_bytes()
    damages = {
        "cut": ("model.safetensors", cut),
        "another's": ("model.safetensors", nodes),
        "no JSON": ("model.json", b"{"),
        "another format": ("model.json", b'{"format": "other/1"}'),
    }
    for what, (name, content) in damages.items():
        run = shutil.copytree(world / "runs" / "a", tmp_path / what)
        (run / name).write_bytes(content)
        for words in (["query", "w1", "--run", run], ["evaluate", run]):
            found = shoal(*words)
            assert found.refused, (what, found)
        assert (run / name).read_bytes() == content


@pytest.mark.parametrize("files", [["config.json"], ["modules.json", "config.json"], []])
def test_a_model_of_another_library_is_refused(tmp_path: Path, files: list[str]) -> None:
    """A folder of transformers or sentence-transformers, or an empty one, is no run."""
    for name in files:
        (tmp_path / name).write_text('{"model_type": "bert"}')
    for words in (["evaluate", tmp_path], ["report", tmp_path], ["predict", tmp_path, tmp_path]):
        assert shoal(*words).refused


def test_resume_names_the_setting_that_differs(world: Path) -> None:
    """Seed, positives, source: each is named with its value as the run was begun."""
    begun = ["--out", world / "runs" / "a", "--steps", "9", *SMALL, "--rank", "encoder"]
    begun += ["--resume", "--keep-resume"]
    for option, value in (("--positives", 4), ("--seed", 1)):
        found = shoal("train", "labels", world / "planted", *begun, option, value)
        assert found.refused and found.err.startswith(f"shoal: {option.strip('-')}: ex"), found
    found = shoal("train", "labels", world / "table.csv", *begun)
    assert found.err.startswith("shoal: source: expected ") and "as the run" in found.err


def test_longer_budget_continues_a_run(world: Path, tmp_path: Path) -> None:
    """A finished run goes on when it is resumed with more steps, and says so in its log."""
    shutil.copytree(world / "runs" / "a", tmp_path / "run")
    words = ["train", "labels", world / "planted", "--out", tmp_path / "run", *SMALL, "--resume"]
    found = result(*words, "--rank", "encoder", "--steps", "5")
    assert found["steps"] == 5 and found["stopped"] == "steps"
    events = [event["event"] for event in Run.open(tmp_path / "run").log()]
    assert events.count("resume") == 1 and events.count("test") == 2


KILLED = """
import os, signal, torch
torch.set_num_threads(1)
from shoal.cli import main as cli
from shoal.training import run
from shoal.training.callbacks import RunLog
run.Run.save_due = lambda run, since: True
log = RunLog.step
def log_and_die(self, progress, metrics):
    log(self, progress, metrics)
    if progress.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
RunLog.step = log_and_die
cli.main()
"""


@pytest.mark.slow  # tests/test_faults.py kills training, too
def test_killed_process_resumes_to_the_same_numbers(world: Path, tmp_path: Path) -> None:
    """Killed in step 7, a run goes on from step 6's checkpoint and ends as if nothing had been.

    Its run.toml is there already, and says how it was begun.
    """
    words = ["train", "labels", world / "planted", *SMALL, "--steps", "10", "--valid-every", "1"]
    words = [*map(str, words), *TWICE, "--keep-resume"]
    killed = [sys.executable, "-c", KILLED, *words, "--out", str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    died = subprocess.run(killed, env=environment, stderr=subprocess.PIPE, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert Run.open(tmp_path / "killed").load_last()["progress"]["step"] == 6
    assert "steps = 10" in (tmp_path / "killed" / "run.toml").read_text()
    assert shoal(*words, "--out", tmp_path / "killed").refused
    resumed = result(*words, "--out", tmp_path / "killed", "--resume")
    whole = result(*words, "--out", tmp_path / "whole")
    assert resumed["test"] == whole["test"]
    assert same_tensors(last_of(tmp_path / "killed"), last_of(tmp_path / "whole"))


def test_interrupt_saves_and_says_so(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends with status 130 and a run that can be resumed; nothing is evaluated."""
    log = RunLog.step

    def log_and_stop(self: RunLog, progress: Any, metrics: Any) -> None:
        log(self, progress, metrics)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "step", log_and_stop)
    words = ["train", "labels", world / "planted", *SMALL, "--steps", "4"]
    words += [*TWICE, "--out", tmp_path / "run"]
    found = shoal(*words, "--json")
    about = json.loads(found.out)
    assert found.status == 130 and about["stopped"] == "interrupt"
    assert about["steps"] == 2 and "test" not in about
    monkeypatch.setattr(RunLog, "step", log)
    assert result(*words, "--resume")["steps"] == 4


@pytest.mark.usefixtures("here")
def test_warnings_where_a_result_means_less(tmp_path: Path) -> None:
    """Scores that are cosines, and texts without a known word, are logged."""
    (tmp_path / "t.txt").write_text("w1 w2\n???\n")
    words = ["predict", "runs/a", tmp_path / "t.txt"]
    assert "1 of 2 texts hold no known word" in shoal(*words).err
    alone = ["query", "w1 w2", "--run", "runs/a"]
    assert "no probabilities" in shoal(*alone).err and shoal(*alone, "--threshold", 0.1).refused


def test_version_help_and_unknown_words() -> None:
    """--version and -V print one line; help is help; unknown options end with status 2."""
    # unknown: run from its sources, under a name that is not installed
    assert re.fullmatch(r"shoal (\d+\.\d+\.\d+|unknown)\n", shoal("--version").out)
    assert shoal("-V") == shoal("--version") == shoal("version")
    assert shoal("help") == shoal("-h") == shoal("--help") and shoal("help").status == 0
    assert "--version" in shoal("help").out
    assert shoal("help", "train", "labels") == shoal("train", "labels", "--help")
    for words in (["data", "wordnet", "--banana"], ["query"], ["train", "labels"]):
        found = shoal(*words)
        assert found.status == 2 and found.out == "" and "Traceback" not in found.err


def test_completion_is_a_script() -> None:
    """For each shell; it knows the commands, tasks and flags."""
    for shell in ("bash", "zsh"):
        script = shoal("completion", shell).out
        assert "evaluate" in script and "nodes" in script and "--cluster-size" in script


@pytest.mark.parametrize("name", ["train labels", *cli.VERBS])
def test_help_is_plain(name: str) -> None:
    """Each command's help names its positional arguments, and shows neither None nor a type."""
    text = shoal(*name.split(), "--help").out
    assert text.startswith("usage: shoal ") and "None" not in text
    usage = text.partition("\n\n")[0]
    positional = re.sub(r"\[?--[\w-]+( \w+)?\]?", "", usage)
    assert not re.search(r"\b(STR|PATH|INT)\b", positional), usage


HEAVY = """
import sys
from shoal.cli import main as cli
sys.argv = ["shoal", *sys.argv[1:]]
try:
    cli.main()
finally:
    heavy = {"torch", "numpy", "tokenizers", "jaxtyping", "typeguard", "jinja2"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    """--help lists every command, and neither torch nor numpy is imported for it."""
    for words in (["--help"], ["train", "labels", "--help"], ["serve", "--help"]):
        child = [sys.executable, "-c", HEAVY, *words]
        told = subprocess.run(child, capture_output=True, text=True)
        assert told.returncode == 0 and told.stderr == "[]\n"
    text = shoal("--help").out
    assert all(f" {name} " in text for name in cli.VERBS)


def test_closed_pipe_is_silent() -> None:
    """Where nobody reads on (`shoal … | head -0`) the command ends without a word."""
    words = [sys.executable, "-c", "from shoal.cli.main import main; main()", "--version"]
    read, write = os.pipe()
    os.close(read)
    told = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert told.stderr == "" and told.returncode == 0


def run_shell(words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell's line in which $SHOAL is the command."""
    command = f"{sys.executable} -W ignore -m shoal"
    given = os.environ | {"SHOAL": command} | environment
    return subprocess.run(["bash", "-c", words], env=given, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "status", "err"),
    [
        ("$SHOAL --version >/dev/full", 2, "shoal: standard output: expected a place "),
        ("$SHOAL help >&-", 0, ""),
        ("$SHOAL absent 2>&-", 2, ""),
        ("$SHOAL absent <&- >&- 2>&-", 2, ""),
        ("$SHOAL data $'b\\xff.csv'", 2, "shoal: argument: expected text in the encoding "),
    ],
)
def test_streams_and_names_that_others_do_not_have(words: str, status: int, err: str) -> None:
    """A full disk or bytes for a name are one line; where a stream is closed nothing is printed."""
    found = run_shell(words)
    assert (found.returncode, found.stdout) == (status, "")
    assert found.stderr.startswith(err) and found.stderr.count("\n") == (1 if err else 0)


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Else what libraries print would be written into it."""
    code = "from shoal.cli.main import _open_streams as f; f(); import os; n = os.dup(0)"
    assert run_shell(f"{sys.executable} -c '{code}; exit(n)' >&- 2>&-").returncode == 3


def test_letters_that_an_output_lacks_are_escaped() -> None:
    """In ASCII a title is shown by its escapes, and no error."""
    code = 'from shoal.cli import main as m; m._open_streams(); m.say("čaj \\udcff")'
    for encoding, out in (("ascii", "\\u010daj \\udcff\n"), ("utf-8", "čaj \\udcff\n")):
        words = f"{sys.executable} -c '{code}'"
        found = run_shell(words, PYTHONIOENCODING=encoding)
        assert (found.stdout, found.stderr) == (out, "")
