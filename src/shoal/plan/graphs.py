"""The plans of :mod:`shoal.tasks.nodes` and :mod:`shoal.tasks.links`: GraphSAGE over sampled hops.

Assumptions: neighbors are drawn evenly from all nodes, every node has the mean number of them, and
nothing overlaps. docs/how-to/plan.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shoal.core.errors import expect, expect_positive
from shoal.core.optimizers import Optimizer
from shoal.curvature.spectrum import Spectrum
from shoal.plan.devices import Machine, Real, Work
from shoal.plan.encoders import NUMBER, distinct
from shoal.plan.nearest import FLIGHT, halves, useful_batch, with_remedy
from shoal.plan.noun import Part, Plan, Stage


@dataclass(frozen=True)
class Graph:
    """Sizes of a graph with features.

    Attributes:
        nodes: how many.
        edges: stored entries.
        width: numbers per feature row.

    Raises:
        InputError: if a number is not positive.
    """

    nodes: int
    edges: int
    width: int

    def __post_init__(self) -> None:
        for name in ("nodes", "edges", "width"):
            expect_positive(name, getattr(self, name))


@dataclass(frozen=True)
class Network:
    """GraphSAGE.

    Attributes:
        hidden: width between layers.
        fanouts: neighbors drawn per node, the seeds' own first; a layer each.

    Raises:
        InputError: if a number is not positive, or there are no layers.
    """

    hidden: int = 256
    fanouts: Sequence[int] = (15, 10)

    def __post_init__(self) -> None:
        expect_positive("hidden", self.hidden)
        expect(len(self.fanouts) > 0, "fanouts", "a number per hop", "none", "pass (15, 10), say")
        for count in self.fanouts:
            expect_positive("fanouts", count)


def nodes(
    graph: Graph,
    classes: int,
    *,
    train: int | None = None,
    network: Network | None = None,
    batch_size: int = 512,
    machine: Machine | None = None,
    spectrum: Spectrum | None = None,
    optimizer: Optimizer = "adam",
) -> Plan:
    """Plan the training of the network of :mod:`shoal.tasks.nodes`.

    Args:
        graph: its sizes.
        classes: that the last layer tells apart.
        train: nodes that are learned; all by default.
        network: widths and fan-outs.
        batch_size: seeds of a global batch.
        machine: what it runs on; one core by default.
        spectrum: of the loss, for the largest batch that is useful.
        optimizer: for which the spectrum was measured, as for :func:`shoal.learning_rate`.

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> plan = nodes(Graph(10_000, 50_000, width=64), classes=7)
        >>> plan.parts[0].name, plan.parts[0].host == 10_000 * 64 * 4
        ('feature rows', True)
    """
    expect_positive("classes", classes)
    seeds = graph.nodes if train is None else train
    expect_positive("train", seeds)
    job = _Job("nodes", graph, network or Network(), classes, machine or Machine())
    return job.plan(seeds, batch_size, spectrum, optimizer)


def links(
    graph: Graph,
    *,
    links_a_node: Real | None = None,
    network: Network | None = None,
    batch_size: int = 512,
    machine: Machine | None = None,
    spectrum: Spectrum | None = None,
    optimizer: Optimizer = "adam",
) -> Plan:
    """Plan the training of the encoder of :mod:`shoal.tasks.links`.

    Args:
        graph: its sizes; each node is a seed.
        links_a_node: links that are learned, per node; all edges by default.
        network: widths and fan-outs; embeddings are as wide as what is hidden.
        batch_size: seeds of a global batch; one link of each is drawn.
        machine: what it runs on; one core by default.
        spectrum: of the loss, for the largest batch that is useful.
        optimizer: for which the spectrum was measured, as for :func:`shoal.learning_rate`.

    Raises:
        InputError: if a number is out of range.

    Example:
        A batch scores its 512 seeds against them and a link of each.

        >>> plan = links(Graph(10**9, 10**10, width=64))
        >>> scores = next(part for part in plan.parts if part.name == "scores of a batch")
        >>> round(scores.device / (4 * 4 * 512))
        1024
    """
    learned = graph.edges / graph.nodes if links_a_node is None else links_a_node
    expect(0 < learned < math.inf, "links_a_node", "a number above 0", learned, "set it")
    shape = network or Network()
    job = _Job("links", graph, shape, shape.hidden, machine or Machine(), learned)
    return job.plan(graph.nodes, batch_size, spectrum, optimizer)


@dataclass(frozen=True)
class _Job:
    """A network of one layer a hop, on a graph."""

    task: str
    graph: Graph
    network: Network
    out: int
    machine: Machine
    links: Real = 0.0

    def plan(
        self, seeds: int, batch_size: int, spectrum: Spectrum | None, optimizer: Optimizer
    ) -> Plan:
        """Of the batch size that is asked for, with the nearest that fits."""
        expect_positive("batch_size", batch_size)

        def made(size: int) -> Plan:
            return self._made(seeds, min(size, seeds), spectrum, optimizer)

        def nearer() -> Iterator[tuple[str, Plan]]:
            return ((f"batch_size {size}", made(size)) for size in halves(batch_size))

        return with_remedy(made(batch_size), nearer)

    def hops(self, seeds: Real) -> list[tuple[Real, Real]]:
        """Nodes that hold after each hop, the seeds first, and the entries that it drew."""
        degree, found = self.graph.edges / self.graph.nodes, [(seeds, 0.0)]
        for fanout in self.network.fanouts:
            before = found[-1][0]
            drawn = before * min(fanout, degree)
            # the nodes before lead, the draws fall evenly on all nodes
            new = (self.graph.nodes - before) * -math.expm1(-drawn / self.graph.nodes)
            found.append((before + max(new, 0.0), drawn))
        return found

    def _made(self, seeds: int, size: int, spectrum: Spectrum | None, optimizer: Optimizer) -> Plan:
        machine, graph = self.machine, self.graph
        share = size / machine.ranks
        scored = 0.0
        if self.links:
            scored = size + distinct(graph.nodes, size)
            share = scored / machine.ranks
        hops = self.hops(share)
        widths = [graph.width, *([self.network.hidden] * (len(hops) - 2)), self.out]
        read, entries = hops[-1][0], sum(drawn for _, drawn in hops)
        row = NUMBER * graph.width
        wide = 4 if graph.nodes < 2**31 else 8  # bytes of an index
        weights = NUMBER * sum(2 * m * n + n for m, n in pairwise(widths))
        kept, compute = self._layers(hops, widths)
        # rows in flight lie in host memory until they are handed over
        flight = Part("batches in flight", host=FLIGHT * (read * (row + 16) + 32 * entries))
        # learned links, and those that are known, which validation leaves out
        of_links = 2 * graph.nodes * (8 + wide * self.links) if self.links else 0
        parts = (
            Part("feature rows", host=graph.nodes * row),
            Part("graph", host=8 * graph.nodes + wide * graph.edges + of_links),
            Part("weights and optimizer state", device=3 * weights),
            Part("sampler's numbering of nodes", host=8 * graph.nodes),
            flight,
            Part("rows of a batch", device=0.0 if machine.on_host else read * row, phase="step"),
            Part("activations", device=kept, phase="step"),
            Part("scores of a batch", device=4 * NUMBER * size * scored, phase="step"),
        )
        linked = 0.0 if machine.on_host else read * row
        stages = [
            Stage("sample", Work(entries=2 * entries + read, calls=60 * len(hops))),
            Stage("gather", Work(gathered=2 * read * row, calls=4, linked=linked)),
            Stage("compute", compute),
            Stage("update", Work(streamed=12 * weights, calls=12 * 3 * len(hops))),
        ]
        if self.links:
            flops, moved = 6 * size * scored * self.out, 16 * NUMBER * size * scored
            stages.append(Stage("loss", Work(flops=flops, streamed=moved, calls=60)))
        if machine.ranks > 1:
            outputs = NUMBER * (scored or size) * self.out
            sent = (machine.ranks - 1) / machine.ranks * (outputs + 2 * weights)
            stages.append(Stage("communication", Work(sent=sent, calls=6)))
        steps = math.ceil(seeds / size)
        useful = useful_batch(spectrum, size, optimizer)
        return Plan(self.task, machine, size, steps, parts, tuple(stages), useful)

    def _layers(self, hops: list[tuple[Real, Real]], widths: list[int]) -> tuple[Real, Work]:
        """Bytes that are kept for the backward pass, and the work of all passes.

        A layer takes the mean of its entries' rows, then two products. Each product has two more
        backward, but that of the first layer's rows, which are not trained.
        """
        kept, flops, gathered, streamed = 0.0, 0.0, 0.0, 0.0
        sizes = zip(self._layer_sizes(hops), pairwise(widths), strict=True)
        for k, ((made, drawn), (m, n)) in enumerate(sizes):
            passes = 2 if k == 0 else 3
            flops += passes * 2 * 2 * made * m * n
            gathered += NUMBER * drawn * m * (1 if k == 0 else 2)
            # means; two results and their sum; relu, dropout and its mask behind all but the last
            kept += NUMBER * made * (m + 3 * n)
            streamed += NUMBER * made * (3 * m + 12 * n)
        return kept, Work(flops, streamed, gathered, calls=60 * len(hops))

    @staticmethod
    def _layer_sizes(hops: list[tuple[Real, Real]]) -> list[tuple[Real, Real]]:
        """Rows that each layer makes and entries that it reads, the first layer first."""
        return [(inner[0], outer[1]) for inner, outer in reversed(list(pairwise(hops)))]
