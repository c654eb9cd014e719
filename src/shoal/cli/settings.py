"""What each verb of the command can be asked for: one frozen dataclass a verb.

Nothing here imports torch, so that ``shoal --help`` answers at once. The main dial is the batch
size; what is derived from it, or depends on the job, is None here and resolved where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Source = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every verb has."""

    json: bool = False
    """Print one JSON object on standard output; words and progress go to standard error."""
    device: str = "cpu"
    """Where batches and models live: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True, kw_only=True)
class Data(Common):
    """Describe a data set: points, labels, frequencies, what is empty."""

    source: Source
    """wordnet, an XC folder, a .csv, .tsv or .jsonl file of texts and labels, or a graph."""


@dataclass(frozen=True, kw_only=True)
class Convert(Common):
    """Write a data set in another format, and say what that format cannot hold."""

    source: Source
    """wordnet, or a folder or file in any format that docs/formats.md names."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file or folder to make."""
    to: str
    """xc, npz, pecos, text2text, beir, attentionxml, annif, bow, csv, tsv, jsonl, or parquet, which
    needs the extra of that name."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """Of the source's texts; what is written is UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """Train on a data set: an encoder of texts and labels, or a network on a graph."""

    source: Source
    """wordnet, an XC folder, a .csv, .tsv or .jsonl: labels; wordnet-graph, .npz, OGB: a graph."""
    recipe: Literal["shoal", "ngame"] = "shoal"
    """Labels: whose settings hold where none is given: shoal's own, or the published ones."""
    out: Path | None = None
    """Folder of the run; runs/<name of the data> by default."""
    resume: bool = False
    """Continue the run in --out."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Labels: begin with the weights and the vocabulary of a trained run, or of an export."""
    track: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Also tell this tracker what the record is told; needs the extra track-<its name>."""
    steps: int | None = None
    """Stop after so many optimizer steps."""
    epochs: int | None = None
    """Stop after so many passes over the points; without any limit 6 (labels) or 10 (graphs)."""
    minutes: float | None = None
    """Stop after so many minutes of training."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    seed: int = 0
    """Of everything random."""
    batch_size: int | None = None
    """Examples a batch: 1024 for labels (256 with a transformer), 512 for graphs."""
    lr: float | None = None
    """Peak learning rate: 0.1 for labels (2e-4 with a transformer), 0.03 nodes, 0.01 links."""
    step: Literal["schedule", "spectral"] = "schedule"
    """How far: by the schedule alone, or also by looks at curvature while it trains."""
    clip: float | None = None
    """Upper bound of the gradient's norm; none by default."""
    accumulate: int = 1
    """Batches an optimizer step."""
    valid: float = 0.1
    """Labels: share of the training points held out for validation; 0 for none."""
    valid_every: int = 5
    """Epochs between two validations."""
    autocast: Literal["auto", "on", "off"] = "off"
    """Compute in bfloat16 where that is faster; auto measures."""
    prefetch: int = 2
    """Batches made ahead of the step; 0 makes each when it is needed."""

    batches: Literal["ngame", "random"] = "ngame"
    """Labels: batches of clusters of points hard for one another, or random ones."""
    side: Literal["point", "label"] = "point"
    """Labels: batches of points that score labels, or of labels that score points."""
    cluster_size: int = 64
    """Labels: points a cluster; must divide the batch size."""
    curriculum: bool = False
    """Labels: let clusters grow to that size by doubling, when NGAME's do."""
    cluster_by: Literal["text", "text+labels"] = "text"
    """Labels: clusters of points alike in text, or in text and in the texts of their labels."""
    refresh_every: int = 1
    """Labels: epochs between two clusterings."""
    warm_epochs: int = 1
    """Labels: epochs of random batches before the first clustering."""
    bank: bool = False
    """Labels: cluster embeddings that training steps left behind instead of encoding anew."""
    encoder: str = "bag"
    """Labels: bag, or a Hugging Face encoder by its folder or its name on the hub."""
    dim: int = 256
    """Labels: width of a bag's embeddings; a transformer has its own."""
    roles: bool = True
    """Labels: give a word one row wherever it stands: title, opening or rest, text or label."""
    pooling: Literal["mean", "cls"] = "mean"
    """Labels: a transformer's vector is the mean over its tokens, or the first one."""
    max_length: int = 128
    """Labels: tokens of a text that a transformer reads, special ones included."""
    label_encoder: Literal["shared", "separate"] = "shared"
    """Labels: one transformer for texts and labels, or two that begin alike."""
    lora: int | None = None
    """Labels: train low-rank adapters of this rank and leave the transformer's weights."""
    gradient_checkpointing: bool = False
    """Labels: recompute a transformer's activations instead of keeping them."""
    chunk: int | None = None
    """Labels: texts encoded at a time, by gradient caching; a batch at once by default."""
    positives: int = 2
    """Labels: positives a point that enter the shortlist."""
    positives_by: Literal["chance", "propensity"] = "chance"
    """Labels: draw a point's positives evenly, or rare ones more often by inverse propensity."""
    loss: Literal["softmax", "triplet"] = "softmax"
    """Labels: decoupled softmax, or NGAME's triplets with the hardest negatives."""
    symmetric: bool = False
    """Labels: let labels score the batch's points as well, half of the loss."""
    graded: bool = False
    """Labels: weigh a point's positives in the softmax by the data's relevance."""
    temperature: float = 0.1
    """Labels: of the softmax."""
    head: Literal["none", "frozen", "joint"] = "frozen"
    """Labels: classifiers: none, after the encoder where ranking uses them, or together with it."""
    head_epochs: int = 5
    """Labels: passes over the points that train classifiers after the encoder."""
    head_lr: float = 0.01
    """Labels: peak learning rate of the classifiers."""
    head_loss: Literal["decoupled", "softmax", "binary", "triplet"] = "decoupled"
    """Labels: of the classifiers; triplet is NGAME's, over cosines, after the encoder only."""
    head_negatives: Literal["batch", "mined", "all"] = "batch"
    """Labels: classifiers a batch scores: its points' labels, hard ones besides, or all."""
    head_dropout: float = 0.5
    """Labels: share of an embedding's entries that are dropped before the classifiers."""
    head_texts: bool = True
    """Labels: let classifiers after the encoder learn from points alone, not from labels' texts."""
    rank: Literal["fused", "encoder", "head"] = "fused"
    """Labels: weigh all evidence on the points held out, or rank by encoder or head alone."""
    fusion: Literal["network", "tree"] = "network"
    """Labels: a network over all evidence, or NGAME's decision tree over encoder and head."""
    rare: float = 0.0
    """Labels: the fusion weighs labels by inverse propensity to this power; 1 is for PSP@k."""
    words: bool = True
    """Labels: leave names, matching words and the points that share them out of the evidence."""

    task: Literal["nodes", "links"] = "nodes"
    """Graphs: tell the classes of nodes, or predict links."""
    model: Literal["sage", "gat"] = "sage"
    """Graphs: GraphSAGE, or graph attention."""
    fanouts: tuple[int, ...] = (15, 10)
    """Graphs: neighbors drawn a node, one number a layer, the seeds' own first."""
    hidden: int = 256
    """Graphs: width of hidden layers, and of the embeddings that predict links."""
    heads: int = 8
    """Graphs: attention heads a layer of gat; must divide the width."""
    dropout: float | None = None
    """Graphs: share of activations dropped; 0.5 for nodes, none for links."""
    device_rows: int = 0
    """Graphs: feature rows kept on the device, those that batches read most."""
    host_rows: int | None = None
    """Graphs: the next ones, kept in host memory, the others read from a file; all if not given."""
    negatives: Literal["batch", "uniform"] = "batch"
    """Links: every other node of the batch is a negative, or five uniform ones a link."""


@dataclass(frozen=True, kw_only=True)
class Cluster(Common):
    """Cluster points and say how hard their batches are: sizes, seconds, hard-negative recall."""

    source: Source
    """wordnet, an XC folder, or a .csv, .tsv or .jsonl file."""
    run: Path | None = None
    """A trained run whose encoder embeds the points; an untrained bag (tf-idf) without."""
    batch_size: int = 1024
    """Examples a batch."""
    cluster_size: int = 64
    """Examples a cluster; must divide the batch size."""
    dim: int = 256
    """Width of the untrained bag's embeddings."""
    sample: int = 2000
    """Examples whose true hardest negatives are searched for."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True)
class Spectrum(Common):
    """Measure curvature, and say how far a step may go: table, JSON and picture."""

    source: Source
    """Folder of a run; or file.py:function, which returns model, loss_fn, loader, optimizer."""
    out: Path | None = None
    """Folder for spectrum.json and spectrum.png; spectrum beside the source by default."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "sgd"
    """How own objects are trained, where they hold no optimizer."""
    lr: float | None = None
    """A rate that trains at the loader's batch size; the optimizer's own by default."""
    batch_sizes: tuple[int, ...] = ()
    """To advise on; powers of two around the loader's by default."""
    began: float | None = None
    """The loss at which training began; without it noise may hold half of the present one."""
    curvature: Literal["ggn", "hessian", "fisher"] = "ggn"
    """Gauss-Newton, which advice needs, the Hessian, or the empirical Fisher matrix."""
    mode: Literal["eval", "train"] = "eval"
    """What batch normalization and dropout do while it is measured."""
    lanczos: int = 30
    """Steps of Lanczos; more where the greatest eigenvalue does not settle."""
    probes: int = 8
    """Random vectors for trace and noise."""
    max_batches: int = 32
    """Batches of the loader that are measured."""
    evidence: int = 0
    """Steps of branch runs at 0.5, 1, 2 and 4 times the advice; none by default."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """Options of the verbs that predict labels."""

    search: Literal["exact", "hnsw"] = "exact"
    """Compare with every label, or walk a graph that misses a few: for millions (extra ann)."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Predicting, Common):
    """Judge a run on its data's test points, nodes or links."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    source: str | None = None
    """Another data set with the same labels; the run's own by default."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Show what a run did: one HTML file with pictures, metrics and examples."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, finished or not."""
    out: Path | None = None
    """The file to write; report.html in the run's folder by default."""


@dataclass(frozen=True, kw_only=True)
class Export(Common):
    """Write a trained run as a folder for others: shoal, sentence-transformers, transformers."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run on labels."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to make; an earlier export there is replaced."""


@dataclass(frozen=True, kw_only=True)
class Add(Common):
    """Give a trained run more labels, by their texts, without training; the run stays as it is."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run on labels, or an export."""
    labels: Annotated[Path, tyro.conf.Positional]
    """The new labels: JSON lines with "uid", "title" and perhaps "content"."""
    out: Path
    """The folder to make: an export with all labels; an earlier export there is replaced."""


@dataclass(frozen=True, kw_only=True)
class Predict(Predicting, Common):
    """Predict labels for a file of texts, or classes or links for a file of nodes."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    texts: Annotated[Path, tyro.conf.Positional]
    """The file: a text a line, or .jsonl with a "text" each; of a run on a graph, a node a line."""
    source: str | None = None
    """Graphs: another graph with the same features, such as one that has grown; else the run's."""
    out: Path | None = None
    """Where to write JSON lines; standard output by default."""
    k: int = 5
    """Labels a text; classes or links a node."""
    threshold: float | None = None
    """Only those of at least this score: a probability of classes, or where the run was fused."""


@dataclass(frozen=True, kw_only=True)
class Query(Predicting, Common):
    """Predict the labels of one text."""

    text: Annotated[str, tyro.conf.Positional]
    """The text."""
    run: Path | None = None
    """Folder of a run; the newest one under runs/ by default."""
    k: int = 5
    """How many labels."""
    threshold: float | None = None
    """Only labels with at least this score: a probability where the run was fused."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask of a service, and all of them together."""

    max_body: int = 2**20
    """Bytes a request."""
    max_texts: int = 256
    """Texts a request."""
    max_characters: int = 10_000
    """Characters a text."""
    max_k: int = 100
    """Labels a text."""
    max_batch: int = 64
    """Texts predicted together."""
    max_wait_ms: float = 2.0
    """Milliseconds that a text waits for others to be predicted with."""
    max_waiting: int = 1024
    """Texts that may wait at a time; requests beyond are told to come again."""
    max_connections: int = 512
    """Connections at a time; those beyond are told to come again."""
    timeout: float = 30.0
    """Seconds within which a request has come and is answered."""


@dataclass(frozen=True, kw_only=True)
class Serve(Limits, Predicting, Common):
    """Answer over HTTP, with a page to try it: labels of texts by a run on labels."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in, and there is no password."""
    port: int = 8000
    """Port to serve at; 0 takes any that is free and says which."""
