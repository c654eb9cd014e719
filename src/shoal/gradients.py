"""The gradient of an objective over some batches: dense parameters and gathered rows alike.

Rows that learn enter the objective as leaves ``[s, d]`` and leave as row gradients, so no sparse
tensor passes autograd. Several batches are averaged (gradient accumulation); their row gradients
are summed by id before anything looks at a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.block import Batch
from shoal.fetch.update import coalesce
from shoal.objectives import Objective


@dataclass(frozen=True, eq=False)
class Gradient:
    """What a step needs to know.

    Attributes:
        loss: mean over the batches.
        outputs: of each batch, detached.
        dense: one gradient a trained parameter, by name.
        ids: rows of the table that have a gradient, or None where the table does not learn.
        rows: their gradients.
    """

    loss: float
    outputs: list[Tensor]
    dense: dict[str, Tensor]
    ids: Int[Tensor, " s"] | None = None
    rows: Float[Tensor, "s ..."] | None = None

    def norm(self) -> Float[Tensor, ""]:
        """The Euclidean norm of everything together."""
        parts = [*self.dense.values()] + ([] if self.rows is None else [self.rows])
        norms = [torch.linalg.vector_norm(part) for part in parts]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def clip_(self, limit: float | None) -> None:
        """Scale in place so that the norm is at most `limit`; None leaves it."""
        if limit is None:
            return
        scale = (limit / (self.norm() + 1e-6)).clamp(max=1.0)
        for part in [*self.dense.values()] + ([] if self.rows is None else [self.rows]):
            part.mul_(scale)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that want a gradient, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradient_of(
    objective: Objective, batches: Sequence[Batch], rows_learn: bool, autocast: bool = False
) -> Gradient:
    """Differentiate the mean of the objective over `batches` once.

    Args:
        objective: gives one scalar a batch.
        batches: at least one.
        rows_learn: whether the gathered rows want a gradient too.
        autocast: run forward passes in bfloat16 where torch's autocast does.
    """
    params = trained(objective.model)
    losses, outputs, grads = [], [], []
    for batch in batches:
        leaves: list[Tensor] = list(params.values())
        if rows_learn:
            batch = replace(batch, src=batch.src.detach().requires_grad_())
            leaves.append(batch.src)
        with torch.autocast(batch.src.device.type, torch.bfloat16, enabled=autocast):
            out = objective.outputs(params, batch)
            loss = objective.loss(out, batch) / len(batches)
        # a parameter that this batch does not touch has the gradient zero
        grads.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
        losses.append(loss.item())
        outputs.append(out.detach())
    sums = [
        torch.stack(parts).sum(0) for parts in zip(*(g[: len(params)] for g in grads), strict=True)
    ]
    named = dict(zip(params, sums, strict=True))
    if not rows_learn:
        return Gradient(sum(losses), outputs, named)
    ids, rows = _joined([batch.blocks[0].src for batch in batches], [g[-1] for g in grads])
    return Gradient(sum(losses), outputs, named, ids, rows)


def _joined(ids: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    if len(ids) == 1:
        return ids[0], grads[0]
    return coalesce(torch.cat(ids), torch.cat(grads))
