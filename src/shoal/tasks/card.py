"""The model card of an export: what was trained on what, how well it does, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.rank.fused import FusedLabeler
from shoal.tasks.fusing import Predictor
from shoal.text.pretrained import TransformerVocabulary
from shoal.training.run import Run

_HEADER = """\
---
library_name: sentence-transformers
tags: [shoal, sentence-transformers, extreme-classification]
---
"""

_SHOAL = """\
```python
import shoal

labeler = shoal.open("THIS_FOLDER")
labeler.predict(["a text"], k=5)
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


# what an encoder reads that one string cannot express
LONG = "document title and content in one string"


@dataclass(frozen=True)
class Exported:
    """An encoder in the export, and how near it is to shoal's own.

    Attributes:
        folder: where it lies in the export.
        reads: what it takes a text for.
        sample: where the texts came from that it was measured on; nowhere, if it takes any text.
        mean: mean cosine between its vectors and shoal's for these texts, title and content both.
        least: the least of them.
    """

    folder: str
    reads: str
    sample: str = ""
    mean: float = 1.0
    least: float = 1.0

    @property
    def told(self) -> str:
        """One line for people."""
        if self.reads == "any text":
            return f"{self.folder}: shoal's own vectors"
        near = (
            "as near as one vector a token comes" if self.reads == LONG else "shoal's own vectors"
        )
        return (
            f"{self.folder}: for a {self.reads}, {near}; on titles with contents ({self.sample}) "
            f"the cosine to shoal's is {self.mean:.4f} in the mean, {self.least:.4f} at least"
        )


def card(predictor: Predictor, run: Run, encoders: Sequence[Exported]) -> str:
    """Markdown with the header that the Hugging Face hub reads.

    Args:
        predictor: what is exported.
        run: where it comes from.
        encoders: that lie beside it.
    """
    vocabulary = predictor.lexicon.vocabulary
    of_transformer = isinstance(vocabulary, TransformerVocabulary)
    own, others = _SHOAL, [_SENTENCE_TRANSFORMERS, _LABELS]
    parts = [
        f"{_HEADER}\n# Labels for texts, trained on {run.settings.get('source')}",
        _facts(predictor, run),
        _metrics(run),
        f"## Use\n\nThe labels of a text, with [shoal](https://pypi.org/project/shoal):\n\n{own}",
        "Vectors of texts, by sentence-transformers, and those of the labels, whose names are the "
        "lines of `lexicon/labels.json.gz`; a label's score is the inner product:",
        *others,
        *(["The same encoder by transformers:", _TRANSFORMERS] if of_transformer else []),
        "\n".join(f"- {encoder.told}" for encoder in encoders),
        "Nothing in this folder is a pickle: safetensors, JSON and text.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _facts(predictor: Predictor, run: Run) -> str:
    fused = isinstance(predictor, FusedLabeler)
    labeler = predictor.labeler if fused else predictor
    ranks = "cosine of text and label"
    if fused:
        head = "" if predictor.memory.head is None else "classifiers, "
        words = "" if predictor.memory.words is None else ", matching words"
        ranks = f"embeddings, {head}neighbors{words}, weighed on held-out points; probabilities"
    facts = {
        "labels": f"{len(predictor.lexicon.labels):,}",
        "encoder": f"{run.settings.get('encoder')}, {labeler.label_embeddings.shape[1]} wide",
        "ranks by": ranks,
    }
    ended = [event for event in run.log() if event.get("event") == "end"]
    if ended:
        facts["training"] = f"{ended[-1].get('step')} steps, {ended[-1].get('seconds')} s"
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _metrics(run: Run) -> str:
    """The last judgment on the data's test points, as the record has it."""
    tests = [event for event in run.log() if event.get("event") in ("test", "add")]
    if not tests:
        return ""
    if tests[-1]["event"] == "add":
        return f"{tests[-1].get('labels')} labels were added after training, and not judged."
    numbers = {key: x for key, x in tests[-1].items() if isinstance(x, float) and key != "time"}
    rows = [" | ".join(numbers), " | ".join("--:" for _ in numbers)]
    rows.append(" | ".join(f"{x:.2f}" for x in numbers.values()))
    return "On the test points, in per cent:\n\n" + "\n".join(f"| {row} |" for row in rows)
