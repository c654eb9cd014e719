"""Makes everything in this folder with the code of revision 2d1c72a; newer code need not run it.

    cd EMPTY_FOLDER
    export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1
    PYTHONPATH=OLD_CHECKOUT/src python make.py

Writes data/, run/, export/, nodes-run/, links-run/, references.json and predictions.json into the
working directory; every path that is stored is relative to it. Takes half a minute on one core.
`python make.py references` only trains for references.json, from a data/ that is there: so the
differences in README.md were seen, with two threads, and with ATEN_CPU_CAPABILITY, MKL_CBWR and
ONEDNN_MAX_CPU_ISA set.

Losses come from wrapping `shoal.train._Loop._log_step`, which the loop calls after every step (the
record has step 1 and every tenth only); metrics from the dictionary that a verb's function returns;
predictions on graphs from the verb's function with its rounding to four digits taken out.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import random
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

if __name__ == "__main__":  # pytest imports every module for its examples, beside newer code too
    import shoal
    from shoal import checkpoint, cli
    from shoal import train as training
    from shoal.data import wordnet
    from shoal.tasks import links, nodes

DATA, OUT = Path("data"), "OUT"
WORDS = re.compile(r"\w+")

# -- data ------------------------------------------------------------------------------------------

# labels.csv: synsets of these files of WordNet, of which the words are frequent
FILES = ("noun.person", "noun.artifact", "noun.animal", "noun.food", "noun.plant")
ROWS, FREQUENT, LEAST, LONGEST = 2700, 1500, 4, 90
# nodes.npz: how many nodes, words, and how many neighbors of each are followed
NODES, COLUMNS, FOLLOWED, FEWEST = 600, 64, 5, 6


def make_labels(synsets: wordnet.Synsets) -> None:
    """`labels.csv`: text = gloss up to the first ; or (, labels = first lemmas of related synsets.

    Kept are glosses of at most 90 characters all of whose words are among the 1,500 most frequent
    ones, so that the vocabulary stays small; labels that at least four of these have; 2,700 of the
    rows, drawn with seed 0, in the order of WordNet. No column `split`: a fifth is tested.
    """
    wanted = {wordnet.CLASS_NAMES.index(name) for name in FILES}
    rows = [i for i, file in enumerate(synsets.files.tolist()) if file in wanted]
    gloss = {i: re.split(r"[;(]", synsets.texts.contents[i])[0].strip() for i in rows}
    words = {i: set(WORDS.findall(gloss[i].lower())) for i in rows}
    count = collections.Counter(word for i in rows for word in sorted(words[i]))
    frequent = {word for word, _ in sorted(count.items(), key=lambda x: (-x[1], x[0]))[:FREQUENT]}
    rows = [i for i in rows if gloss[i] and len(gloss[i]) <= LONGEST and words[i] <= frequent]
    indptr, indices = synsets.relations.indptr.tolist(), synsets.relations.indices.tolist()
    lemma = [title.split(",")[0].strip() for title in synsets.texts.titles]
    labels = {i: {lemma[j] for j in indices[indptr[i] : indptr[i + 1]]} for i in rows}
    count = collections.Counter(label for i in rows for label in labels[i])
    labels = {i: sorted(x for x in labels[i] if count[x] >= LEAST) for i in rows}
    rows = [i for i in rows if labels[i]]
    rows = sorted(random.Random(0).sample(rows, ROWS))
    with (DATA / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "labels"])
        writer.writerows([gloss[i], "|".join(labels[i])] for i in rows)


def make_graphs(synsets: wordnet.Synsets) -> None:
    """`nodes.npz`, `links.npz` and `pairs.npz`: 600 synsets near one another and their relations.

    Breadth first from one synset of each of the twelve largest lexicographer files, following at
    most five neighbors of each, drawn with seed 0. Features: the 64 most frequent columns of the
    words' tf-idf. Classes: lexicographer files, -1 where fewer than six nodes are of one.
    """
    data, draw = wordnet.graph(), random.Random(0)
    indptr, indices = data.graph.indptr.tolist(), data.graph.indices.tolist()
    files = synsets.files.tolist()
    largest = [file for file, _ in collections.Counter(files).most_common(12)]
    queue = collections.deque(
        draw.choice([i for i, x in enumerate(files) if x == f and indptr[i + 1] - indptr[i] > 2])
        for f in largest
    )
    found: dict[int, None] = {}
    while len(found) < NODES and queue:
        node = queue.popleft()
        if node in found:
            continue
        found[node] = None
        near = indices[indptr[node] : indptr[node + 1]]
        queue.extend(draw.sample(near, min(FOLLOWED, len(near))))
    ids = sorted(found)
    place = {node: i for i, node in enumerate(ids)}
    lists = [[place[j] for j in indices[indptr[i] : indptr[i + 1]] if j in place] for i in ids]
    ends = np.cumsum([0, *map(len, lists)])
    flat = np.array([j for row in lists for j in row])
    dense = data.features.rows(torch.tensor(ids)).to_dense()
    columns = (dense != 0).sum(0).sort(descending=True, stable=True).indices[:COLUMNS]
    dense = dense[:, columns.sort().values].numpy().astype(np.float32)
    of = np.array([files[i] for i in ids])
    classes = [c for c in sorted(set(of.tolist())) if (of == c).sum() >= FEWEST]
    y = np.array([classes.index(c) if c in classes else -1 for c in of.tolist()])
    row, col = np.nonzero(dense)
    np.savez_compressed(
        DATA / "nodes.npz",
        indptr=ends.astype(np.int64), indices=flat.astype(np.int32),
        x_indptr=np.cumsum([0, *(dense != 0).sum(1)]).astype(np.int64),
        x_indices=col.astype(np.int32), x_data=dense[row, col], x_shape=np.array(dense.shape),
        y=y.astype(np.int64),
    )  # fmt: skip
    reader = np.repeat(np.arange(len(ids)), np.diff(ends))
    edges = np.stack([flat, reader]).astype(np.int64)
    np.savez_compressed(DATA / "links.npz", edge_index=edges, x=dense)
    np.savez_compressed(DATA / "pairs.npz", edge_index=edges, num_nodes=np.array(len(ids)))


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_bert() -> None:
    """`bert/`: as tests/tiny.py makes it, but for its words: 500 of `labels.csv`, and `##s`."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    with (DATA / "labels.csv").open(encoding="utf-8") as file:
        text = file.read().lower()
    count = collections.Counter(WORDS.findall(text))
    known = [word for word, _ in sorted(count.items(), key=lambda x: (-x[1], x[0]))[:500]]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *known, "##s"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{x[1:-1].lower()}_token": x for x in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **names)
    tokenizer.save_pretrained(DATA / "bert")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(DATA / "bert")


# -- references ------------------------------------------------------------------------------------

_BAG = "--dim 16 --batch-size 256 --cluster-size 16"
_GRAPH = "--hidden 16 --fanouts 5 5 --batch-size 64"
COMMANDS = {
    "labels_bag": f"train data/labels.csv {_BAG} --steps 10 --head none --rank encoder",
    "labels_transformer": "train data/labels.csv --encoder data/bert --max-length 24 "
    "--batch-size 64 --cluster-size 16 --warm-epochs 0 --lr 0.002 --steps 20 --head none "
    "--rank encoder",
    "labels_full": f"train data/labels.csv {_BAG} --epochs 4",
    "labels_joint": f"train data/labels.csv {_BAG} --epochs 3 --head joint --rank head "
    "--head-negatives mined --symmetric --bank --clip 1",
    "labels_ngame": "train data/labels.csv --recipe ngame --dim 16 --batch-size 256 "
    "--cluster-size 32 --epochs 4 --head-epochs 3",
    "nodes": f"train data/nodes.npz {_GRAPH} --epochs 20",
    "nodes_gat": f"train data/nodes.npz {_GRAPH} --model gat --heads 2 --epochs 20",
    "links": f"train data/links.npz --task links {_GRAPH} --epochs 10",
    "links_uniform": f"train data/links.npz --task links {_GRAPH} --epochs 5 --negatives uniform",
    "links_learned_rows": f"train data/pairs.npz --task links {_GRAPH} --epochs 10",
    "nodes_spectral": f"train data/nodes.npz {_GRAPH} --epochs 50 --step spectral",
}
KEPT = {
    "run": "train data/labels.csv --dim 8 --batch-size 256 --cluster-size 16 --epochs 4 "
    "--head-epochs 3 --out run",
    "nodes-run": f"train data/nodes.npz {_GRAPH} --epochs 20 --out nodes-run",
    "links-run": f"train data/links.npz --task links {_GRAPH} --epochs 10 --out links-run",
}

_losses: list[tuple[training._Loop, float]] = []


def watch_losses() -> None:
    log_step = training._Loop._log_step

    def watched(loop, batch, outputs):
        _losses.append((loop, loop.progress.loss))
        return log_step(loop, batch, outputs)

    training._Loop._log_step = watched


def call(command: str, out: str | None = None) -> dict:
    """What a verb's function returns to the command line."""
    arguments = command.split() + ([] if out is None else ["--out", out])
    verb = tyro.cli(cli._any_verb(arguments), args=arguments, prog="shoal", config=cli._MARKERS)
    return cli._function(verb)(verb)


def trained(command: str, out: str | None = None) -> dict:
    """Train, and say what the losses, the weights and the metrics are."""
    _losses.clear()
    result = call(command, out)
    folder = Path(out or command.split()[-1])
    stages: list[list[float]] = []
    for i, (loop, loss) in enumerate(_losses):
        if i == 0 or loop is not _losses[i - 1][0]:
            stages.append([])
        stages[-1].append(loss)
    record = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    best = folder / "best.safetensors"
    state = checkpoint.load(best if best.exists() else folder / "last.safetensors")
    kept = {k: v for k, v in result.items() if k in ("stopped", "steps", "test")}
    found = {
        "arguments": command.split() + ([] if out is None else ["--out", OUT]),
        "losses": stages[0][:10],
        "last_loss": stages[0][-1],
        **kept,
    }
    if len(stages) > 1:
        found |= {"head_losses": stages[1][:10], "head_last_loss": stages[1][-1]}
    found["valid"] = [
        {k: v for k, v in x.items() if k == "step" or k.startswith("valid_")}
        for x in record
        if x["event"] == "validate"
    ]
    looks = ("step", "lr", "momentum", "lam_max", "noise", "spike")
    curvature = [x for x in record if x["event"] == "curvature"]
    if curvature:
        found["curvature"] = [{k: x[k] for k in looks if k in x} for x in curvature]
    found["weights"] = dict(sums(state))
    return found


def resumed(name: str, command: str, folder: Path) -> dict:
    """What a copy of a kept run comes to when it is trained for two epochs more."""
    shutil.copytree(name, folder)
    words = [*command.split()[:-2], "--resume"]
    at = words.index("--epochs") + 1
    words[at] = str(int(words[at]) + 2)
    return trained(" ".join(words), str(folder))


def sums(state, name: str = ""):
    """Shape, sum and sum of squares, in float64, of each tensor of a model that is judged."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from sums(value, f"{name}{key}/")
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            if name.split("/")[0] in ("", "model", "tables") and key != "random":
                x = value.double()
                yield f"{name}{key}", [list(x.shape), float(x.sum()), float(x.square().sum())]


def spectrum_of(folder: str, out: str) -> dict:
    """What `shoal spectrum RUN` prints, rounded as it is, and the numbers of spectrum.json."""
    command = f"spectrum {folder}"
    result = call(command, out)
    for name in ("seconds", "spectrum", "picture", "notes"):
        result.pop(name, None)
    result["rates"] = [dict(row) for row in result["rates"]]
    full = json.loads(Path(out, "spectrum.json").read_text())
    full.pop("seconds", None)
    return {"arguments": [*command.split(), "--out", OUT], "printed": result, "saved": full}


def make_references(scratch: Path) -> None:
    found: dict = {
        "made": {
            "revision": "2d1c72a",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    }
    for name, command in COMMANDS.items():
        found[name] = trained(command, str(scratch / name))
    found["spectrum"] = spectrum_of(str(scratch / "nodes"), str(scratch / "spectrum"))
    found["spectrum"]["arguments"][1] = "nodes-run"  # the same run, as it is kept
    for name, command in KEPT.items():
        if Path(name).exists():
            found[name] = {"arguments": command.split()}
            found[name]["evaluate"] = call(f"evaluate {name}")["test"]
            found[f"{name}-resumed"] = resumed(name, command, scratch / f"{name}-resumed")
    if Path("export").exists():
        found["export"] = {"arguments": ["export", "run", "export"]}
        found["export"]["evaluate"] = call("evaluate export")["test"]
    Path("references.json").write_text(json.dumps(found, indent=1) + "\n")


# -- predictions -----------------------------------------------------------------------------------

TEXTS = [
    "a tree of tropical America with edible fruit",
    "a small bird of Europe",
    "someone who writes books",
    "a person who plays a musical instrument",
    "a device for measuring",
    "any plant of the genus with yellow flowers",
    "meat from a young animal",
    "fish of warm waters",
    "Cloth; a GARMENT worn by women (usually red)",
    "zzz qqq",
]
NODE_IDS = list(range(0, 600, 30))


def make_predictions() -> None:
    found: dict = {"texts": TEXTS, "k": 5}
    for name in ("run", "export"):
        rows = shoal.load(name).predict(TEXTS, k=5)
        found[name] = [[asdict(x) for x in row] for row in rows]
    found["nodes"] = NODE_IDS
    for name, job in (("nodes-run", nodes), ("links-run", links)):
        run = shoal.Run.open(name)
        ids = torch.tensor(NODE_IDS)
        job.round = lambda score, _: score  # the module finds this before the built-in one
        found[name] = list(job.predictions(run, run.settings["source"], ids, 5))
        del job.round
    Path("predictions.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    watch_losses()
    scratch = Path("scratch")
    if sys.argv[1:] != ["references"]:
        DATA.mkdir()
        synsets = wordnet.read()
        make_labels(synsets)
        make_graphs(synsets)
        make_bert()
        for command in KEPT.values():
            call(command)
        call("export run export")
        make_predictions()
    make_references(scratch)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
