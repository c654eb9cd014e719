"""``shoal plan``: asks the library for a plan and prints it; :mod:`shoal.plan` computes it."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import shoal.plan
from shoal.cli.parts import Plan, PlanGraph, PlanLabels, PlanLinks, PlanNodes
from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail
from shoal.core.memory import available_bytes
from shoal.curvature.spectrum import Spectrum
from shoal.data.graphs import read
from shoal.data.nodes import node_data
from shoal.graph.features import row_width
from shoal.models.graphs import BATCH_SIZE
from shoal.plan.rows import Placement, Rates, place, reads_of_graph, zipf_reads

WIDTH, TRAIN = 256, 0.1  # where nothing is known
_GIB = 2**30
_RATES = ("device_gbs", "link_gbs", "host_gbs", "disk_iops")


def plan(asked: Plan) -> dict[str, Any]:
    """Run ``shoal plan``.

    Returns:
        what the command prints: tiers with rows, size, share and time, the code to write and, for a
        graph that ``shoal train`` reads, its flags.

    Raises:
        InputError: if a number is out of range or the graph cannot be read.
    """
    _expect_numbers(asked)
    task = None
    if asked.source:
        task, asked, graph, seeds = _known(asked.source, asked)
        n, size = graph.n_rows, asked.batch_size or BATCH_SIZE
        same = asked.rows in (None, n)
        expect(same, "rows", f"the graph's {n} nodes", asked.rows, "leave it out")
        reads = reads_of_graph(graph, seeds, asked.fanouts, size)
    else:
        known = asked.rows is not None
        expect(known, "source", "a graph, or --rows", "neither", "name one of them")
        reads = zipf_reads(asked.rows or 0, asked.batch_rows, asked.zipf)
    width = WIDTH if asked.width is None else asked.width
    row = width * getattr(torch, asked.dtype).itemsize
    rates = Rates(**{name: getattr(asked, name) for name in _RATES})
    found = place(reads, row, *_room(asked), rates)
    tiers = _tiers(found)
    command = None if task is None else _command(task, asked, found)
    return {
        "rows": reads.n,
        "row_bytes": row,
        "table_GiB": round(reads.n * row / _GIB, 3),
        "rows_a_batch": round(reads.batch),
        "tiers": tiers,
        "ms_a_batch": round(sum(tier["ms"] for tier in tiers), 3),
        f"ms_all_from_{found.last}": round(1e3 * reads.batch * found.seconds[found.last], 3),
        "assumed": _assumed(asked),
        "code": _code(asked, found),
        **({} if command is None else {"command": command}),
    }


def _tiers(found: Placement) -> Columns:
    shares = found.shares()
    return Columns(
        {
            "tier": name,
            "rows": count,
            "GiB": round(found.held(name) * found.row / _GIB, 3),
            "reads_percent": round(100 * shares[name], 2),
            "ms": round(1e3 * found.reads.batch * shares[name] * found.seconds[name], 3),
        }
        for name, count in found.counts.items()
    )


def _known(source: str, asked: Plan) -> tuple[str, Plan, Csr, Tensor]:
    """The task that trains on a graph, the completed settings, the graph and its seeds.

    Raises:
        InputError: if the graph cannot be read.
    """
    found = read(source)
    graph, features = found.graph, found.features
    n, width = graph.n_rows, None if features is None else row_width(features)
    classes = found.y is not None and found.links is None
    seeds = node_data(found).train if classes else None
    if seeds is None or asked.train is not None:
        generator = torch.Generator().manual_seed(asked.seed)
        share = TRAIN if asked.train is None else asked.train
        seeds = torch.randperm(n, generator=generator)[: max(1, round(share * n))]
    size = asked.batch_size or min(BATCH_SIZE, len(seeds))
    width = width if asked.width is None else asked.width
    share = round(len(seeds) / max(n, 1), 4)
    task = "nodes" if classes else "links"
    return task, replace(asked, train=share, batch_size=size, width=width), graph, seeds


def _room(asked: Plan) -> tuple[int, int]:
    """Bytes for rows on the device and in host memory."""
    device = 0.0 if asked.device_gib is None else asked.device_gib * _GIB
    if asked.device_gib is None and asked.device != "cpu":
        device = torch.cuda.mem_get_info(torch.device(asked.device))[0] / 2
    if asked.host_gib is not None:
        return int(device), int(asked.host_gib * _GIB)
    left = available_bytes()
    if left is None:
        fail("host_gib", "GiB of host memory", "none, and no count by this system", "set it")
    return int(device), left // 2


def _expect_numbers(asked: Plan) -> None:
    """Raise unless every number is in its range."""
    for name in ("width", "batch_size"):
        value = getattr(asked, name)
        expect_positive(name, value) if value is not None else None
    share = asked.train is None or 0 < asked.train <= 1
    expect(share, "train", "a share in (0, 1]", asked.train, "set it")
    expect(len(asked.fanouts) > 0, "fanouts", "a number per hop", "none", "pass 15 10, say")
    for name in ("zipf", "device_gib", "host_gib", *_RATES):
        value, zero = getattr(asked, name), name not in _RATES
        good = value is None or (0 <= value < math.inf and (zero or value > 0))
        want = "a finite number of at least 0" if zero else "a finite number above 0"
        expect(good, name, want, value, "set it")


def _assumed(asked: Plan) -> dict[str, Any]:
    names = ["batch_size", "fanouts", "train"] if asked.source else ["zipf"]
    return {name: getattr(asked, name) for name in (*names, *_RATES)}


def _command(task: str, asked: Plan, found: Placement) -> str:
    """``shoal train`` with rows where they are planned."""
    fanouts = " ".join(map(str, asked.fanouts))
    words = [f"shoal train {task}", shlex.quote(str(asked.source))]
    words.append(f"--batch-size {asked.batch_size} --fanouts {fanouts}")
    if found.counts["device"]:
        words.append(f"--device {_device(asked)} --device-rows {found.counts['device']}")
    if not found.in_memory:
        words.append(f"--host-rows {found.counts['host']}")
    return " ".join(words)


def _code(asked: Plan, found: Placement) -> list[str]:
    """The lines that make such a table; `rows`, `graph` and `train` are the user's."""
    if found.in_memory and found.counts["device"] == 0:
        return ["table = shoal.unified(rows)"]
    parts, lines = ["rows" if found.in_memory else '"rows.npy"'], []
    if asked.source:
        sizes = f"{list(asked.fanouts)}, {asked.batch_size}"
        lines.append(f"scores = shoal.touch_probability(graph, train, {sizes})")
        parts.append("scores")
    if found.counts["device"]:
        parts.append(f'device_rows={found.counts["device"]}, device="{_device(asked)}"')
    if found.counts["host"] and not found.in_memory:
        parts.append(f"host_rows={found.counts['host']}")
    return [*lines, f"table = shoal.TieredTable({', '.join(parts)})"]


def _device(asked: Plan) -> str:
    return asked.device if asked.device != "cpu" else "cuda"


# -- a model -------------------------------------------------------------------------------------


def plan_labels(asked: PlanLabels) -> dict[str, Any]:
    """Run ``shoal plan labels``.

    Raises:
        InputError: if a number is out of range.
    """
    bag = asked.layers is None
    for name in ("heads", "inner", "chunk") if bag else ():
        given = getattr(asked, name)
        expect(given is None, name, "--layers, as it is a transformer's", "none", "pass both")
    dim = asked.dim or (256 if bag else 384)
    if bag:
        encoder = shoal.plan.BagSizes(asked.vocabulary or 3 * 30_000, dim, asked.zipf)
    else:
        sizes = {name: getattr(asked, name) for name in ("inner", "vocabulary", "chunk")}
        given = {name: value for name, value in sizes.items() if value is not None}
        heads = asked.heads or max(dim // 64, 1)
        encoder = shoal.plan.TransformerSizes(asked.layers or 1, dim, heads, **given)
    return shoal.plan.labels(
        asked.examples,
        asked.labels,
        encoder=encoder,
        tokens=asked.tokens,
        label_tokens=asked.label_tokens,
        labels_an_example=asked.labels_an_example,
        batch_size=asked.batch_size,
        classifiers=asked.classifiers,
        machine=_machine(asked),
        spectrum=_spectrum(asked),
        optimizer=asked.optimizer,
    ).facts()


def plan_nodes(asked: PlanNodes) -> dict[str, Any]:
    """Run ``shoal plan nodes``.

    Raises:
        InputError: if a number is out of range.
    """
    more = {"train": asked.train, **_of_graphs(asked)}
    return shoal.plan.nodes(_graph(asked), asked.classes, **more).facts()


def plan_links(asked: PlanLinks) -> dict[str, Any]:
    """Run ``shoal plan links``.

    Raises:
        InputError: if a number is out of range.
    """
    more = {"links_a_node": asked.links_a_node, **_of_graphs(asked)}
    return shoal.plan.links(_graph(asked), **more).facts()


def _graph(asked: PlanGraph) -> shoal.plan.Graph:
    return shoal.plan.Graph(asked.nodes, asked.edges, asked.width)


def _of_graphs(asked: PlanGraph) -> dict[str, Any]:
    return {
        "network": shoal.plan.Network(asked.hidden, asked.fanouts),
        "batch_size": asked.batch_size,
        "machine": _machine(asked),
        "spectrum": _spectrum(asked),
        "optimizer": asked.optimizer,
    }


def _machine(asked: PlanLabels | PlanGraph) -> shoal.plan.Machine:
    machine = shoal.plan.Machine(
        asked.device, asked.ranks, asked.ranks_a_host, asked.precision, asked.price
    )
    if asked.host_gib is None:
        return machine
    expect_positive("host_gib", asked.host_gib)
    return replace(machine, device=replace(machine.device, host=asked.host_gib * _GIB))


def _spectrum(asked: PlanLabels | PlanGraph) -> Spectrum | None:
    """The spectrum of a file that ``shoal spectrum`` wrote.

    Raises:
        InputError: if there is none.
    """
    if asked.spectrum is None:
        return None
    is_file = asked.spectrum.is_file()
    remedy = "name the spectrum.json that shoal spectrum wrote"
    expect(is_file, "spectrum", "a file", str(asked.spectrum), remedy)
    return Spectrum.from_json(asked.spectrum.read_text(), str(asked.spectrum))
