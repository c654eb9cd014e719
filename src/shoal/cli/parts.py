"""``shoal plan``, ``gather``, ``spectrum``, ``find-lr``: where rows lie, how far to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from shoal.tasks.settings import Common, File, Float, Int, Source, Text


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Say what training takes (shoal plan labels|nodes|links), or where a table's rows lie best."""

    source: Annotated[Text, tyro.conf.Positional, tyro.conf.arg(metavar="GRAPH")] = None
    """A graph whose batches read the rows: as in train, a saved Csr, or edges, two nodes a line."""
    device: str = "cpu"
    """Device whose memory holds the hottest rows: cpu (none), cuda, cuda:1."""
    rows: Int = None
    """Without a graph: number of rows of the table."""
    width: Int = None
    """Numbers per row; by default what train reads of the graph's features, else 256."""
    dtype: Literal["float32", "float16", "bfloat16", "float64", "int8"] = "float32"
    """Type of the numbers."""
    batch_size: Int = None
    """With a graph: seeds per batch; 512 by default, or all where there are fewer."""
    fanouts: tuple[int, ...] = (15, 10)
    """With a graph: neighbors drawn per node, one number per hop, the seeds' own first."""
    train: Float = None
    """With a graph: share of its nodes that are seeds; its own training nodes, else a tenth."""
    seed: int = 0
    """Seed with which those nodes are drawn."""
    zipf: float = 0.0
    """Without a graph: the r-th most read row is read in proportion to 1 / r^zipf."""
    batch_rows: int = 100_000
    """Without a graph: rows that a batch reads."""
    device_gib: Float = None
    """Device memory for rows, GiB; by default half of what is free, and none on a cpu."""
    host_gib: Float = None
    """Host memory for rows, GiB; by default half of what is free."""
    device_gbs: float = 1000.0
    """GB/s of rows in device memory; a third of an H100's peak, as rows are read and written."""
    link_gbs: float = 31.5
    """GB/s between host and device, raw; 31.5 is PCIe 4 x16. What rows get depends on width."""
    host_gbs: float = 3.5
    """GB/s that the processor gathers where there is no device; one core's, measured."""
    disk_iops: float = 100_000.0
    """Pages of 4 KiB per second that the disk reads, sixteen requested at a time."""


@dataclass(frozen=True, kw_only=True)
class PlanJob(Common):
    """What a planned job runs on, and how far it may step."""

    device: Literal["h200", "h100", "a100", "rtx4090", "cpu", "measured"] = "cpu"
    """What computes: a named profile, or this machine, measured."""
    ranks: int = 1
    """Processes that train together, a device each."""
    ranks_a_host: int = 8
    """How many of them share a host's memory."""
    host_gib: Int = None
    """Host memory, GiB; by default anything fits."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products."""
    price: Float = None
    """Price of a device for an hour."""
    spectrum: File = None
    """A spectrum.json of the loss, for the largest batch that is useful."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "adam"
    """Optimizer that the spectrum was measured for."""


@dataclass(frozen=True, kw_only=True)
class PlanLabels(PlanJob):
    """Say what training on texts with labels takes: memory, time, and the nearest that fits."""

    examples: int
    """Training examples."""
    labels: int
    """Labels that there are."""
    tokens: float = 30.0
    """Rows of a bag, or word pieces, per text of an example."""
    label_tokens: Float = None
    """Those of a label's text; as many as an example's by default."""
    labels_an_example: float = 2.0
    """Known labels per example."""
    batch_size: int = 1024
    """Examples per batch, of all processes."""
    dim: Int = None
    """Width of the vectors; 256 of a bag, 384 of a transformer by default."""
    vocabulary: Int = None
    """Rows of a bag, 90000 by default, or word pieces of a transformer, 30522."""
    zipf: float = 1.0
    """A bag's r-th most frequent row stands in texts in proportion to 1 / r^zipf."""
    layers: Int = None
    """Layers of a transformer; without it the encoder is a bag."""
    heads: Int = None
    """Heads of its attention; one per 64 of its width by default."""
    inner: Int = None
    """Width inside its layers; four times its width by default."""
    chunk: Int = None
    """Texts whose activations it holds at a time, by gradient caching; all by default."""
    classifiers: bool = True
    """Train classifiers after the encoder."""


@dataclass(frozen=True, kw_only=True)
class PlanGraph(PlanJob):
    """Sizes of a graph and of GraphSAGE on it."""

    nodes: int
    """Nodes of the graph."""
    edges: int
    """Stored entries."""
    width: int
    """Numbers per feature row."""
    hidden: int = 256
    """Width of hidden layers."""
    fanouts: tuple[int, ...] = (15, 10)
    """Neighbors drawn per node, one number per layer, the seeds' own first."""
    batch_size: int = 512
    """Seeds per batch, of all processes."""


@dataclass(frozen=True, kw_only=True)
class PlanNodes(PlanGraph):
    """Say what training a classifier of nodes takes: memory, time, and the nearest that fits."""

    classes: int
    """Classes of the nodes."""
    train: Int = None
    """Nodes that are learned; all by default."""


@dataclass(frozen=True, kw_only=True)
class PlanLinks(PlanGraph):
    """Say what training an encoder for links takes: memory, time, and the nearest that fits."""

    links_a_node: Float = None
    """Links that are learned, per node; all entries by default."""


@dataclass(frozen=True, kw_only=True)
class Gather(Common):
    """Measure how fast rows arrive, by width, order, alignment and tier."""

    device: str = "cpu"
    """Also measure this device's memory, and its reads of host memory: cuda, cuda:1."""
    widths: tuple[int, ...] = (16, 64, 128, 256, 512, 1024, 4096)
    """Bytes per row, each a multiple of 4."""
    mib: int = 256
    """Size of the table in memory, MiB; choose it beyond the processor's caches."""
    disk_mib: int = 256
    """Size of the file, MiB; 0 leaves the disk out."""
    rows: int = 20_000
    """Rows per gather."""
    repeats: int = 3
    """Gathers of each kind; the median is printed."""
    folder: File = None
    """Where the file is made and removed; the system's temporary folder by default."""


@dataclass(frozen=True, kw_only=True)
class Spectrum(Common):
    """Measure curvature and advise how far a step may go: table, JSON and picture."""

    source: Source
    """Folder of a run, or file.py:function, which returns model, loss_fn, loader, optimizer."""
    out: File = None
    """Folder for spectrum.json and spectrum.png; spectrum beside the source by default."""
    device: str = "auto"
    """Where to compute: auto (the strongest that works), cpu, cuda, cuda:1, mps."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "sgd"
    """How objects of your own are trained, where they hold no optimizer."""
    lr: Float = None
    """A rate that trains at the loader's batch size; the optimizer's own by default."""
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Batch sizes to advise on; powers of two around the loader's by default."""
    initial_loss: Float = None
    """The loss at which training began; without it noise may hold half of the present one."""
    curvature: Literal["ggn", "hessian", "fisher"] = "ggn"
    """Gauss-Newton, which advice needs, the Hessian, or the empirical Fisher matrix."""
    mode: Literal["eval", "train"] = "eval"
    """Mode of batch normalization and dropout while it is measured."""
    lanczos: int = 30
    """Steps of Lanczos; take more where the greatest eigenvalue does not settle."""
    probes: int = 8
    """Random vectors for trace and noise."""
    max_batches: int = 32
    """Batches of the loader that are measured."""
    seed: int = 0
    """Seed of all random numbers."""


@dataclass(frozen=True, kw_only=True)
class FindLr(Common):
    """Find the learning rate that trains best, by short trial runs: table and picture."""

    source: Source
    """Folder of a run, or file.py:function, which returns model, loss_fn, loader, optimizer."""
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Samples that a step averages over, multiples of the loader's; the loader's own by default."""
    steps: int = 25
    """Steps of the shortest trial runs; those that decide are four times as long."""
    out: File = None
    """Folder for rates.png; beside the source by default."""
    device: str = "auto"
    """Where a run's model trains: auto (the strongest that works), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Seed of all random numbers."""


def plan(asked: Plan) -> dict[str, Any]:
    """Run ``shoal plan``."""
    from shoal.cli.plan import plan as propose
    from shoal.core.errors import expect_device

    expect_device(asked.device)
    return propose(asked)


def plan_labels(asked: PlanLabels) -> dict[str, Any]:
    """Run ``shoal plan labels``."""
    from shoal.cli import plan

    return plan.plan_labels(asked)


def plan_nodes(asked: PlanNodes) -> dict[str, Any]:
    """Run ``shoal plan nodes``."""
    from shoal.cli import plan

    return plan.plan_nodes(asked)


def plan_links(asked: PlanLinks) -> dict[str, Any]:
    """Run ``shoal plan links``."""
    from shoal.cli import plan

    return plan.plan_links(asked)


def gather(asked: Gather) -> dict[str, Any]:
    """Run ``shoal gather``."""
    from shoal.cli.bandwidth import gather as measure
    from shoal.core.errors import expect_device

    expect_device(asked.device)
    return measure(asked)


def spectrum(asked: Spectrum) -> dict[str, Any]:
    """Run ``shoal spectrum``."""
    from shoal.cli.spectrum import measure

    return measure(asked)


def find_lr(asked: FindLr) -> dict[str, Any]:
    """Run ``shoal find-lr``."""
    from shoal.cli.find_lr import search

    return search(asked)
