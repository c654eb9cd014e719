"""Inside sentence-transformers' trainer: its own batches and loss against shoal's, at equal steps.

One model (a StaticEmbedding of words, the same random start), one trainer, one number of steps and
one batch size. The rival is MultipleNegativesRankingLoss with the trainer's default batches; its
learning rate and scale are the best of a short sweep *of its own*, and the others take them as they
are. Judged on held-out training points, never on the test points; search is exact over all labels.

    python benchmarks/dropin.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from shoal.core.csr import Csr
from shoal.data import load_labels
from shoal.data.splits import validation_split
from shoal.integrations.sentence_transformers import (
    MaskedSoftmaxLoss,
    NgameBatches,
    number_pairs,
    xc_evaluator,
)

COLUMNS = ("P@1", "P@5", "R@5")


@dataclass(frozen=True)
class Task:
    """What all runs share."""

    train: Any
    plain: Any
    known: Csr
    evaluator: Any
    tokenizer: Tokenizer
    asked: argparse.Namespace


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--steps", type=int, default=264, help="of each run that is reported")
    parser.add_argument("--sweep-steps", type=int, default=60, help="of each run of the sweep")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--cluster-size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--scales", type=float, nargs="+", default=[5.0, 10.0, 20.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="8 steps, no sweep, one seed")
    asked = parser.parse_args()
    if find_spec("sentence_transformers") is None:
        print(json.dumps({"skipped": "pip install 'shoal[sentence-transformers]'"}))
        return
    if asked.quick:
        asked.steps, asked.sweep_steps, asked.lrs, asked.scales, asked.seeds = (
            8,
            8,
            [0.1],
            [20.0],
            [0],
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    task = prepare(asked)
    options = [(lr, scale) for lr in asked.lrs for scale in asked.scales]
    swept = (
        {o: run(task, "rival", *o, asked.sweep_steps, 0) for o in options} if options[1:] else {}
    )
    lr, scale = max(swept, key=lambda o: swept[o]["P@1"]) if swept else options[0]
    print(f"rival's best: learning rate {lr}, scale {scale}", file=sys.stderr)
    finals: dict[str, list[dict[str, float]]] = {}
    for seed in asked.seeds:  # A B C A B C
        for system in ("rival", "masked loss", "masked loss, NGAME batches"):
            finals.setdefault(system, []).append(run(task, system, lr, scale, asked.steps, seed))
    means = {
        system: {key: round(sum(r[key] for r in rows) / len(rows), 2) for key in rows[0]}
        for system, rows in finals.items()
    }
    print(json.dumps({"lr": lr, "scale": scale, **vars(asked), "mean": means, "runs": finals}))


def prepare(asked: argparse.Namespace) -> Task:
    """Hold validation points out, make the rows, and learn the words."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    train, valid = validation_split(load_labels(asked.source), 0.05, seed=0)
    names = load_labels(asked.source).labels.all()
    texts = train.texts.all()
    rows = Dataset.from_dict(
        {
            "anchor": [texts[i] for i in train.labels.row_ids().tolist()],
            "positive": [names[i] for i in train.labels.indices.tolist()],
        }
    )
    (numbered,), known = number_pairs(rows)
    evaluator = xc_evaluator(valid.texts.all(), names, valid.labels, drop=valid.drop, ks=(1, 5))
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    count = Counter(
        word
        for text in texts + names
        for word, _ in words.pre_tokenizer.pre_tokenize_str(text.lower())
    )
    kept = ["[UNK]", *sorted(word for word, n in count.items() if n > 2)]
    words.model = models.WordLevel({word: i for i, word in enumerate(kept)}, unk_token="[UNK]")
    print(f"{len(rows)} rows, {len(valid)} held out, {len(kept)} words", file=sys.stderr)
    return Task(numbered, rows, known, evaluator, words, asked)


def run(
    task: Task, system: str, lr: float, scale: float, steps: int, seed: int
) -> dict[str, float]:
    """Train one system and judge it."""
    from sentence_transformers import (  # pyright: ignore[reportMissingImports]
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import (  # pyright: ignore
        losses,
        modules,
    )

    n = task.tokenizer.get_vocab_size()
    vectors = torch.randn(n, task.asked.dim, generator=torch.Generator().manual_seed(seed))
    bag = modules.StaticEmbedding(task.tokenizer, embedding_weights=vectors.numpy())
    model = SentenceTransformer(modules=[bag], device="cpu")
    rival = system == "rival"
    loss = (
        losses.MultipleNegativesRankingLoss(model, scale)
        if rival
        else MaskedSoftmaxLoss(model, task.known, scale)
    )
    ngame = NgameBatches(task.train, task.asked.cluster_size) if "NGAME" in system else None
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=steps,
            seed=seed,
            per_device_train_batch_size=task.asked.batch_size,
            learning_rate=lr,
            batch_sampler="batch_sampler" if ngame is None else ngame,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        SentenceTransformerTrainer(
            model,
            arguments,
            task.plain if rival else task.train,
            loss=loss,
            callbacks=[] if ngame is None else [ngame.callback()],
        ).train()
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    found = task.evaluator(model)
    row = {name: round(found[name], 2) for name in COLUMNS} | {
        k: round(v, 1) for k, v in took.items()
    }
    cells = "  ".join(f"{name} {value:6.2f}" for name, value in row.items())
    about = f"{system:<27} lr {lr:<5} scale {scale:<5} seed {seed} {steps:>4} steps"
    print(f"{about}  {cells}", file=sys.stderr)
    return row


if __name__ == "__main__":
    main()
