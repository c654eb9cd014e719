"""A head over all labels: memory, share of the machine's matrix-product peak, accuracy.

memory    peak resident memory of a process that trains all labels for two steps, above that of the
          same imports alone, as a multiple of the weights; a process of its own for each optimizer.
speed     floating-point operations a second of a step over all labels, relative to the best of
          several matrix products of 2,048 rows and columns in the same run; and the CPU time of the
          same step with materialised logits, autograd and torch's own optimizer, A B A B.
planted   labels that are codewords (shoal.data.codes), of which texts name a part: P@1 of the bag
          encoder, of the head on its embeddings and of tf-idf (nearest points' votes and label
          texts), beside the best rule, in closed form and on the same points.

    python benchmarks/head.py            all of it, planted with 100,000 labels
    python benchmarks/head.py --full     planted with 3,000,000 labels (hours on two cores)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.block import Block
from shoal.data.codes import PlantedCodes, code_accuracy, one_hot, planted_codes
from shoal.fetch.loader import Loader
from shoal.fetch.unified import UnifiedTensor
from shoal.fetch.update import RowAdagrad, RowAdam
from shoal.job import Budget, Job
from shoal.losses import decoupled_softmax
from shoal.models.bag import BagEncoder
from shoal.models.head import Head
from shoal.models.head_job import head_job
from shoal.models.labeler import embed
from shoal.models.loss_skip import head_step
from shoal.objectives import Objective, in_batch
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
from shoal.sample.seeds import RandomBatchSampler
from shoal.search import top_k
from shoal.train import fit

OPTIMIZERS = {"RowAdagrad": RowAdagrad, "RowAdam": RowAdam}
KEPT, DIGITS, BASE = 0.8, 8, 32


# -- memory ----------------------------------------------------------------------------------


def status(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (x for x in lines if x.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def every_label(b: int, n_labels: int) -> Block:
    """A block of b points against all labels, three positives each."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(n_labels, (3 * b,), generator=generator)
    return Block(torch.arange(b), torch.arange(n_labels), torch.arange(b + 1) * 3, columns, columns)


def memory_child(optimizer: str, n_labels: int, dim: int) -> None:
    """Train all labels for two steps; print bytes above the bare import and bytes of weights."""
    torch.set_num_threads(1)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the product's own buffers
    bare = status("VmRSS")
    rows = torch.empty(n_labels, dim).uniform_(-0.05, 0.05)
    head = Head(UnifiedTensor.of(rows, OPTIMIZERS[optimizer](1e-3)))
    block = every_label(64, n_labels)
    for _ in range(2):
        head_step(head, torch.randn(64, dim), block)
    weights = rows.numel() * rows.element_size()
    print(json.dumps({"peak": status("VmHWM") - bare, "weights": weights}))


def memory(n_labels: int, dim: int) -> dict[str, float]:
    """Peak memory as a multiple of the weights, by optimizer."""
    found = {}
    for name in OPTIMIZERS:
        child = [sys.executable, __file__, "--child", name, str(n_labels), str(dim)]
        out = subprocess.run(child, check=True, capture_output=True, text=True)
        facts = json.loads(out.stdout)
        found[name] = round(facts["peak"] / facts["weights"], 3)
        show(f"memory: {n_labels} x {dim}, {name}: {found[name]} x the weights")
    return found


# -- speed -----------------------------------------------------------------------------------


def seconds(job: Callable[[], Any]) -> float:
    """CPU seconds of a call divided by threads: what the wall shows on an idle machine."""
    begin = time.process_time()
    job()
    return (time.process_time() - begin) / torch.get_num_threads()


def dense_step(x: Tensor, rows: Tensor, block: Block, adagrad: torch.optim.Optimizer) -> None:
    """The rival: all logits, autograd, torch.optim.Adagrad."""
    loss = decoupled_softmax(x @ rows.T, block, 0.1)
    loss.backward()
    adagrad.step()
    adagrad.zero_grad()


def speed(b: int, n_labels: int, dim: int, repeats: int) -> dict[str, Any]:
    """Share of the peak by loss, and the rival's time as a multiple of ours."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2048, 2048, generator=generator)
    x, rows = (torch.randn(n, dim, generator=generator) / 16 for n in (b, n_labels))
    block, times = every_label(b, n_labels), {}
    heads = {kind: Head.of(rows, RowAdagrad(1e-3), kind) for kind in ("binary", "decoupled")}
    leaf, dense = x.clone().requires_grad_(), rows.clone().requires_grad_()
    jobs: dict[str, Callable[[], Any]] = {
        "peak": lambda: square @ square,
        "dense": partial(dense_step, leaf, dense, block, torch.optim.Adagrad([dense], 1e-3)),
        **{kind: partial(head_step, head, x, block) for kind, head in heads.items()},
    }
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name] = min(times.get(name, torch.inf), seconds(job))
    peak = 2 * 2048**3 / times["peak"]
    products = {"binary": 3, "decoupled": 4}  # of b x labels x dim multiplications and additions
    rate = {kind: count * 2 * b * n_labels * dim / times[kind] for kind, count in products.items()}
    found = {
        "batch": b,
        "labels": n_labels,
        "peak_gflops": round(peak / 1e9, 1),
        "share_of_peak": {kind: round(value / peak, 3) for kind, value in rate.items()},
        "dense_over_decoupled": round(times["dense"] / times["decoupled"], 2),
    }
    show(f"speed: {found}")
    return found


# -- planted ---------------------------------------------------------------------------------


def hits(best: Tensor, data: PlantedCodes) -> float:
    """P@1 as a share."""
    return round((best[:, 0] == data.test_labels.indices).double().mean().item(), 4)


def encoder_rows(data: PlantedCodes, dim: int, steps: int, seed: int = 0) -> Tensor:
    """Train word vectors on shortlists of points' labels, as the label job does."""
    n = data.train.n_rows
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(data.train.n_cols, dim, generator=generator) / dim**0.5
    hop = Hop(data.train.stack(data.labels))
    blocks = Chain(ShortlistSampler(data.train_labels), hop, partial(dst_then_src, offset=n))
    table = UnifiedTensor.of(rows, RowAdam(0.02))
    loader = Loader(RandomBatchSampler(n, min(1024, n), seed), blocks, table, seed=seed)
    criterion = in_batch(partial(decoupled_softmax, temperature=0.1))
    fit(Job(Objective(BagEncoder(), criterion), loader), Budget(steps=steps))
    return rows


def tfidf(data: PlantedCodes, k: int = 50) -> Tensor:
    """Rank labels by tf-idf cosines with their texts plus those of the k nearest points' labels.

    Rows have equally many words, each once, so cosines are weighted counts of shared words.
    """
    import numpy as np

    train, test, labels = (part.to_scipy() for part in (data.train, data.test, data.labels))
    often = np.maximum(np.asarray((train > 0).sum(0)).ravel(), 1)
    idf = np.log(train.shape[0] / often).astype(np.float32)
    train, test, labels = (unit(part.multiply(idf).tocsr()) for part in (train, test, labels))
    truth, best = data.train_labels.to_scipy().tocsr(), []
    for first in range(0, test.shape[0], 100):
        query = test[first : first + 100]
        near = (query @ train.T).tocsr()
        for i in range(near.shape[0]):
            row = near.data[near.indptr[i] : near.indptr[i + 1]]
            if len(row) > k:
                row[row < np.partition(row, -k)[-k]] = 0
        best.append(np.asarray((query @ labels.T + near @ truth).argmax(1)).ravel())
    return torch.from_numpy(np.concatenate(best))[:, None]


def unit(matrix: Any) -> Any:
    """Rows divided by their length."""
    import numpy as np
    from scipy.sparse import diags

    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return (diags(1 / np.maximum(length, 1e-12)) @ matrix).astype(np.float32)


def planted(n_labels: int, dim: int, steps: int, n_test: int) -> dict[str, Any]:
    """P@1 of encoder, head and tf-idf, beside the best rule."""
    begin = time.perf_counter()
    n = 4 * n_labels
    channel = {"digits": DIGITS, "base": BASE, "kept": KEPT}
    data = planted_codes(n, n_labels, n_test, named=DIGITS - 2, **channel)
    keys = one_hot(data.label_digits, BASE)
    rule = top_k(one_hot(data.test_digits, BASE).to_dense(), keys.to_dense(), 1)[1]
    found: dict[str, Any] = {
        "labels": n_labels,
        "points": n,
        "best_closed_form": round(code_accuracy(n_labels, DIGITS, BASE, KEPT), 4),
        "best_rule": hits(rule, data),
    }
    del keys
    found["tfidf"] = hits(tfidf(data), data)
    rows = encoder_rows(data, dim, steps)
    points, queries = embed(data.train, rows), embed(data.test, rows)
    names = embed(data.labels, rows)
    found["encoder"] = hits(top_k(queries, names, 1)[1], data)
    head = Head(UnifiedTensor.of(names, RowAdam(3e-3)), temperature=0.05)
    seeds = RandomBatchSampler(n, min(2048, n), 0)
    blocks = ShortlistSampler(data.train_labels, extra=2048)
    job = head_job(head, points, seeds, blocks, dropout=0.0)
    fit(job, Budget(epochs=2))
    found["head"] = hits(head.rank(queries, 1)[1], data)
    found["head_over_best"] = round(found["head"] / found["best_rule"], 4)
    found["seconds"] = round(time.perf_counter() - begin, 1)
    show(f"planted: {found}")
    return found


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: under a minute")
    parser.add_argument("--full", action="store_true", help="3,000,000 planted labels")
    parser.add_argument("--parts", nargs="+", choices=("memory", "speed", "planted"), default=None)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        memory_child(asked.child[0], int(asked.child[1]), int(asked.child[2]))
        return
    parts = asked.parts or ["memory", "speed", "planted"]
    result: dict[str, Any] = {"benchmark": "head"}
    if "memory" in parts:
        result["memory"] = memory(100_000 if asked.quick else 1_000_000, 256)
    if "speed" in parts:
        result["speed"] = speed(1024, 20_000, 256, repeats=2 if asked.quick else 4)
    if "planted" in parts:
        size = (5_000, 128, 150, 500) if asked.quick else (100_000, 256, 500, 2000)
        result["planted"] = planted(*((3_000_000, 256, 1000, 2000) if asked.full else size))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
