"""BEIR's folders (Thakur et al., 2021): retrieval data; documents are labels, queries examples.

``corpus.jsonl`` holds ``{"_id", "title", "text"}`` per label, ``queries.jsonl``
``{"_id", "text"}`` per example, ``qrels/{train,test}.tsv`` a header and
``query<TAB>document<TAB>score`` per pair. A query is an example of the split whose qrels name it,
in the order of the queries; queries that neither names are left out, as is ``qrels/dev.tsv``. A
score of 0 or less says that the document was found irrelevant: such a pair is none, and
a query with no other pairs is an example without labels.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from shoal.core.errors import expect, fail
from shoal.data import reduce
from shoal.data.formats.registry import name_of, text_format
from shoal.data.lines import json_object, lines, shorten, writer
from shoal.data.matrix import Rows, pair_rows
from shoal.data.texts import Examples, LabelData, Texts


def read(folder: str | Path, encoding: str = "utf-8") -> LabelData:
    """Read a BEIR data set that has qrels to train on and to test on.

    Args:
        folder: holds corpus.jsonl, queries.jsonl and qrels/.
        encoding: of the files.

    Returns:
        the data set, named after the folder.

    Raises:
        InputError: naming file and line, if a file is missing or damaged, an id stands twice or is
            unknown, or a query is in both splits.
    """
    folder = Path(folder)
    labels = _read_texts(folder / "corpus.jsonl", encoding, "title", "text")
    queries = _read_texts(folder / "queries.jsonl", encoding, "text")
    column = {uid: i for i, uid in enumerate(labels.uids)}
    row = {uid: i for i, uid in enumerate(queries.uids)}
    paths = [folder / "qrels" / f"{split}.tsv" for split in ("train", "test")]
    (train, in_train), (test, in_test) = (
        _read_qrels(path, encoding, queries, row, column) for path in paths
    )
    both = sorted(in_train & in_test)
    uid = repr(queries.uids[both[0]]) if both else ""
    expect(not both, str(paths[1]), "queries that train.tsv has not", uid, "keep one of the two")
    return LabelData(name_of(folder), train, test, labels)


@text_format(
    "beir",
    read,
    steps=(
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.join_examples,
        reduce.unique_examples,
        reduce.unique_labels,
        reduce.drop_filters,
    ),
    files=("corpus.jsonl", "queries.jsonl"),
)
def write(data: LabelData, folder: Path) -> None:
    """Write corpus, queries and qrels; an example without labels scores 0 for the first one."""
    with writer(folder / "corpus.jsonl") as file:
        for i, uid in enumerate(data.labels.uids):
            record = {"_id": uid, "title": data.labels.titles[i], "text": data.labels.contents[i]}
            file.write(json.dumps(record) + "\n")
    with writer(folder / "queries.jsonl") as file:
        for texts in (data.train.texts, data.test.texts):
            for uid, text in zip(texts.uids, texts.titles, strict=True):
                file.write(json.dumps({"_id": uid, "text": text}) + "\n")
    for split, examples in (("train", data.train), ("test", data.test)):
        _write_qrels(examples, data.labels, folder / "qrels" / f"{split}.tsv")


def _read_texts(path: Path, encoding: str, title: str, content: str = "") -> Texts:
    texts = Texts([], [], [])
    for number, line in lines(path, encoding):
        record = json_object(f"{path}:{number}", line)
        uid, parts = record.get("_id"), [record.get(key, "") for key in (title, content)]
        if not (isinstance(uid, str) and all(isinstance(part, str) for part in parts)):
            want = f"strings as _id, {title}{' and ' * bool(content)}{content}"
            fail(f"{path}:{number}", want, shorten(record), "quote them")
        texts.uids.append(uid)
        texts.titles.append(parts[0])
        texts.contents.append(parts[1] if content else "")
    twice = len(texts) - len(set(texts.uids))
    expect(twice == 0, str(path), "each _id once", f"{twice} twice", "rename or remove them")
    return texts


def _read_qrels(
    path: Path, encoding: str, queries: Texts, row: dict[str, int], column: dict[str, int]
) -> tuple[Examples, set[int]]:
    """The examples of a split, and which queries they are."""
    pairs: dict[int, dict[int, float]] = {}
    for number, line in lines(path, encoding):
        if number == 1 or not line:  # the header
            continue
        query, document, score = _judgement(f"{path}:{number}", line, row, column)
        pairs.setdefault(query, {})[document] = score
    ids = sorted(pairs)
    rows = Rows(path, 1)
    for i in ids:
        good = {label: score for label, score in pairs[i].items() if score > 0}
        rows.append(list(good), list(good.values()))
    labels = rows.csr(len(column))
    texts = queries.subset(torch.tensor(ids, dtype=torch.int64))
    return Examples.of(texts, labels), set(ids)


def _judgement(
    name: str, line: str, row: dict[str, int], column: dict[str, int]
) -> tuple[int, int, float]:
    words = line.split("\t")
    try:
        query, document, score = words
        value = float(score)
    except ValueError:
        want = "'query<TAB>document<TAB>score'"
        fail(name, want, shorten(line), "correct the line")
    finite = float("-inf") < value < 3e38
    expect(finite, name, "a finite score", score, "correct the line")
    expect(query in row, name, "a query of queries.jsonl", shorten(query), "add or remove it")
    known = document in column
    expect(known, name, "a document of corpus.jsonl", shorten(document), "add or remove it")
    return row[query], column[document], value


def _write_qrels(examples: Examples, labels: Texts, path: Path) -> None:
    with writer(path) as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for uid, row in zip(examples.texts.uids, pair_rows(examples.labels), strict=True):
            for word in row:
                label, _, score = word.partition(":")
                file.write(f"{uid}\t{labels.uids[int(label)]}\t{score}\n")
            if not row:
                expect(len(labels) > 0, str(path), "labels", "none", "choose another format")
                file.write(f"{uid}\t{labels.uids[0]}\t0\n")
