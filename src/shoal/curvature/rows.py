"""Shoal's own objectives as curvature sees them: scores for outputs, gathered rows for parameters.

A loss over a shortlist is convex in the scores, not in the embeddings, so Gauss-Newton splits it
there. Where an objective has no parameters but the rows of its table, as a bag of words has, the
rows that the measured batches touch are its parameters: the curvature is zero in all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shoal.core.block import Batch
from shoal.core.objectives import ByScores, Objective
from shoal.curvature.subject import Halves, Subject

ROWS = "rows"


@dataclass(frozen=True, eq=False)
class Scored:
    """An objective over pairs, split at their scores.

    Attributes:
        objective: whose criterion is :class:`~shoal.core.objectives.ByScores`.
        criterion: that.
    """

    objective: Objective
    criterion: ByScores

    def outputs(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Scores of pairs."""
        return self.criterion.scores(self.objective.outputs(params, batch), batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of scores."""
        return self.criterion.loss(outputs, batch.blocks[-1])


@dataclass(frozen=True, eq=False)
class FromRows:
    """An objective of ``params["rows"]``, of which ``batch.src`` holds the positions.

    Attributes:
        objective: of the rows themselves.
    """

    objective: Halves

    def outputs(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Outputs of the batch with its rows."""
        others = {name: x for name, x in params.items() if name != ROWS}
        return self.objective.outputs(others, replace(batch, src=params[ROWS][batch.src]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of outputs."""
        return self.objective.loss(outputs, batch)


def split_at_scores(objective: Objective) -> Objective | Scored:
    """The objective with scores for outputs, where it has some."""
    criterion = objective.criterion
    return Scored(objective, criterion) if isinstance(criterion, ByScores) else objective


def with_rows(subject: Subject) -> Subject:
    """Add the rows that the batches gathered to what is differentiated.

    Args:
        subject: over :class:`~shoal.core.block.Batch` es whose rows stand in ``src``.

    Returns:
        the same with a leaf ``rows`` ``[u, d]``, the distinct rows of all batches.
    """
    batches: Sequence[Any] = subject.batches
    ids = torch.cat([batch.blocks[0].src for batch in batches])
    distinct, positions = torch.unique(ids, return_inverse=True)
    gathered = torch.cat([batch.src for batch in batches]).detach()
    rows = gathered.new_empty(len(distinct), *gathered.shape[1:])
    rows[positions] = gathered  # copies of a row are equal
    pieces = positions.split([len(batch.blocks[0].src) for batch in batches])
    placed = [replace(batch, src=at) for batch, at in zip(batches, pieces, strict=True)]
    leaves = {**subject.leaves, ROWS: rows.requires_grad_()}
    return replace(subject, objective=FromRows(subject.objective), leaves=leaves, batches=placed)
