"""Another revision of shoal against this one, in turn: A B A B, in CPU seconds.

Each job runs in a process of its own, on one thread, with one of the two trees on PYTHONPATH:

import    `import shoal`
help      `shoal --help`
labels    `shoal train` on a table of WordNet's definitions: bags, classifiers, ensemble, test
nodes     `shoal train` on a graph
open      a trained label model
predict   labels of 2,000 texts by it

Times of import, help and training are those of the whole process; of the other two those of the
call alone. What counts is the ratio of medians. Revisions before the rebuild are called as they
want it: `shoal train SOURCE`, `shoal.load`.

    git worktree add ../old 2d1c72a
    python benchmarks/rebuild.py --old ../old --out rebuild.jsonl
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).parent / "rebuild_" / "worker.py"
# what the console script does: shoal.cli is one module before the rebuild
COMMAND = """
from importlib import import_module
cli = import_module("shoal.cli")
(import_module("shoal.cli.main") if hasattr(cli, "__path__") else cli).main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--old", type=Path, help="another checkout; this one by default")
    parser.add_argument("--rows", type=int, default=10_000, help="of the table")
    parser.add_argument("--texts", type=int, default=2000, help="predicted")
    parser.add_argument("--epochs", type=int, default=6, help="of the encoder")
    parser.add_argument("--graph", default="wordnet-graph", help="a graph for `shoal train`")
    parser.add_argument("--graph-epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of each job, A and B in turn")
    parser.add_argument("--out", type=Path, help="also append every measurement to this file")
    parser.add_argument("--quick", action="store_true", help="3,000 rows, a small graph, one round")
    asked = parser.parse_args()
    if asked.quick:
        asked.rows, asked.texts, asked.epochs, asked.rounds = 3000, 100, 1, 1
        asked.graph = str(ROOT / "tests" / "frozen" / "data" / "nodes.npz")
    if Path(asked.graph).exists():  # processes run in a folder of their own
        asked.graph = str(Path(asked.graph).resolve())
    trees = {"old": (asked.old or ROOT).resolve(), "new": ROOT}
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(asked, trees, Path(scratch))
    if asked.out is not None:
        with asked.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    table = ratios(found)
    print(f"{'job':<9}{'old':>9}{'new':>9}{'new / old':>11}", file=sys.stderr)
    for job, row in table.items():
        line = f"{job:<9}{row['old']:>9.3f}{row['new']:>9.3f}{row['ratio']:>11.3f}"
        print(line, file=sys.stderr)
    print(json.dumps({"benchmark": "rebuild", "rows": asked.rows, "cpu_seconds": table}))


def measured(
    asked: argparse.Namespace, trees: dict[str, Path], scratch: Path
) -> list[dict[str, Any]]:
    """One row per job, round and tree."""
    made = scratch / "made.csv"
    texts = write_table(made, asked.rows)
    (scratch / "texts.json").write_text(json.dumps((texts * asked.texts)[: asked.texts]))
    labels = [str(made), "--epochs", str(asked.epochs), "--device", "cpu"]
    nodes = [asked.graph, "--epochs", str(asked.graph_epochs), "--device", "cpu"]
    rows = []
    for tree in trees.values():  # compiled once, and read from the disk's cache
        process(tree, scratch, ["-c", "import shoal.tasks.labels, shoal.tasks.nodes"])
    for number in range(asked.rounds):
        for job in ("import", "help", "labels", "nodes", "worker"):
            for name, tree in trees.items():
                run = scratch / f"{name}-{job}"
                arguments = {
                    "import": ["-c", "import shoal"],
                    "help": ["-c", COMMAND, "--help"],
                    "labels": command(tree, "labels", labels, run),
                    "nodes": command(tree, "nodes", nodes, run),
                    "worker": [str(WORKER), str(scratch / f"{name}-labels"), "texts.json"],
                }[job]
                if run.exists():
                    shutil.rmtree(run)
                seconds, said = process(tree, scratch, arguments)
                each = json.loads(said) if job == "worker" else {job: seconds}
                for kind, spent in each.items():
                    row = {"tree": name, "job": kind, "round": number, "cpu": round(spent, 3)}
                    rows.append(row | {"date": time.strftime("%Y-%m-%d")})
                    print(row, file=sys.stderr, flush=True)
    return rows


def command(tree: Path, task: str, arguments: list[str], out: Path) -> list[str]:
    """Arguments of Python that train as the revision in `tree` wants it."""
    named = (tree / "src" / "shoal" / "models" / "labels.py").exists()  # since the rebuild
    return ["-c", COMMAND, "train", *([task] if named else []), *arguments, "--out", str(out)]


def process(tree: Path, scratch: Path, arguments: list[str]) -> tuple[float, str]:
    """CPU seconds of a Python process that imports shoal from a tree, and its output."""
    env = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=scratch, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(arguments[-8:])} failed:\n{done.stderr[-2000:]}")
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return user + system, done.stdout


def write_table(path: Path, rows: int) -> list[str]:
    """A CSV of definitions and the part of the dictionary of each; returns those for testing."""
    import torch

    from shoal.data import wordnet

    synsets = wordnet.read()
    chosen = torch.randperm(len(synsets.texts), generator=torch.Generator().manual_seed(0))[:rows]
    texts = [synsets.texts.contents[i] for i in chosen.tolist()]
    names = [wordnet.CLASS_NAMES[i] for i in synsets.files[chosen].tolist()]
    # a split of its own, since revisions split otherwise
    splits = ["test" if i % 5 == 0 else "train" for i in range(rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "labels", "split"])
        writer.writerows(zip(texts, names, splits, strict=True))
    return texts[::5]


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each job by tree, and the new one's over the old one's."""
    table: dict[str, dict[str, float]] = {}
    for job in dict.fromkeys(row["job"] for row in rows):
        medians = {
            tree: statistics.median(
                row["cpu"] for row in rows if (row["job"], row["tree"]) == (job, tree)
            )
            for tree in ("old", "new")
        }
        ratio = medians["new"] / max(medians["old"], 1e-9)
        table[job] = medians | {"ratio": round(ratio, 3)}
    return table


if __name__ == "__main__":
    main()
