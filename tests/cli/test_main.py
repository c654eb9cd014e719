"""The command: one object or a readable table on standard output, one line for what is wrong."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import shoal.cli.settings
from shoal.cli import main as cli
from shoal.cli.settings import Train
from shoal.core.checkpoint import same_tensors
from shoal.data.formats import xc
from shoal.tasks.common import OPTIONS_OF
from shoal.training.callbacks import RunLog
from shoal.training.run import Run
from tests.planted import planted_graph, planted_labels
from tests.tasks.test_nodes import write as write_graph
from tests.training.test_loop import last_of

SMALL = "--batch-size 12 --cluster-size 4 --dim 8".split()
GRAPH = "--batch-size 12 --hidden 4 --fanouts 2".split()
ONE_LINE = re.compile(r"shoal: [^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\n")


class Outcome(NamedTuple):
    """What a command left: its status and its two streams."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Outcome(int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted labels, a planted graph, and a finished run of each job under runs/."""
    folder = tmp_path_factory.mktemp("world")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    write_graph(planted_graph(n=90, classes=3, dim=6), folder / "graph.npz")
    (folder / "texts.txt").write_text("w1 w2\n\nnothing known\n")
    (folder / "table.csv").write_text("text,labels\n" + "red mug,red|cup\nblue hat,hat\n" * 10)
    runs = folder / "runs"
    options: dict[str, Any] = {"steps": 3, "batch_size": 12}
    source = str(folder / "planted")
    assert cli.run(Train(source=source, out=runs / "a", cluster_size=4, dim=8, **options)) == 0
    source = str(folder / "graph.npz")
    small: dict[str, Any] = {"source": source, "hidden": 4, "fanouts": (2,), **options}
    assert cli.run(Train(out=runs / "b", **small)) == 0
    assert cli.run(Train(out=runs / "c", task="links", **small)) == 0
    (folder / "nodes.txt").write_text("0\n7\n")
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
    "train": (["train", "planted", "--steps", "2", *SMALL], {"run", "loss", "test"}),
    "train nodes": (["train", "graph.npz", "--steps", "2", *GRAPH], {"run", "loss", "test"}),
    "train links": (
        ["train", "graph.npz", "--task", "links", "--steps", "2", *GRAPH],
        {"run", "loss", "test"},
    ),
    "train attention": (
        ["train", "graph.npz", "--model", "gat", "--heads", "2", "--steps", "2", *GRAPH],
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
}


PROGRESS = re.compile(r"(train: epoch \d+, loss .*\n)*")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", VERBS)
def test_every_verb_speaks_to_people_and_programs(
    name: str, command: Command, tmp_path: Path
) -> None:
    """With --json standard output is one JSON object; else words; stderr has progress alone."""
    words, keys = VERBS[name]
    out = ["--out", str(tmp_path / "json")] if words[0] == "train" else []
    told = command(*words, *out, "--json")
    assert told.status == 0 and PROGRESS.fullmatch(told.err)
    result = json.loads(told.out)
    assert isinstance(result, dict) and keys <= result.keys()
    assert told.out == json.dumps(result) + "\n" and "NaN" not in told.out
    out = ["--out", str(tmp_path / "words")] if words[0] == "train" else []
    said = command(*words, *out)
    assert said.status == 0 and PROGRESS.fullmatch(said.err) and said.out.count("\n") >= 2


@pytest.mark.usefixtures("here")
def test_predictions_are_lines_or_a_file(command: Command, tmp_path: Path) -> None:
    """Without --json standard output is JSON lines alone; with --out they are in the file."""
    lines = [json.loads(x) for x in command("predict", "runs/a", "texts.txt").out.splitlines()]
    assert [line["text"] for line in lines] == ["w1 w2", "", "nothing known"]
    told = command("predict", "runs/a", "texts.txt", "--out", tmp_path / "p.jsonl", "--json")
    assert json.loads(told.out) == {"texts": 3, "out": str(tmp_path / "p.jsonl")}
    assert [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()] == lines
    (tmp_path / "empty.txt").write_text("")
    assert command("predict", "runs/a", tmp_path / "empty.txt") == (0, "", "")


@pytest.mark.usefixtures("here")
def test_query_finds_the_newest_labeler(command: Command) -> None:
    """Without --run the newest run on labels under runs/ answers, though one on nodes is newer."""
    assert command("query", "w1 w2").out == command("query", "w1 w2", "--run", "runs/a").out


@pytest.mark.usefixtures("here")
def test_table_of_texts_trains(command: Command, tmp_path: Path) -> None:
    """A user's own CSV file is enough to train and to ask."""
    words = ["train", "table.csv", "--steps", "4", "--batch-size", "4", "--cluster-size", "2"]
    told = command(*words, "--dim", "8", "--out", tmp_path / "run", "--json")
    assert json.loads(told.out)["test"]["P@1"] > 50
    answer = json.loads(command("query", "mug", "--run", tmp_path / "run", "--k", 3, "--json").out)
    assert {found["title"] for found in answer["labels"]} == {"red", "cup", "hat"}


SMALL_TRAIN = ["train", "planted", "--steps", "2", *SMALL]
NODES_TRAIN = ["train", "graph.npz", "--steps", "2", *GRAPH]
LOOK = ["cluster", "planted", *SMALL]
BAD: dict[str, list[str]] = {
    "no such data": ["data", "absent"],
    "a file of another kind": ["data", "texts.txt"],
    "no such graph": ["data", "absent.npz"],
    "a graph to cluster": ["cluster", "graph.npz"],
    "device not here": ["data", "planted", "--device", "cuda:99"],
    "device unknown": [*SMALL_TRAIN, "--device", "banana"],
    "batch larger than the data": ["train", "planted", "--batch-size", "4096"],
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
    "temperature 0": [*SMALL_TRAIN, "--temperature", "0"],
    "temperature NaN": [*SMALL_TRAIN, "--temperature", "nan"],
    "clip negative": [*SMALL_TRAIN, "--clip", "-1"],
    "accumulate 0": [*SMALL_TRAIN, "--accumulate", "0"],
    "prefetch negative": [*SMALL_TRAIN, "--prefetch", "-1"],
    "seed negative": [*SMALL_TRAIN, "--seed", "-1"],
    "seed negative for nodes": [*NODES_TRAIN, "--seed", "-1"],
    "valid 1": [*SMALL_TRAIN, "--valid", "1"],
    "valid NaN": [*SMALL_TRAIN, "--valid", "nan"],
    "valid_every 0": [*SMALL_TRAIN, "--valid-every", "0"],
    "refresh_every 0": [*SMALL_TRAIN, "--refresh-every", "0"],
    "warm_epochs negative": [*SMALL_TRAIN, "--warm-epochs", "-1"],
    "dim 0": [*SMALL_TRAIN, "--dim", "0"],
    "positives 0": [*SMALL_TRAIN, "--positives", "0"],
    "no fanouts": [*NODES_TRAIN, "--fanouts"],
    "fanout -2": [*NODES_TRAIN, "--fanouts", "-2"],
    "hidden 0": [*NODES_TRAIN, "--hidden", "0"],
    "dropout 1": [*NODES_TRAIN, "--dropout", "1"],
    "option of nodes for labels": [*SMALL_TRAIN, "--fanouts", "3", "2"],
    "option of links for nodes": [*NODES_TRAIN, "--negatives", "uniform"],
    "option of graphs for labels": [*SMALL_TRAIN, "--task", "links"],
    "heads for sage": [*NODES_TRAIN, "--heads", "2"],
    "heads that do not divide": [*NODES_TRAIN, "--model", "gat", "--heads", "3"],
    "predict no node": ["predict", "runs/b", "nodes.txt", "--source", "absent.npz"],
    "predict nodes by a graph of search": ["predict", "runs/b", "nodes.txt", "--search", "hnsw"],
    "predict texts of a graph": ["predict", "runs/a", "texts.txt", "--source", "graph.npz"],
    "query of nodes": ["query", "w1", "--run", "runs/b"],
    "export of nodes": ["export", "runs/b", "runs/x"],
    "option of labels for nodes": [*NODES_TRAIN, "--temperature", "0.2"],
    "out below a file": [*SMALL_TRAIN, "--out", "texts.txt/sub"],
    "out is a file": [*SMALL_TRAIN, "--out", "texts.txt"],
    "out is taken": [*SMALL_TRAIN, "--out", "runs/a"],
    "nothing to resume": [*SMALL_TRAIN, "--out", "runs/absent", "--resume"],
    "resume with another dim": ["train", "planted", "--out", "runs/a", "--resume", "--dim", "9"],
    "evaluate no run": ["evaluate", "absent"],
    "evaluate data": ["evaluate", "planted"],
    "evaluate on another kind": ["evaluate", "runs/a", "--source", "graph.npz"],
    "evaluate nodes on labels": ["evaluate", "runs/b", "--source", "planted"],
    "report of no run": ["report", "absent"],
    "report below a file": ["report", "runs/a", "--out", "texts.txt/sub"],
    "predict from no run": ["predict", "absent", "texts.txt"],
    "predict from nodes": ["predict", "runs/b", "texts.txt"],
    "predict no file": ["predict", "runs/a", "absent.txt"],
    "predict a folder": ["predict", "runs/a", "runs/a"],
    "predict too many": ["predict", "runs/a", "texts.txt", "--k", "17"],
    "predict below a file": ["predict", "runs/a", "texts.txt", "--out", "texts.txt/sub"],
    "predict into a folder": ["predict", "runs/a", "texts.txt", "--out", "runs"],
    "query nothing known": ["query", "zzz", "--run", "runs/a"],
    "query too many": ["query", "w1", "--run", "runs/a", "--k", "17"],
    "query none": ["query", "w1", "--run", "runs/a", "--k", "0"],
    "query nodes": ["query", "w1", "--run", "runs/b"],
    "plan of nothing": ["plan"],
    "plan of no graph": ["plan", "texts.txt"],
    "plan for no device": ["plan", "graph.npz", "--device", "cuda:99"],
    "rows in memory, negative": [*NODES_TRAIN, "--host-rows", "-1"],
    "a device without numbers": [*NODES_TRAIN, "--device", "meta"],
    "gather of odd widths": ["gather", "--widths", "3"],
}


@pytest.mark.usefixtures("unchecked", "here")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, command: Command, tmp_path: Path) -> None:
    """Each says in one line what was expected, what came and what to do; status 2, no result."""
    words = BAD[name]
    if words[0] == "train" and "--out" not in words:
        words = [*words, "--out", str(tmp_path / "run")]
    told = command(*words, "--json")
    assert told.status == 2 and told.out == "" and ONE_LINE.fullmatch(told.err), told
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_no_memory_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host's or a device's memory ends, the command says what to lower."""

    def full(verb: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(cli, "_function", lambda verb: full)
    told = command("plan", "--rows", "9")
    assert told.status == 2 and ONE_LINE.fullmatch(told.err) and "--host-rows" in told.err


@pytest.mark.usefixtures("unchecked")
def test_damaged_data_is_one_line(world: Path, command: Command, tmp_path: Path) -> None:
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
        told = command("train", tmp_path / "planted", "--out", tmp_path / "run", *SMALL)
        assert told.status == 2 and ONE_LINE.fullmatch(told.err) and where in told.err, told


def test_damaged_runs_are_one_line(world: Path, command: Command, tmp_path: Path) -> None:
    """A run that lacks a part, or has a cut or a foreign one, is refused; it is left as it is."""
    cut = (world / "runs" / "a" / "last.safetensors").read_bytes()[:-9]
    nodes = (world / "runs" / "b" / "last.safetensors").read_bytes()
    resume = ["train", world / "planted", "--out", tmp_path / "run", "--steps", "9", "--resume"]
    asked = json.loads((world / "runs" / "a" / "settings.json").read_text())
    for name, content in (("last", cut), ("last", nodes), ("last", None), ("settings", b"{")):
        shutil.copytree(world / "runs" / "a", tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / "best.safetensors").unlink(missing_ok=True)
        path = tmp_path / "run" / f"{name}.{'json' if name == 'settings' else 'safetensors'}"
        path.write_bytes(content) if content is not None else path.unlink()
        again = [] if content is None else [[*resume, *SMALL]]  # without one, training begins
        for words in (["query", "w1", "--run", tmp_path / "run"], *again):
            told = command(*words)
            assert told.status == 2 and ONE_LINE.fullmatch(told.err), told
        assert path.exists() == (content is not None)
        assert content is None or path.read_bytes() == content
    assert asked["source"] == str(world / "planted")


def test_resume_names_the_setting_that_differs(world: Path, command: Command) -> None:
    """dim, seed, source, batches: each is named with its value as the run was begun."""
    begun = ["--out", world / "runs" / "a", "--steps", "9", *SMALL, "--resume"]
    for option, value in (("--dim", 4), ("--seed", 1), ("--batches", "random"), ("--lr", 0.5)):
        told = command("train", world / "planted", *begun, option, value)
        name = option.strip("-")
        assert told.status == 2 and told.err.startswith(f"shoal: {name}: expected "), told
    told = command("train", "wordnet", *begun)
    assert told.err.startswith(f"shoal: source: expected '{world / 'planted'}', as the run")


def test_longer_budget_continues_a_run(world: Path, command: Command, tmp_path: Path) -> None:
    """A finished run goes on when it is resumed with more steps, and says so in its record."""
    shutil.copytree(world / "runs" / "a", tmp_path / "run")
    words = ["train", world / "planted", "--out", tmp_path / "run", *SMALL, "--resume", "--json"]
    result = json.loads(command(*words, "--steps", "5").out)
    assert result["steps"] == 5 and result["stopped"] == "steps"
    events = [event["event"] for event in Run.open(tmp_path / "run").log()]
    assert events.count("resume") == 1 and events.count("test") == 2


KILLED = """
import os, signal, sys, torch
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


def test_killed_process_resumes_to_the_same_numbers(
    world: Path, command: Command, tmp_path: Path
) -> None:
    """Killed in step 7, a run goes on from step 6's checkpoint and ends as if nothing had been."""
    words = ["train", str(world / "planted"), *SMALL, "--steps", "10", "--valid-every", "1"]
    killed = [sys.executable, "-c", KILLED, *words, "--out", str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run(killed, env=environment).returncode == -signal.SIGKILL
    run = Run.open(tmp_path / "killed")
    assert run.load_last()["progress"]["step"] == 6
    assert command(*words, "--out", tmp_path / "killed").status == 2
    resumed = command(*words, "--out", tmp_path / "killed", "--resume", "--json")
    whole = command(*words, "--out", tmp_path / "whole", "--json")
    assert json.loads(resumed.out)["test"] == json.loads(whole.out)["test"]
    assert same_tensors(last_of(run), last_of(Run.open(tmp_path / "whole")))


def test_interrupt_saves_and_says_so(
    world: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends with status 130 and a run that can be resumed; nothing is judged."""
    log = RunLog.step

    def log_and_stop(self: RunLog, progress: Any, metrics: Any) -> None:
        log(self, progress, metrics)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "step", log_and_stop)
    words = ["train", world / "planted", *SMALL, "--steps", "4", "--out", tmp_path / "run"]
    told = command(*words, "--json")
    assert told.status == 130
    result = json.loads(told.out)
    assert result["stopped"] == "interrupt" and result["steps"] == 2 and "test" not in result
    assert json.loads(command(*words, "--resume", "--json").out)["steps"] == 4


def test_version_and_unknown_words(command: Command) -> None:
    """--version prints one line; an unknown option or verb, and none at all, end with status 2."""
    assert re.fullmatch(r"shoal \d+\.\d+\.\d+\n", command("--version").out)
    for words in (["data", "wordnet", "--banana"], ["banana"], [], ["query"]):
        told = command(*words)
        assert told.status == 2 and told.out == "" and "Traceback" not in told.err


def test_help_imports_nothing_heavy() -> None:
    """--help lists every verb, and neither torch nor numpy is imported for it."""
    heavy = "{'torch', 'numpy', 'tokenizers', 'jaxtyping', 'typeguard'}"
    code = (
        "import sys; from shoal.cli import main as cli; sys.argv = ['shoal', '--help']\n"
        "try: cli.main()\n"
        f"finally: print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0 and told.stderr == "[]\n"
    for verb in ("data", "cluster", "train", "evaluate", "report", "predict", "query"):
        assert f" {verb} " in told.stdout


def test_closed_pipe_is_silent() -> None:
    """Where nobody reads on (`shoal … | head -0`) the command ends without a word."""
    words = [sys.executable, "-c", "from shoal.cli.main import main; main()", "--version"]
    read, write = os.pipe()
    os.close(read)
    told = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert told.stderr == "" and told.returncode == 0


def test_options_say_whose_they_are() -> None:
    """An option whose help begins with Labels or Nodes is refused for the other job, no other."""
    tree = ast.parse(Path(shoal.cli.settings.__file__).read_text())
    (train,) = (x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == "Train")
    helps: dict[str, str] = {}
    for field, text in zip(train.body, train.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(text.value, ast.Constant)
            helps[field.target.id] = str(text.value.value)
    assert helps.keys() <= {field.name for field in fields(Train)}
    for job, options in OPTIONS_OF.items():
        said = {name for name, text in helps.items() if text.startswith(f"{job.capitalize()}:")}
        assert said == options
