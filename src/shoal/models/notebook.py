"""How models and predictions look: printed, and as small tables in a notebook, all escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from shoal.core.columns import html_table

_TEXT, _ROWS = 80, 50  # characters of a text, and texts, that are shown


class Answers(list[Any]):
    """Predictions as :meth:`predict` returns them: a list, printed and shown as a table.

    Args:
        found: the predictions of one text, or a list of them per text.
        texts: the texts, or None for predictions of one.
        probabilities: whether scores are shown in per cent.

    Example:
        >>> from shoal.rank.predictor import Prediction
        >>> found = Answers([Prediction("n1", "a <mug>", 0.25, 0)], None, True)
        >>> found[0].label, "a &lt;mug&gt;" in found._repr_html_(), "25.0 %" in found._repr_html_()
        ('n1', True, True)
        >>> print(found)
         25.0 %  a <mug>
    """

    def __init__(
        self, found: Sequence[Any], texts: Sequence[str] | None, probabilities: bool
    ) -> None:
        super().__init__(found)
        self._texts, self._probabilities = texts, probabilities

    def __str__(self) -> str:
        if self._texts is None:
            return "\n".join(f"{self._score(x):>7}  {x.title}" for x in self)
        return "\n".join(": ".join(filter(None, row)) for row in self._rows())

    def _repr_html_(self) -> str:
        if self._texts is None:
            return html_table(["label", "score"], [[x.title, self._score(x)] for x in self])
        return html_table(["text", "labels, best first"], self._rows())

    def _rows(self) -> list[list[str]]:
        rows = [
            [text[:_TEXT], "; ".join(f"{x.title} ({self._score(x)})" for x in found)]
            for text, found in zip(self._texts[:_ROWS] if self._texts else (), self, strict=False)
        ]
        left_out = len(self) - len(rows)
        return [*rows, [f"and {left_out:,} more", ""]] if left_out else rows

    def _score(self, prediction: Any) -> str:
        score = prediction.score
        return f"{100 * score:.1f} %" if self._probabilities else f"{score:.3f}"


def answers_of_nodes(
    found: list[list[Any]], ids: Int[Tensor, " n"], one: bool, probabilities: bool
) -> Answers:
    """Predictions for nodes of these ids; of `one` node they are those of that node alone.

    Example:
        >>> import torch
        >>> from shoal.models.nodes import NodePrediction
        >>> found = [[NodePrediction(0, "cat", 0.75)], [NodePrediction(1, "dog", 0.5)]]
        >>> print(answers_of_nodes(found, torch.tensor([4, 7]), False, True))
        node 4: cat (75.0 %)
        node 7: dog (50.0 %)
    """
    if one:
        return Answers(found[0], None, probabilities)
    return Answers(found, [f"node {i}" for i in ids[:_ROWS].tolist()], probabilities)


def model_table(title: str, facts: dict[str, Any]) -> str:
    """What a model is, a line per part."""
    return html_table([title, ""], [[name, str(value)] for name, value in facts.items()])
