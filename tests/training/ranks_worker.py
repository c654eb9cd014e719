"""Jobs that several processes train together; run as a module, it is one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import shoal
from shoal.core import checkpoint, ranks
from shoal.core.block import Batch
from shoal.graph.features import word_rows
from shoal.graph.sage import Sage
from shoal.rank.classifiers import AllLabels, Classifiers, _seen, classifier_job
from shoal.rank.loss_skip import one_vs_all_loss
from shoal.rank.one_vs_all import OneVsAll
from shoal.tasks import links
from shoal.training.callbacks import Callback
from shoal.training.checkpoints import weights_of
from shoal.training.gradients import Gradients, gradient_of
from shoal.training.job import Budget, Job, Progress
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.graphs import write_links
from tests.training.test_loop import label_job, node_job

STEPS = 8


def link_job() -> Job:
    """The page of the link task on planted links; trained rows, since there are no features."""
    path = write_links(Path(f"links-{ranks.rank()}.npz"), features=False)
    data = shoal.load_links(path)
    rows = shoal.unified(word_rows(data.graph.n_rows, 8), shoal.RowAdam(lr=0.01))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = shoal.LinkEncoder(Sage(8, 8, 8, layers=2, dropout=0.0))
    return links.build(data, encoder, rows, table=rows, batch_size=40, fanouts=(3, 2))


JOBS: dict[str, Callable[[], Job]] = {
    "labels": label_job,
    "chunks": lambda: label_job(gradients=Gradients(chunk=5)),
    "clipped": lambda: label_job(gradients=Gradients(accumulate=2, clip=0.01)),
    "nodes": lambda: node_job(dropout=0.0),
    "links": link_job,
}


def outcome(make: Callable[[], Job]) -> dict[str, Any]:
    """The gradient of a job's first batch, and what it has trained after some steps."""
    job = make()
    job.loader.shared = ranks.world_size() > 1
    stream = iter(job.loader)
    batch = next(stream)
    trains = job.table is not None
    found = gradient_of(job.objective, [batch], trains, job.gradients)
    state: dict[str, Any] = {"loss": torch.tensor(found.loss), "dense": found.dense}
    state["outputs"] = found.outputs[0]
    if found.ids is not None and found.rows is not None:
        order = found.ids.argsort()  # processes sum rows by id, one process keeps the batch's order
        state |= {"ids": found.ids[order], "rows": found.rows[order]}
    job = make()
    progress = fit(job, Budget(steps=STEPS))
    return {"gradient": state, "trained": weights_of(job), "best": torch.tensor(progress.best)}


def classified() -> dict[str, Any]:
    """Losses, gradients, weights and ranking of classifiers, each process with some labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator)
    labels = torch.randn(17, 6, generator=generator)  # two or three processes hold unequal parts
    labels[9] = labels[3]  # equal scores
    truth = shoal.Csr.from_coo(torch.arange(40), torch.arange(40) * 7 % 17, (40, 17))
    found: dict[str, Any] = {}
    for kind in ("decoupled", "softmax", "binary"):
        table = OneVsAll.shard(labels, shoal.RowAdam(lr=0.01), kind=kind, chunk=4)
        (block,) = AllLabels(truth)(torch.arange(20), generator)
        (less,) = shoal.ShortlistSampler(truth, None)(torch.arange(20, 25), generator)
        for name, one, seeds in (("all", block, slice(0, 20)), ("some", less, slice(20, 25))):
            seen = x[seeds].clone().requires_grad_()
            loss = one_vs_all_loss(table, seen, one)
            loss.backward()
            found |= {f"{kind} {name} loss": loss.detach(), f"{kind} {name} x": seen.grad}
        seeds = shoal.Random(10)(40, 0)
        job = classifier_job(table, x, seeds, AllLabels(truth), dropout=0.0)
        with torch.random.fork_rng():
            torch.manual_seed(ranks.rank())  # as in training; all see the same points all the same
            batch = Batch(block.dst, (block,), x)
            found["dropped out"] = _seen(x, 0.5, batch)
        fit(job, Budget(steps=STEPS))
        found[f"{kind} weights"] = table.joined(table.weights)
        drop = shoal.Csr.from_coo(torch.arange(40), torch.arange(40) % 17, (40, 17))
        for k in (4, 12):  # more than a process holds
            scores, ids = table.rank(x, k, drop)
            found |= {f"{kind} scores {k}": scores, f"{kind} ids {k}": ids}
    best, _ = Classifiers(epochs=2).fit(x, labels, truth, shoal.Random(10))
    found["fitted"] = best
    return found


class Halfway(Callback):
    """Ends training after half of the steps."""

    def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Ask for an end."""
        if progress.step == STEPS // 2:
            progress.stopped = "halfway"


def main(folder: Path) -> None:
    """Train every job, then half of one, as one process of several."""
    with ranks.launched():
        for name, make in JOBS.items():
            checkpoint.save(folder / f"{name}-{ranks.rank()}.safetensors", outcome(make))
        checkpoint.save(folder / f"classified-{ranks.rank()}.safetensors", classified())
        run = Run.create(folder / f"half-{ranks.rank()}", {})
        fit(label_job(), Budget(steps=STEPS), run, callbacks=[Halfway()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
