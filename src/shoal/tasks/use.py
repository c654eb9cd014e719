"""What is done with data and trained runs: describe, evaluate, predict, query."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.cli import graphs as of_graphs
from shoal.cli import settings as asked
from shoal.core.errors import expect, expect_folder, expect_positive, fail
from shoal.core.progress import progress
from shoal.data import graphs, is_graph, load
from shoal.data.lines import lines, shorten, write_whole
from shoal.data.texts import describe
from shoal.rank.predictor import Prediction
from shoal.tasks import labels
from shoal.tasks.fusing import Predictor, predictor_of
from shoal.training.run import Run

_TEXTS_AT_A_TIME = 4096


def data(settings: asked.Data) -> dict[str, Any]:
    """Run ``shoal data``: count what a data set holds.

    Raises:
        InputError: if it is missing or damaged.
    """
    source = settings.source
    return graphs.describe(source) if is_graph(source) else describe(load(source))


def evaluate(settings: asked.Evaluate) -> dict[str, Any]:
    """Run ``shoal evaluate``: metrics of a run on test points.

    Raises:
        InputError: if the run is not whole, or the data is of another kind or has other labels.
    """
    run = Run.open(settings.run)
    trained_on = str(run.settings.get("source"))
    source = settings.source or trained_on
    same = is_graph(source) == is_graph(trained_on)
    expect(same, source, f"data of the kind of {trained_on}", "another", "evaluate on its own data")
    if is_graph(source):
        test = of_graphs.opened(run, settings.device).evaluate(source)
    else:
        labeler, loaded = predictor_of(run, settings.device, settings.search), load(source)
        same = loaded.labels.uids == labeler.lexicon.labels.uids
        expect(same, source, "the labels of the run", "others", "evaluate on its own data")
        test = labels.judge(labeler, loaded)
    return {"run": str(run.folder), "data": source, "test": test}


def predict(settings: asked.Predict) -> dict[str, Any]:
    """Run ``shoal predict``: the best labels of each text of a file, one JSON line a text.

    Of a run on a graph: the best classes or links of each node of a file.

    Returns:
        how many texts or nodes there were, and where their lines lie; with ``--json`` and no file,
        the predictions themselves. Nothing where the lines went to standard output.

    Raises:
        InputError: if the run is not whole, or the file is missing or damaged.
    """
    run = Run.open(settings.run)
    what = "nodes" if is_graph(str(run.settings.get("source"))) else "texts"
    count, found = _of_nodes(run, settings) if what == "nodes" else _of_texts(run, settings)
    if settings.out is not None:
        write_whole(settings.out, (json.dumps(line) + "\n" for line in found))
        return {what: count, "out": str(settings.out)}
    if settings.json:
        return {what: count, "predictions": list(found)}
    for prediction in found:
        print(json.dumps(prediction))
    return {}


def _of_texts(run: Run, settings: asked.Predict) -> tuple[int, Iterator[dict[str, Any]]]:
    remedy = "leave it out: a run on labels predicts for texts"
    expect(settings.source is None, "source", "an option for graphs", "one for labels", remedy)
    labeler = predictor_of(run, settings.device, settings.search)
    texts = list(_read_texts(settings.texts))
    return len(texts), _predictions(labeler, texts, settings.k, settings.threshold)


def _of_nodes(run: Run, settings: asked.Predict) -> tuple[int, Iterator[dict[str, Any]]]:
    exact = settings.search == "exact"
    expect(exact, "search", "exact for a run on a graph", settings.search, "leave it out")
    source = settings.source or str(run.settings["source"])
    ids = of_graphs.read_ids(settings.texts)
    asked_for = settings.k, settings.threshold, settings.device
    return len(ids), of_graphs.predictions(run, source, ids, *asked_for)


def query(settings: asked.Query) -> dict[str, Any]:
    """Run ``shoal query``: the best labels of one text.

    Raises:
        InputError: if there is no run, or no word of the text is known.
    """
    run = Run.open(settings.run or newest_run(Path("runs")))
    labeler = predictor_of(run, settings.device, settings.search)
    found = answer(labeler, settings.text, settings.k, settings.threshold)
    return {"text": settings.text, "labels": found}


def answer(
    labeler: Predictor, text: str, k: int, threshold: float | None = None
) -> list[dict[str, Any]]:
    """The best labels of one text as plain dictionaries, those below a threshold left out.

    Raises:
        InputError: if no word of the text is known, or k is out of range.
    """
    expect_positive("k", k)
    known = labeler.lexicon.vocabulary.tokens([text]).nnz > 0
    expect(known, "text", "some word that the model knows", shorten(text), "ask in other words")
    (row,) = labeler.predict([text], k)
    kept = _above(row, threshold)
    return [{"score": round(p.score, 3), "title": p.title, "uid": p.uid} for p in kept]


def newest_run(folder: Path) -> Path:
    """The run on labels under `folder` whose checkpoint was written last.

    Raises:
        InputError: if there is none.
    """
    expect_folder(folder, "runs (or pass --run)")
    paths = (lexicon.with_name("last.safetensors") for lexicon in folder.glob("*/lexicon"))
    saved = [path for path in paths if path.exists()]
    expect(bool(saved), str(folder), "a run on labels", "none", "train one or pass --run")
    return max(saved, key=lambda path: path.stat().st_mtime).parent


def _predictions(
    labeler: Predictor, texts: list[str], k: int, threshold: float | None
) -> Iterator[dict[str, Any]]:
    for start in progress(range(0, len(texts), _TEXTS_AT_A_TIME), "predict"):
        part = texts[start : start + _TEXTS_AT_A_TIME]
        for text, row in zip(part, labeler.predict(part, k), strict=True):
            yield {"text": text, "labels": [asdict(x) for x in _above(row, threshold)]}


def _above(row: list[Prediction], threshold: float | None) -> list[Prediction]:
    return [found for found in row if threshold is None or found.score >= threshold]


def _read_texts(path: Path) -> Iterator[str]:
    as_json = path.suffix == ".jsonl"
    for number, line in lines(path):
        if not as_json:
            yield line.strip()
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            fail(f"{path}:{number}", 'a JSON object with "text"', error, "correct the line")
        expect(isinstance(text, str), f"{path}:{number}", "a string as text", text, "quote it")
        yield text
