"""A model as a folder for others: the model itself and a card; of labels, encoders for others too.

The folder opens with :func:`shoal.open`. What the encoders' format cannot express is measured and
said. All of it is safetensors, JSON and text, and it appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from shoal.core.distribution import DISTRIBUTION
from shoal.core.errors import InputError, expect, fail
from shoal.core.files import folder_aside
from shoal.data.texts import Texts
from shoal.models import base
from shoal.text.encoder import Exported
from shoal.text.sentence import LONG

if TYPE_CHECKING:
    from shoal.models.graphs import GraphModel
    from shoal.models.labels import LabelModel

# the file that marks exports of the first layout
_FIRST = "export.json"
# what an export may hold that one of another kind of model lacks, the first layout's among them
_EXPORTED = {
    "bag.safetensors", "examples.json.gz", "labels.json.gz", "labels.safetensors", "indexes",
    "encoder", "label_encoder", "long_encoder", "lexicon", "best.safetensors", "fused.safetensors",
    "export.json", "settings.json", "record.jsonl", "head",
}  # fmt: skip

_HEADER = """\
---
library_name: sentence-transformers
tags: [shoal, sentence-transformers, extreme-classification]
---
"""

_SHOAL = """\
```python
import shoal

model = shoal.open("THIS_FOLDER")
model.predict(["a text"], k=5)
```
"""

_FEATURES = """\
```python
import shoal

model = shoal.open("THIS_FOLDER")
model.predict(x, k=5)  # an array or sparse matrix: a row an example, COLUMNS features
```
"""

_GRAPH = """\
```python
import shoal

model = shoal.open("THIS_FOLDER"OWN)
model.predict([0, 1], data=graph)
```
"""

_SENTENCE_TRANSFORMERS = """\
```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("THIS_FOLDER/encoder")
encoder.encode(["a text"])
```
"""

_LABELS = """\
```python
from safetensors.numpy import load_file

labels = load_file("THIS_FOLDER/labels.safetensors")["embeddings"]
```
"""

_TRANSFORMERS = """\
```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER/encoder")
model = AutoModel.from_pretrained("THIS_FOLDER/encoder")  # then pool and scale to length one
```
"""


def write_export(model: LabelModel, out: Path, documents: Texts | None = None) -> list[Exported]:
    """Write a model, its encoders for others and a card, all of it or nothing.

    Args:
        model: what is exported.
        out: the folder; an earlier export there is replaced.
        documents: on which the encoders are measured; by default the labels.

    Returns:
        the encoders, and how near they are to shoal's own.

    Raises:
        InputError: if something else is there, or it cannot be written to.
    """
    expect_exportable(out)
    predictor = model.predictor
    try:
        with folder_aside(out) as new:
            model.save(new)
            encoders = predictor.encoder.export(new, documents or model.labels, model.labels)
            about = base.read_header(new) | {"exported": [vars(encoder) for encoder in encoders]}
            base.write_header(new, about)
            vectors = {"embeddings": predictor.label_embeddings}
            for ranker in predictor.rankers:
                if getattr(ranker, "weights", None) is not None:
                    vectors[ranker.kind] = ranker.weights  # pyright: ignore[reportAttributeAccessIssue]
            plain = {name: rows.float().cpu().contiguous() for name, rows in vectors.items()}
            save_file(plain, new / "labels.safetensors")
            (new / "README.md").write_text(card(model, about, encoders), encoding="utf-8")
            _expect_nothing_else(out, new)
    except (OSError, SafetensorError) as error:
        fail(str(out), "a folder to write to", error, "free space or name another")
    return encoders


def write_graph_export(model: GraphModel, out: Path) -> None:
    """Write a model on a graph and a card, all of it or nothing.

    The path of its graph stays behind: it says nothing on another machine.

    Raises:
        InputError: if something else is there, or it cannot be written to.
    """
    expect_exportable(out)
    try:
        with folder_aside(out) as new:
            model.save(new)
            about = base.read_header(new) | {"source": None, "exported": []}
            base.write_header(new, about)
            (new / "README.md").write_text(graph_card(about), encoding="utf-8")
            _expect_nothing_else(out, new)
    except OSError as error:
        fail(str(out), "a folder to write to", error, "free space or name another")


def expect_exportable(out: Path) -> None:
    """Raise unless an export may be written to `out`.

    Raises:
        InputError: if something else is there.
    """
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not free and out.is_dir():
        try:
            free = (out / _FIRST).is_file() or "exported" in base.read_header(out)
        except InputError:
            free = False
    expect(free, str(out), "nothing there, or an earlier export", "another", "name another folder")


def _expect_nothing_else(out: Path, new: Path) -> None:
    """Raise if an earlier export, which goes, holds what was added to it.

    Raises:
        InputError: naming a file that no export has.
    """
    own = _EXPORTED | {path.name for path in new.iterdir()}
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in there if name not in own]
    remedy = "move it, or name another folder"
    expect(not others, str(out), "an export and nothing else", ", ".join(others[:3]), remedy)


def card(model: LabelModel, about: dict[str, Any], encoders: Sequence[Exported]) -> str:
    """Markdown with the header that the Hugging Face hub reads.

    Args:
        model: what is exported.
        about: its ``model.json``.
        encoders: that lie beside it.
    """
    by_transformers = about["predictor"]["encoder"].get("kind") == "transformer"
    columns = model.predictor.columns
    example = "texts" if columns is None else "features"
    use = _SHOAL if columns is None else _FEATURES.replace("COLUMNS", str(columns))
    vectors = "Vectors of texts, by sentence-transformers, and those" if encoders else "Vectors"
    parts = [
        f"{_HEADER}\n# Labels for {example}, trained on {about.get('source')}",
        _facts(model, about),
        _metrics(about),
        f"## Use\n\nLabels of {example}, by shoal (`pip install {DISTRIBUTION}`):\n\n{use}",
        f"{vectors} of the labels, whose names are the "
        "lines of `labels.json.gz`; a label's score is the inner product:",
        _SENTENCE_TRANSFORMERS if encoders else "",
        _LABELS,
        *(["The same encoder by transformers:", _TRANSFORMERS] if by_transformers else []),
        "\n".join(f"- {near(encoder)}" for encoder in encoders),
        "Nothing in this folder is a pickle: safetensors, JSON and text.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def graph_card(about: dict[str, Any]) -> str:
    """Markdown with the header that the Hugging Face hub reads.

    Args:
        about: the ``model.json`` of a model on a graph.
    """
    what = {"nodes": "Classes of nodes", "links": "Links between nodes"}
    arguments = about["model"].items()
    facts = {"features per node": about["features"] or "none: rows of its own nodes were trained"}
    facts |= {f"`{name}`": value for name, value in arguments if value is not None}
    own = ", ".join(f"{name}=…" for name in about["objects"])
    parts = [
        "---\nlibrary_name: shoal\ntags: [shoal, graph-ml]\n---\n",
        f"# {what.get(about['task'], about['task'])}, trained on {about['name']}",
        "\n".join(f"- {name}: {fact}" for name, fact in facts.items()),
        f"## Use\n\nBy shoal (`pip install {DISTRIBUTION}`), on a graph with such features:\n",
        _GRAPH.replace("OWN", f", {own}" if own else ""),
        "Nothing in this folder is a pickle: safetensors, JSON and text.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def near(encoder: Exported) -> str:
    """One line on what an exported encoder reads, and how near its vectors are to shoal's own."""
    if encoder.reads == "any text":
        return f"{encoder.folder}: shoal's own vectors"
    how = "as near as one vector per token comes"
    how = how if encoder.reads == LONG else "shoal's own vectors"
    return (
        f"{encoder.folder}: for a {encoder.reads}, {how}; on titles with contents "
        f"({encoder.sample}) the cosine to shoal's is {encoder.mean:.4f} on average and at least "
        f"{encoder.least:.4f}"
    )


def _facts(model: LabelModel, about: dict[str, Any]) -> str:
    names = ", ".join(about["predictor"]["rankers"])
    ranks = f"{names}, combined on held-out examples" if len(names.split(", ")) > 1 else names
    facts = {
        "labels": f"{len(model.labels):,}",
        "encoder": f"{about['predictor']['encoder'].get('kind')}, {model.encoder.dim} wide",
        "rankers": ranks,
        "scores": "probabilities" if model.probabilities else "cosines or inner products",
    }
    if "steps" in about:
        steps, seconds = f"{about['steps']} steps of the encoder", f"{about['seconds']:.0f} s"
        facts["training"] = f"{steps}; {seconds} with all that was trained after it"
    if "added" in about:
        facts["added after training"] = f"{about['added']}; the metrics below are without them"
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _metrics(about: dict[str, Any]) -> str:
    numbers = about.get("test") or {}
    if not numbers:
        return ""
    rows = [" | ".join(numbers), " | ".join("--:" for _ in numbers)]
    rows.append(" | ".join(f"{x:.2f}" for x in numbers.values()))
    return "On the test examples, in per cent:\n\n" + "\n".join(f"| {row} |" for row in rows)
