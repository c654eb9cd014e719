"""A process that runs commands in children of its own and kills them at random moments.

``python -m tests.killing WHAT FOLDER KILLS SEED`` imports all that is needed once; a child is a
fork of it, so that a kill costs milliseconds and falls into the work, not into imports; the parent
itself computes nothing, since the threads of that would not survive a fork. The last
line on standard output is JSON: how many kills there were, and how far the work had come then.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import shoal
from shoal.cli import main as cli
from shoal.core import checkpoint
from shoal.training.run import Run

_CPU_OF_PROCESS = 2  # CPUCLOCK_SCHED: clock_getcpuclockid(3) makes the number so
TEXTS = ["w1 w2", "w3 w5 w7", ""]


STAGES: dict[str, dict[str, Any]] = {
    "training": {"epochs": 4, "valid": 0.005},  # too few to weigh rankers: the encoder alone
    "stages": {"epochs": 12, "valid": 0.45},
}


def fit(folder: Path, name: str, seed: int = 0, **options: Any) -> shoal.Result:
    """A small run, its checkpoints kept; it is resumed where it has come to one."""
    model = shoal.LabelModel(
        encoder=shoal.BagEncoder(dim=16),
        batches=shoal.Clustered(60, 6),
        classifiers=shoal.Classifiers(epochs=4),
        seed=seed,
        device="cpu",
    )
    out = folder / name
    usual = {"valid_every": 2, "keep_resume": True, "resume": (out / "last.safetensors").exists()}
    return model.fit(str(folder / "data"), out=out, **usual | options)


def train(folder: Path, name: str, stages: str) -> None:
    """Begin the run, or resume it where it has come to a checkpoint."""
    fit(folder, name, **STAGES[stages])


def export(folder: Path, out: Path) -> None:
    """Export a run."""
    shoal.open(folder, device="cpu").export(out)


def child(work: Callable[[], None], after: float | None = None) -> float | None:
    """Do the work in a child, killed after so many seconds of its processor time.

    Returns:
        how many it took, or None where it was killed. (The clock on the wall says little about a
        process where others work, too.)
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        time.sleep(0.001)
        if after is not None and time.clock_gettime(~pid << 3 | _CPU_OF_PROCESS) > after:
            os.kill(pid, signal.SIGKILL)
            after = None
    if os.WIFSIGNALED(ended[1]):
        return None
    assert os.WEXITSTATUS(ended[1]) == 0, "the child failed by itself"
    return ended[2].ru_utime + ended[2].ru_stime


def expect_whole(folder: Path) -> None:
    """Every file that is not written aside can be read to its end."""
    for path in folder.rglob("*"):
        if any(name.endswith(".shoal-new") for name in path.parts):
            continue
        if path.suffix == ".safetensors":
            checkpoint.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def kill_training(stages: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """The run ``killed`` is killed so many times, then ends; the run ``whole`` is left alone."""
    seconds = child(lambda: train(folder, "whole", stages))
    assert seconds is not None
    chance, steps, done = random.Random(seed), [], 0
    while done < kills:
        after = chance.uniform(0, seconds)
        done += child(lambda: train(folder, "killed", stages), after) is None
        expect_whole(folder / "killed")
        last = folder / "killed" / "last.safetensors"
        steps.append(Run.open(last.parent).load_last()["progress"]["step"] if last.exists() else 0)
    child(lambda: train(folder, "killed", stages))
    return {"kills": done, "steps": steps}


def kill_exports(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Two runs are exported to one place in turns; what stands there is always one of them."""
    runs, out = [folder / "one", folder / "two"], folder / "out"
    answers = [predicted(run) for run in runs]
    assert answers[0] != answers[1]
    for run in runs:
        seconds = child(lambda run=run: export(run, out))
    assert seconds is not None
    chance, seen, done = random.Random(seed), [1], 0
    while done < kills:
        source = runs[1 - seen[-1]]
        after = chance.uniform(0, 1) * seconds
        done += child(lambda run=source: export(run, out), after) is None
        seen.append(answers.index(predicted(out)))
    child(lambda: export(runs[0], out))
    seen.append(answers.index(predicted(out)))
    return {"kills": done, "seen": seen, "left": sorted(x.name for x in folder.glob("*out*"))}


# what each command writes; predictions to a file that others may read alone
COMMANDS = {
    "add": "add one new.jsonl --out added",
    "predict": "predict one texts.txt --k 3 --out answers.jsonl",
    "convert": "convert data converted --to beir",
    "evaluate": "evaluate one",
}


def command(words: str, folder: Path) -> None:
    """Run a command in a folder."""
    os.chdir(folder)
    sys.argv = ["shoal", *words.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, words


def kill_commands(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Each command is killed so many times: what it writes is there whole, or as it was before."""
    (folder / "new.jsonl").write_text('{"uid": "new", "title": "w1 w2"}\n')
    (folder / "texts.txt").write_text("w1 w2\n" * 3000)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    chance, done = random.Random(seed), 0
    for words in COMMANDS.values():
        out = folder / ("converted" if words.startswith("convert") else words.split()[-1])
        seconds = child(lambda words=words: command(words, folder))
        assert seconds is not None
        whole = _content(out)
        for _ in range(kills):
            if words.startswith("convert"):
                shutil.rmtree(out, ignore_errors=True)
            after = chance.uniform(0, seconds)
            done += child(lambda words=words: command(words, folder), after) is None
            assert _content(out) in (whole, {}), f"half of {out}"
        shutil.rmtree(folder / "converted", ignore_errors=True)
        child(lambda words=words: command(words, folder))
        again = _content(out)
        assert again == whole, [name for name in whole if again.get(name) != whole[name]]
    changed = [str(path) for path, data in before.items() if path.read_bytes() != data]
    return {"kills": done, "changed": changed, "left": sorted(x.name for x in folder.iterdir())}


def _content(path: Path) -> dict[str, Any]:
    """What a file holds, or each file of a folder; empty if there is none."""
    files = [path, *path.rglob("*")] if path.exists() else []
    return {str(x): _held(x) for x in files if x.is_file()}


def _held(path: Path) -> Any:
    """The bytes of a file; of tensors by name, since the library orders what it says of them."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def predicted(folder: Path) -> str:
    """What a folder's model says, asked in a child: the parent must have no threads to fork."""
    answer = folder.with_name("answer.json")

    def ask() -> None:
        found = shoal.open(folder, device="cpu").predict(TEXTS, k=5)
        answer.write_text(json.dumps([[vars(x) for x in row] for row in found]))

    child(ask)
    return answer.read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    Run.save_due = lambda self, since: True  # a checkpoint every step: a kill often falls into one
    ways = {"exports": kill_exports, "commands": kill_commands}
    what = ways.get(sys.argv[1]) or partial(kill_training, sys.argv[1])
    print(json.dumps(what(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
