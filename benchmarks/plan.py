"""The planner beside what was measured: peak memory and CPU time a step, by stage.

Each setting trains on data that is drawn as the planner assumes (labels and neighbors evenly,
tokens by Zipf's law) in processes of its own: one for the peak of resident memory, above that of
the imports and of a tiny job, one for the CPU time of one thread, the median of some steps. The
machine's five rates are fitted to the settings of FITTED alone, by relative least squares; those of
ASKED were listed in docs/results/plan.md before anything was fitted.

    python benchmarks/plan.py --out docs/results/plan.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from head import status

import shoal
from shoal import plan
from shoal.core.columns import Columns
from shoal.plan.devices import DEVICES, Device, Work
from shoal.tasks import labels, links, nodes
from shoal.text.bag import Bag
from shoal.text.transformer import begun
from shoal.training.gradients import gradient_of, trained

RATES = ("flops", "streamed", "gathered", "entries", "calls")
# which stages of a plan are measured together
STAGES = {
    "batch": ("sample", "gather"),
    "gradient": ("compute", "loss"),
    "update": ("update",),
    "refresh": ("embedding the examples", "clustering"),
}
FITTED: dict[str, dict[str, Any]] = {
    "bag 0": {"task": "bag", "examples": 100_000, "labels": 100_000, "vocabulary": 80_000,
              "dim": 192, "tokens": 20, "batch": 768},
    "transformer 0": {"task": "transformer", "examples": 20_000, "labels": 10_000, "layers": 3,
                      "dim": 96, "heads": 3, "vocabulary": 20_000, "tokens": 20, "batch": 192},
    "nodes 0": {"task": "nodes", "nodes": 300_000, "edges": 3_000_000, "width": 100,
                "classes": 20, "hidden": 128, "fanouts": [10, 10], "batch": 512},
    "links 0": {"task": "links", "nodes": 300_000, "edges": 3_000_000, "width": 100,
                "hidden": 96, "fanouts": [8, 4], "batch": 384},
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "bag 1": {"task": "bag", "examples": 200_000, "labels": 100_000, "vocabulary": 100_000,
              "dim": 256, "tokens": 30, "batch": 1024},
    "bag 2": {"task": "bag", "examples": 100_000, "labels": 50_000, "vocabulary": 300_000,
              "dim": 128, "tokens": 60, "batch": 512},
    "bag 3": {"task": "bag", "examples": 300_000, "labels": 300_000, "vocabulary": 50_000,
              "dim": 64, "tokens": 15, "batch": 4096},
    "transformer 1": {"task": "transformer", "examples": 20_000, "labels": 10_000, "layers": 2,
                      "dim": 128, "heads": 2, "vocabulary": 30_522, "tokens": 16, "batch": 256},
    "transformer 2": {"task": "transformer", "examples": 20_000, "labels": 20_000, "layers": 4,
                      "dim": 64, "heads": 4, "vocabulary": 10_000, "tokens": 32, "batch": 128},
    "transformer 3": {"task": "transformer", "examples": 5_000, "labels": 5_000, "layers": 6,
                      "dim": 384, "heads": 12, "vocabulary": 30_522, "tokens": 12, "batch": 64},
    "transformer 4": {"task": "transformer", "examples": 20_000, "labels": 10_000, "layers": 2,
                      "dim": 128, "heads": 2, "vocabulary": 30_522, "tokens": 16, "batch": 512,
                      "chunk": 64},
    "nodes 1": {"task": "nodes", "nodes": 500_000, "edges": 5_000_000, "width": 128,
                "classes": 40, "hidden": 256, "fanouts": [15, 10], "batch": 512},
    "nodes 2": {"task": "nodes", "nodes": 200_000, "edges": 4_000_000, "width": 500,
                "classes": 10, "hidden": 64, "fanouts": [10, 5], "batch": 1024},
    "nodes 3": {"task": "nodes", "nodes": 1_000_000, "edges": 3_000_000, "width": 64,
                "classes": 5, "hidden": 128, "fanouts": [10, 10, 5], "batch": 256},
    "links 1": {"task": "links", "nodes": 200_000, "edges": 2_000_000, "width": 128,
                "hidden": 128, "fanouts": [10, 5], "batch": 512},
    "links 2": {"task": "links", "nodes": 500_000, "edges": 2_500_000, "width": 64,
                "hidden": 64, "fanouts": [15, 10], "batch": 256},
}  # fmt: skip
TINY = {
    "bag": {"examples": 400, "labels": 400, "vocabulary": 99, "dim": 8, "tokens": 4, "batch": 128},
    "transformer": {"examples": 400, "labels": 99, "layers": 1, "dim": 16, "heads": 2,
                    "vocabulary": 99, "tokens": 4, "batch": 128},
    "nodes": {"nodes": 200, "edges": 900, "width": 8, "classes": 3, "hidden": 8,
              "fanouts": [3, 2], "batch": 32},
    "links": {"nodes": 200, "edges": 900, "width": 8, "hidden": 8, "fanouts": [3, 2], "batch": 32},
}  # fmt: skip


# -- the plan of a setting -------------------------------------------------------------------------


def planned(at: dict[str, Any], device: Device) -> plan.Plan:
    """What the planner says of a setting."""
    machine = plan.Machine(device)
    if at["task"] in ("bag", "transformer"):
        encoder: Any = plan.BagSizes(at["vocabulary"], at["dim"]) if at["task"] == "bag" else None
        encoder = encoder or plan.TransformerSizes(
            at["layers"], at["dim"], at["heads"], vocabulary=at["vocabulary"], chunk=at.get("chunk")
        )
        return plan.labels(
            at["examples"], at["labels"], encoder=encoder, tokens=at["tokens"],
            batch_size=at["batch"], classifiers=False, machine=machine,
        )  # fmt: skip
    graph = plan.Graph(at["nodes"], at["edges"], at["width"])
    network = plan.Network(at["hidden"], at["fanouts"])
    if at["task"] == "nodes":
        return plan.nodes(
            graph, at["classes"], network=network, batch_size=at["batch"], machine=machine
        )
    return plan.links(graph, network=network, batch_size=at["batch"], machine=machine)


# -- the job of a setting --------------------------------------------------------------------------


def job_of(at: dict[str, Any]) -> shoal.Job:
    """Such data, and what trains on it; without validation."""
    generator = torch.Generator().manual_seed(0)
    if at["task"] in ("bag", "transformer"):
        return label_job(at, generator)
    return replace(graph_job(at, generator), evaluate=None)


def regular(rows: int, each: int, columns: int, draw: Callable[[int], torch.Tensor]) -> shoal.Csr:
    """A matrix of as many entries in each row."""
    indices = torch.cat([draw(min(2**20, rows * each - i)) for i in range(0, rows * each, 2**20)])
    indices = indices.int().view(rows, each).sort().values.flatten()
    return shoal.Csr(torch.arange(rows + 1) * each, indices, columns)


def evenly(n: int, generator: torch.Generator) -> Callable[[int], torch.Tensor]:
    """Draws from n, all alike."""
    return lambda count: torch.randint(n, (count,), generator=generator)


def label_job(at: dict[str, Any], generator: torch.Generator) -> shoal.Job:
    """Texts of one length, tokens by Zipf's law in an order of their own."""
    n, n_labels, v = at["examples"], at["labels"], at["vocabulary"]
    law = (1 / torch.arange(1, v + 1).double()).cumsum(0)
    order = torch.randperm(v, generator=generator)

    def zipf(count: int) -> torch.Tensor:
        drawn = torch.rand(count, generator=generator, dtype=torch.float64) * law[-1]
        return order[torch.searchsorted(law, drawn).clamp(max=v - 1)]

    tokens = regular(n + n_labels, at["tokens"], v, zipf)
    truth = regular(n, 2, n_labels, evenly(n_labels, generator))
    batches = shoal.Clustered(at["batch"], warm_epochs=0)
    if at["task"] == "bag":
        spec: Any = shoal.BagEncoder(dim=at["dim"])
        rows = torch.randn(v, at["dim"], generator=generator)
        encoder: Any = Bag(range(v), rows, spec).trainable(tokens, "cpu")  # type: ignore[arg-type]
    else:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=v, hidden_size=at["dim"], num_hidden_layers=at["layers"],
            num_attention_heads=at["heads"], intermediate_size=4 * at["dim"],
        )  # fmt: skip
        spec = shoal.TransformerEncoder("planted")
        bert = BertModel(config, add_pooling_layer=False)
        encoder = begun(spec, None, [bert], n, 0, "cpu")  # type: ignore[arg-type]
    gradients = shoal.Gradients(chunk=at.get("chunk"))
    parts = labels.Parts(encoder=spec, batches=batches, gradients=gradients)
    return labels.build(parts, encoder, tokens, truth)


def graph_job(at: dict[str, Any], generator: torch.Generator) -> shoal.Job:
    """As many neighbors for each node, drawn evenly, and random features."""
    n, degree = at["nodes"], at["edges"] // at["nodes"]
    graph = regular(n, degree, n, evenly(n, generator))
    rows = torch.randn(n, at["width"], generator=generator)
    hidden, fanouts = at["hidden"], at["fanouts"]
    sizes = {"batch_size": at["batch"], "fanouts": fanouts}
    if at["task"] == "nodes":
        target = torch.randint(at["classes"], (n,), generator=generator)
        every = torch.arange(n)
        names = tuple(str(i) for i in range(at["classes"]))
        data = shoal.NodeData(
            "planted", graph, rows, target, every[2:], every[:1], every[1:2], names
        )
        network = shoal.Sage(at["width"], hidden, at["classes"], layers=len(fanouts))
        return nodes.build(data, network, rows, **sizes)
    pairs = torch.zeros(2, 1, dtype=torch.int64)
    learned, known = copy.deepcopy(graph), copy.deepcopy(graph)
    data = shoal.LinkData("planted", graph, rows, learned, pairs, pairs, known)
    sage = shoal.Sage(at["width"], hidden, hidden, layers=len(fanouts), dropout=0.0)
    return links.build(data, shoal.LinkEncoder(sage), rows, **sizes)


# -- what is measured ------------------------------------------------------------------------------


def peak(at: dict[str, Any]) -> dict[str, float]:
    """Bytes above the imports and a tiny job, after some steps and a refresh."""
    train_some(job_of({"task": at["task"], **TINY[at["task"]]}))
    bare = status("VmRSS")
    job = job_of(at)
    Path("/proc/self/clear_refs").write_text("5")  # the peak that making the data left
    train_some(job)
    if job.refresh is not None:  # beside optimizer state, which the first one had not
        job.refresh(1)
    return {"bytes": status("VmHWM") - bare}


def train_some(job: shoal.Job) -> None:
    """Three steps, behind the clustering of an epoch's beginning."""
    shoal.fit(job, shoal.Budget(steps=3))


def stages(at: dict[str, Any]) -> dict[str, float]:
    """Median seconds of CPU time a step, by stage; of a refresh its share of a step."""
    job = job_of(at)
    job.loader.prefetch = 0
    found: dict[str, list[float]] = {name: [] for name in STAGES}
    clock = time.process_time
    begin = clock()
    if job.refresh is not None:
        job.refresh(0)
        found["refresh"].append((clock() - begin) / job.steps_per_epoch)
    stream, count = iter(job.loader), 4 if at["task"] == "transformer" else 8
    for _ in range(count):
        start = clock()
        batch = next(stream)
        made = clock()
        gradient = gradient_of(job.objective, [batch], job.table is not None, job.gradients)
        done = clock()
        if job.optimizer is not None:
            for name, parameter in trained(job.objective.model).items():
                parameter.grad = gradient.dense[name]
            job.optimizer.step()
            job.optimizer.zero_grad()
        if job.table is not None:
            job.table.update(gradient.ids, gradient.rows)
        moved = clock()
        for name, seconds in zip(STAGES, (made - start, done - made, moved - done), strict=False):
            found[name].append(seconds)
    # the first step begins optimizers and memory
    rest = {name: x[1:] if len(x) > 1 else x for name, x in found.items()}
    return {name: statistics.median(x) for name, x in rest.items() if x}


def child(name: str, what: str) -> None:
    """Measure one thing of one setting."""
    at = (FITTED | ASKED)[name]
    torch.set_num_threads(1)
    print(json.dumps(peak(at) if what == "peak" else stages(at)))


def measured(name: str) -> dict[str, Any]:
    """Memory and stages of a setting, each in a process of its own."""
    found: dict[str, Any] = {}
    for what in ("peak", "stages"):
        command = [sys.executable, __file__, "--child", name, what]
        out = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(out.stdout.splitlines()[-1])
    print(name, found, file=sys.stderr, flush=True)
    return found


# -- the fit, and the table ------------------------------------------------------------------------


def work_of(of: plan.Plan, names: tuple[str, ...]) -> list[float]:
    """What stages have to do a step, in the currencies of RATES."""
    total = dict.fromkeys(RATES, 0.0)
    for stage in of.stages:
        if stage.name in names:
            for rate in RATES:
                share = of.steps if stage.per_epoch else 1
                total[rate] += getattr(stage.work, rate) / share
    return list(total.values())


def fitted(found: dict[str, dict[str, Any]]) -> Device:
    """The rates that are nearest to what FITTED took, stage by stage, in relative squares."""
    from scipy.optimize import nnls

    rows, cpu = [], DEVICES["cpu"]
    for name, at in FITTED.items():
        of = planned(at, cpu)
        for stage, seconds in found[name]["stages"].items():
            rows.append(np.array(work_of(of, STAGES[stage])) / seconds)
    matrix = np.array(rows)
    scale = matrix.max(0)
    costs = nnls(matrix / scale, np.ones(len(rows)))[0] / scale
    flops, streamed, gathered, entries, call = (float(max(x, 1e-15)) for x in costs)
    return replace(
        cpu, name="fitted", flops=1 / flops, streamed=1 / streamed, gathered=1 / gathered,
        entries=1 / entries, call=call,
    )  # fmt: skip


def compared(name: str, found: dict[str, Any], device: Device) -> dict[str, Any]:
    """Predictions beside measurements."""
    of = planned((FITTED | ASKED)[name], device)
    line: dict[str, Any] = {
        "system": "shoal.plan",
        "data": "planted",
        "command": "python benchmarks/plan.py --out docs/results/plan.jsonl",
        "date": time.strftime("%Y-%m-%d"),
        "machine": "shared CPU cores, no GPU, one thread",
        "setting": name,
        "mib": round(found["peak"]["bytes"] / 2**20),
        "planned_mib": round(of.host_bytes / 2**20),
    }
    line["memory_percent"] = round(100 * (of.host_bytes / found["peak"]["bytes"] - 1))
    whole = sum(found["stages"].values())
    line |= {"ms": round(1e3 * whole, 1), "planned_ms": round(1e3 * of.seconds(), 1)}
    line["time_percent"] = round(100 * (of.seconds() / whole - 1))
    for stage, seconds in found["stages"].items():
        work = Work(**dict(zip(RATES, work_of(of, STAGES[stage]), strict=True)))
        line[stage] = f"{1e3 * seconds:.1f} / {1e3 * device.seconds(work):.1f}"
    return line


def main() -> None:
    """Measure everything, or with --facts compare what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--facts", type=Path, help="measurements, kept and read again")
    parser.add_argument("--out", type=Path, help="JSON lines of the comparison")
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    found = json.loads(asked.facts.read_text()) if asked.facts and asked.facts.exists() else {}
    for name in FITTED | ASKED:
        if name not in found:
            found[name] = measured(name)
            if asked.facts:
                asked.facts.write_text(json.dumps(found))
    device = fitted(found)
    print(device)
    lines = [compared(name, found[name], device) for name in FITTED | ASKED]
    shown = ("setting", "mib", "planned_mib", "memory_percent", "ms", "planned_ms", "time_percent")
    print(Columns({name: line[name] for name in shown} for line in lines))
    for line in lines:
        print(json.dumps(line))
    if asked.out:
        asked.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
