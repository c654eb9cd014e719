"""What is done with a trained model: evaluate, predict, query, report, serve, export, add."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import shoal
from shoal.cli.show import say
from shoal.core.columns import Columns
from shoal.core.errors import InputError, expect, expect_folder, fail, naming
from shoal.serve.limits import Limits
from shoal.tasks.settings import Common, File, Flag, Table, Text

_log = logging.getLogger(__name__)
_AT_A_TIME = 4096  # texts that are predicted between two writes

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class Computing(Common):
    """Options of the subcommands that compute with a trained model."""

    device: str = "auto"
    """Where to compute: auto (the strongest that works), cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Ranking(Computing):
    """Options of the subcommands that rank labels."""

    search: Literal["exact", "hnsw"] = "exact"
    """Compare with every label, or walk a graph that misses a few: for millions (extra ann)."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Ranking):
    """Evaluate a run on its data's test examples, nodes or links, or on other data."""

    run: Run
    """Folder of a run, a saved model or an export."""
    source: Text = None
    """Another data set with labels of the same names; the run's own by default. All its examples
    are judged, or its test split where it says which they are."""
    out: File = None
    """Texts: also write each example's labels and predictions here, as JSON lines."""
    k: int = 5
    """With --out: number of labels per text."""
    threshold: Text = None
    """From which probability on labels are given, for F1, precision and recall: a number, or f1,
    macro-f1, label-f1 or count, as for predict; f1 by default."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Predict(Ranking):
    """Predict labels for a file of texts, or classes or links for a file of nodes."""

    run: Run
    """Folder of a run, a saved model or an export."""
    texts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Texts: one per line, or a .csv, .tsv, .jsonl or .parquet table. For graphs: a node per
    line."""
    source: Text = None
    """Graphs: another graph with the same features, such as one that has grown; else the run's."""
    out: File = None
    """Where to write JSON lines; standard output by default."""
    k: int = 5
    """Number of labels per text, or of classes or links per node."""
    threshold: Text = None
    """Leave out predictions with a lower score, a probability where the model has them. Labels may
    also be left out by what was best on held-out texts: f1 (micro F1), macro-f1, label-f1 (each
    label's own), count (as many as are expected to be true)."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Query(Ranking):
    """Predict the labels of one text."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """The text."""
    run: File = None
    """Folder of a run; the newest one under runs/ by default."""
    k: int = 5
    """Number of labels."""
    threshold: Text = None
    """Leave out labels with a lower score; also f1, macro-f1, label-f1 or count, as for predict."""
    explain: Flag = False
    """Also show which rankers, words and nearest examples speak for each label."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Show what a run did, or compare runs: one HTML file with charts and metrics."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN]", help_behavior_hint=""),
    ]
    """Folder of a run, finished or not; two or three of them are compared."""
    out: File = None
    """The file to write; report.html in the run's folder by default, or comparison.html."""


@dataclass(frozen=True, kw_only=True)
class Serve(Ranking):
    """Answer over HTTP, with a page to try it: the labels of texts."""

    run: Run
    """Folder of a run on labels, a saved model or an export."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in: set a token."""
    port: int = 8000
    """Port to serve at; 0 takes any that is free and prints it."""
    token: Text = None
    """What requests must bring as Authorization: Bearer TOKEN; by default what SHOAL_TOKEN holds,
    which other users of the machine do not see."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Export(Computing):
    """Write a trained run as a folder for shoal, sentence-transformers and transformers."""

    run: Run
    """Folder of a run on labels."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to make; an earlier export there is replaced."""


@dataclass(frozen=True, kw_only=True)
class Add(Computing):
    """Add labels to a trained run, by their texts, without training; the run stays as it is."""

    run: Run
    """Folder of a run on labels, or an export."""
    labels: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS")]
    """The new labels: JSON lines with "uid", "title" and perhaps "content"."""
    out: Path
    """The folder to make: an export with all labels; an earlier export there is replaced."""


def opened(run: Path, asked: Computing) -> Any:
    """The model in a folder, on the device and with the search that were asked for.

    Raises:
        InputError: if there is none.
    """
    given: dict[str, Any] = {"device": asked.device}
    if getattr(asked, "search", "exact") == "hnsw":
        given["search"] = shoal.HnswSearch(run / "indexes", _told)
    return shoal.open(run, **given)


def _told(index: dict[str, Any]) -> None:
    """Say what an approximate search may miss."""
    made = "built" if index["built"] else "read"
    said = f"search: {made} {index['index']}, recall of the ten best labels {index['recall']:.3f}"
    print(said, file=sys.stderr, flush=True)


def source_of(run: Path, source: str | None, table: Table) -> tuple[str, dict[str, Any]]:
    """The data that is named, or else that of the run; and how its tables are read.

    Raises:
        InputError: if a run on data in memory has none, or its settings are damaged.
    """
    if source is not None:
        return source, table_of(run, Path(source), table).arguments()
    source, own = _of_command(run)
    if not isinstance(source, str):
        fail("source", "the data to read", "none, since the model was fitted in memory", "name it")
    return source, Table(**own | given(table)).arguments()


def table_of(run: Path, source: Path, table: Table) -> Table:
    """How a table is read: as the run's own was, where the options do not say otherwise."""
    from shoal.data.cells import READ
    from shoal.data.lines import suffix_of

    if suffix_of(source) not in READ or not (run / "settings.json").exists():
        return table
    own = _of_command(run)[1]
    own.pop("encoding", None)  # another file may be in another one
    return Table(**own | given(table))


def _of_command(run: Path) -> tuple[str | None, dict[str, Any]]:
    """The source of a run, and the options of its table."""
    from shoal.training.run import Run

    settings = Run.open(run).settings
    command = settings.get("command") or settings
    own = {x.name: command[x.name] for x in fields(Table) if command.get(x.name) is not None}
    return command.get("source"), own


def given(table: Table) -> dict[str, Any]:
    """The options of a table that are not at their defaults."""
    values = {x.name: getattr(table, x.name) for x in fields(Table)}
    return {name: value for name, value in values.items() if value != getattr(Table, name)}


def on_graph(model: Any) -> bool:
    """Whether a model predicts for nodes rather than for texts."""
    return not hasattr(model, "labels")


def evaluate(asked: Evaluate) -> dict[str, Any]:
    """Run ``shoal evaluate``: metrics on test examples, in per cent.

    Raises:
        InputError: if the run is not whole, or the data is of another kind.
    """
    from shoal.data import load_labels
    from shoal.data.lines import write_whole

    model = opened(asked.run, asked)
    source, columns = source_of(asked.run, asked.source, asked.table)
    about = {"run": str(asked.run), "data": source}
    if on_graph(model):
        remedy = "leave it out: predictions for nodes are shoal predict's"
        expect(asked.out is None, "out", "an option for texts", "one for graphs", remedy)
        remedy = "leave it out: metrics of graphs have no threshold"
        expect(asked.threshold is None, "threshold", "an option for labels", "a graph", remedy)
        return about | {"test": model.evaluate(source)}
    data = load_labels(source, **columns, test=0)
    if not (data.own_split or (asked.run / "model.json").exists()):
        said = "%s: a run of the first layout, whose test rows were others: some were trained on"
        _log.warning(said, asked.run)
    if asked.source is None:
        _say_changed(model, data)
    test = model.test_examples(data)
    about |= {"examples": len(test)}
    if asked.out is not None:
        about |= {"out": str(asked.out)}
        write_whole(asked.out, _lines_of_predictions(model, test, asked.k))
    return about | {"test": model.evaluate(test, threshold=threshold_of(asked.threshold))}


def _say_changed(model: Any, data: Any) -> None:
    """Log how the data of a run differs from what it was trained on."""
    import torch

    from shoal.data.splits import digests, split_test

    known, now = model.trained_on, digests(split_test(data).train.texts)
    new, gone = (int((~torch.isin(*x)).sum()) for x in ((now, known), (known, now)))
    if len(known) and (new or gone):
        said = "%s has changed since the run was trained: training examples: %d new, %d gone"
        _log.warning(said, data.name, new, gone)


def _lines_of_predictions(model: Any, test: Any, k: int) -> Iterator[str]:
    """What predicting gave for each example, beside its labels.

    Yields:
        a JSON line an example.
    """
    import torch

    from shoal.data.texts import names_of

    names = model.labels.uids
    names = names + [""] * (test.labels.n_cols - len(names))  # the model does not have the others
    truth = names_of(test.labels, names)
    for begin in range(0, len(test), _AT_A_TIME):
        part = test.texts.subset(torch.arange(begin, min(begin + _AT_A_TIME, len(test))))
        rows = model.predict(part, k=k)
        for said, row in zip(_asked(part), rows, strict=True):
            own = [name for name in next(truth) if name]
            line = said | {"truth": own, "labels": [plain(x) for x in row]}
            yield json.dumps(line) + "\n"


def threshold_of(asked: str | None) -> float | str | None:
    """A threshold as it was typed: a number, or the name of a rule, which the model checks."""
    try:
        return None if asked is None else float(asked)
    except ValueError:
        return asked


def predict(asked: Predict) -> dict[str, Any]:
    """Run ``shoal predict``: one JSON line per text or node, best predictions first.

    Returns:
        how many texts or nodes there were, and where their lines lie; with ``--json`` and no file,
        the predictions themselves. Nothing where the lines went to standard output.

    Raises:
        InputError: if the run is not whole, or the file is missing or damaged.
    """
    from shoal.data.lines import write_whole

    model = opened(asked.run, asked)
    what = "nodes" if on_graph(model) else "texts"
    count, found = _of_nodes(model, asked) if on_graph(model) else _of_texts(model, asked)
    about = {what: count} | ({} if on_graph(model) else {"scores": model.scores})
    if asked.out is not None:
        write_whole(asked.out, (json.dumps(line) + "\n" for line in found))
        return about | {"out": str(asked.out)}
    if asked.json:
        return about | {"predictions": list(found)}
    for line in found:
        say(json.dumps(line))
    return {}


def _of_texts(model: Any, asked: Predict) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many texts a file has, and a line for each."""
    import torch

    from shoal.core.progress import progress
    from shoal.data.cells import Columns
    from shoal.data.read import read_texts_to_predict

    remedy = "leave it out: a run on labels predicts for texts"
    expect(asked.source is None, "source", "an option for graphs", "one for labels", remedy)
    table = table_of(asked.run, asked.texts, asked.table)
    columns = Columns(text=table.text_column, title=table.title_column)
    texts = read_texts_to_predict(asked.texts, columns, table.encoding)
    with naming(asked.texts):
        model.predictor.expect_read(texts)
    _expect_threshold(model, asked.threshold)

    def predictions() -> Iterator[dict[str, Any]]:
        for begin in progress(range(0, len(texts), _AT_A_TIME), "predict"):
            part = texts.subset(torch.arange(begin, min(begin + _AT_A_TIME, len(texts))))
            rows = model.predict(part, asked.k, threshold_of(asked.threshold))
            for said, row in zip(_asked(part), rows, strict=True):
                yield said | {"labels": [plain(x) for x in row]}
        _say_scores(model)

    return len(texts), predictions()


def _asked(texts: Any) -> list[dict[str, str]]:
    """What a line of predictions says of each example: its text, or which of the features it is."""
    if texts.features is None:
        return [{"text": text} for text in texts.all()]
    return [{"example": uid} for uid in texts.uids]


def _of_nodes(model: Any, asked: Predict) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many nodes a file has, and a line for each."""
    ids = read_ids(asked.texts)
    least = threshold_of(asked.threshold)
    expect(not isinstance(least, str), "threshold", "a number for a graph", least, "try 0.5")
    rows = model.predict(ids, data=asked.source, k=asked.k, threshold=least)
    what = "classes" if model.task == "nodes" else "links"
    pairs = zip(ids, rows, strict=True)
    return len(ids), ({"node": node, what: [plain(x) for x in row]} for node, row in pairs)


def plain(found: Any) -> dict[str, Any]:
    """A prediction as JSON: what it does not have is left out."""
    return {name: value for name, value in asdict(found).items() if value is not None}


def query(asked: Query) -> dict[str, Any]:
    """Run ``shoal query``: the best labels of one text.

    Raises:
        InputError: if there is no run, or no word of the text is known.
    """
    from shoal.data.lines import shorten

    run = asked.run or newest_run(Path("runs"))
    model = opened(run, asked)
    expect(not on_graph(model), str(run), "a run on labels", "one on a graph", "use shoal predict")
    known = not bool(model.unknown([asked.text]).any())
    got = shorten(asked.text)
    expect(known, "text", "some word that the model knows", got, "ask in other words")
    _expect_threshold(model, asked.threshold)
    found = model.predict(asked.text, asked.k, threshold_of(asked.threshold), asked.explain)
    _say_scores(model)
    rows = Columns(plain(x) | {"score": round(x.score, 3)} for x in found)
    if asked.json:
        return {"text": asked.text, "scores": model.scores, "labels": rows}
    why = {row["title"]: row.pop("explanation") for row in rows if "explanation" in row}
    shown = {"text": asked.text, "labels": Columns(_shown(row) for row in rows)}
    return shown | ({"why": why} if why else {})


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A prediction for people: a label that is its own title, as in tables, stands once."""
    name = {} if row["title"] == row["label"] else {"label": row["label"]}
    return {"score": row["score"], "title": row["title"], **name}


def _expect_threshold(model: Any, threshold: str | None) -> None:
    """Raise if there is a threshold that would mean something else than it seems to."""
    remedy = "leave it out, or train with a larger --valid: it teaches what scores are worth"
    want = "a model whose scores are probabilities"
    expect(threshold is None or model.probabilities, "threshold", want, "one of cosines", remedy)


def _say_scores(model: Any) -> None:
    """Log that scores are no probabilities, where they are not."""
    if not model.probabilities:
        _log.warning("scores are cosines, no probabilities")


def newest_run(folder: Path) -> Path:
    """The run on labels under `folder` that was written last.

    Raises:
        InputError: if there is none.
    """
    expect_folder(folder, "runs (or pass --run)")
    found = {
        path.parent: path.stat().st_mtime
        for name in ("model.safetensors", "last.safetensors")
        for path in folder.glob(f"*/{name}")
        if _on_labels(path.parent)
    }
    expect(bool(found), str(folder), "a run on labels", "none", "train one or pass --run")
    return max(found, key=lambda run: found[run])


def _on_labels(run: Path) -> bool:
    """Whether a run's folder says that it is one on labels; those of the first layout: lexicon."""
    if not (run / "model.json").exists():
        return (run / "lexicon").is_dir()
    from shoal.models.base import read_header

    return read_header(run).get("task") == "labels"


def read_ids(path: Path) -> list[int]:
    """The nodes of a file, a number per line.

    Raises:
        InputError: naming the line that holds no number.
    """
    from shoal.data.lines import lines, shorten

    ids = []
    for number, line in lines(path):
        word = line.strip()
        good = word.isascii() and word.isdecimal() and len(word) < 19
        want = "the number of a node, from 0"
        expect(good, f"{path}:{number}", want, shorten(word), "correct the line")
        ids.append(int(word))
    return ids


def report(asked: Report) -> dict[str, Any]:
    """Run ``shoal report``: write the page.

    Raises:
        InputError: if there is no run, its log is empty or damaged, or the page cannot be written.
    """
    from shoal.report import compare
    from shoal.report import report as write

    expect(len(asked.runs) > 0, "RUN", "the folder of a run", "none", "name it")
    run, *others = asked.runs
    if others:
        return {"runs": list(map(str, asked.runs)), "report": str(compare(asked.runs, asked.out))}
    return {"run": str(run), "report": str(write(run, asked.out))}


def serve(asked: Serve) -> dict[str, Any]:
    """Run ``shoal serve`` until SIGTERM or SIGINT; what is said is said when it is ready.

    Raises:
        InputError: if the extra is missing, a limit or the token makes no sense, the address cannot
            be taken, or the folder does not hold a model of labels.
        SystemExit: with status 1 if the service died, so that who started it starts it again.
    """
    from shoal.serve.server import ServiceDied
    from shoal.serve.server import serve as run

    def load() -> Any:
        model = opened(asked.run, asked)
        want = "a model of labels"
        expect(not on_graph(model), str(asked.run), want, "one on a graph", "use shoal predict")
        columns, remedy = model.predictor.columns, "use shoal predict, or model.predict in Python"
        want = "a model of texts, which is what requests hold"
        expect(columns is None, str(asked.run), want, f"one of {columns} features", remedy)
        if not model.probabilities:
            print("scores are cosines, no probabilities", file=sys.stderr)
        return model

    def announce(url: str, labels: int) -> None:
        if asked.json:
            say(json.dumps({"url": url, "run": str(asked.run), "labels": labels}))
        said = f"{asked.run}: {labels} labels at {url}; Ctrl-C ends it"
        print(said, file=sys.stderr, flush=True)

    if not asked.verbose:  # what each client's text lacks does not belong in the service's log
        logging.getLogger("shoal").setLevel(logging.ERROR)
    name, at = asked.run.resolve().name, {"host": asked.host, "port": asked.port}
    token = os.environ.get("SHOAL_TOKEN") if asked.token is None else asked.token
    try:
        run(load, name, **at, limits=asked.limits, token=token, announce=announce)
    except ServiceDied as error:
        sys.exit(f"shoal: the service ended: {error}")
    print("ended", file=sys.stderr)
    return {}


def export(asked: Export) -> dict[str, Any]:
    """Run ``shoal export``: what was written, and how near it is to shoal's own vectors.

    Raises:
        InputError: if the run is not whole, the place is taken by something else than an export, or
            cannot be written to.
    """
    model = _of_labels(asked.run, asked)
    return {"run": str(asked.run), **_exported(model, asked.run, asked.out)}


def add(asked: Add) -> dict[str, Any]:
    """Run ``shoal add``: export a run with more labels than it was trained on.

    Returns:
        the folder, how many labels it has, how many of them are new, and how many of those hold no
        word that the model knows.

    Raises:
        InputError: as :func:`export`, or if there are no new labels or one is known already.
    """
    from shoal.data.formats.xc import read_texts

    model, texts = _of_labels(asked.run, asked), read_texts(asked.labels)
    expect(len(texts) > 0, str(asked.labels), "new labels", "none", "write one per line")
    more = model.add(labels=texts)
    unknown = int(model.unknown(texts).sum())
    about = _exported(more, asked.run, asked.out) | {"labels": len(more.labels)}
    return {"run": str(asked.run), **about, "added": len(texts), "without_known_words": unknown}


def _of_labels(run: Path, asked: Computing) -> Any:
    model = opened(run, asked)
    expect(not on_graph(model), str(run), "a run on labels", "one on a graph", "name another run")
    return model


def _exported(model: Any, run: Path, out: Path) -> dict[str, Any]:
    """Export with encoders measured on the run's own texts, or on labels where they are gone."""
    from shoal.data import load_labels
    from shoal.models.card import near

    try:
        source, columns = source_of(run, None, Table())
        documents = load_labels(source, **columns).test.texts
    except InputError:
        documents = None
    return {"out": str(out), "encoders": [near(x) for x in model.export(out, documents)]}
