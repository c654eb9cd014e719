"""Sums over a hop: ``matrix @ rows`` that can be differentiated again and again.

A bag of tokens and a graph aggregation are the same linear map,
``out[i] = Σ_e values[e] rows[indices[e]]`` over the entries e of row i. torch's ``embedding_bag``
computes it in one pass over the rows, but has neither double backward nor forward mode. Here it is
one :class:`torch.autograd.Function` whose backward is the same function of the transposed matrix,
so gradients, Hessian-vector and Gauss-Newton products all pass, each at the speed of
``embedding_bag``.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shoal.core.csr import Csr

_Arrays = tuple[Tensor, Tensor, Tensor | None]
# shorter rows are divided by this, as torch's normalize does
_SHORTEST = 1e-12


class _Matmul(torch.autograd.Function):
    """``A @ rows``, given the arrays of A and of its transpose; values are constants."""

    @staticmethod
    def forward(rows: Tensor, hop: _Arrays, back: _Arrays) -> Tensor:
        indptr, indices, values = hop
        return functional.embedding_bag(
            indices,
            rows,
            indptr,
            mode="sum",
            include_last_offset=True,
            per_sample_weights=None if values is None else values.to(rows.dtype),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.hop, ctx.back = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Matmul.apply(grads[0], ctx.back, ctx.hop), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _Matmul.apply(tangents[0], ctx.hop, ctx.back)


def matmul(
    matrix: Csr, rows: Float[Tensor, "s d"], back: Csr | None = None
) -> Float[Tensor, "b d"]:
    """Multiply a matrix by rows: sum each of its rows' entries, times their values if it has some.

    Equivalent to ``matrix.to_dense() @ rows``; an empty row gives zeros, a column that stands twice
    counts twice. Differentiable in `rows` any number of times, in reverse and forward mode.

    Args:
        matrix: ``[b, s]``.
        rows: one row a column of the matrix.
        back: the transpose of `matrix`, such as :attr:`Block.back`, where it is known already.

    Example:
        >>> hop = Csr.from_lists([[0, 2], [], [1, 1]], n_cols=3)
        >>> matmul(hop, torch.tensor([[1.0], [2.0], [4.0]])).flatten().tolist()
        [5.0, 0.0, 4.0]
        >>> halves = hop.with_values(torch.full((4,), 0.5))
        >>> matmul(halves, torch.tensor([[1.0], [2.0], [4.0]])).flatten().tolist()
        [2.5, 0.0, 2.0]
    """
    here = matrix.indptr, matrix.indices, matrix.values
    if not rows.requires_grad and not torch.is_grad_enabled():
        return _Matmul.forward(rows, here, here)
    back = matrix.transpose() if back is None else back
    there = back.indptr, back.indices.to(matrix.indices.dtype), back.values
    return _Matmul.apply(rows, here, there)


class _Unit(torch.autograd.Function):
    """Rows over their lengths; the derivative, J = (1 − u·uᵀ) / length, is symmetric."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows / _lengths(rows).clamp_min(_SHORTEST)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Unit.jvp(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (tangent,) = tangents
        rows, units = ctx.saved_tensors
        lengths = _lengths(rows)
        along = (tangent * units).sum(1, keepdim=True)
        # shorter rows are divided by a constant: no part of the tangent falls away
        along = along.masked_fill(lengths < _SHORTEST, 0)
        return (tangent - units * along) / lengths.clamp_min(_SHORTEST)


def unit(rows: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Scale rows to length one; a row of zeros stays one.

    Equivalent to ``torch.nn.functional.normalize(rows, dim=1)``, of which the gradient takes twice
    as long. Differentiable any number of times, in reverse and forward mode.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000..., 0.8000...], [0.0, 0.0]]
    """
    return _Unit.apply(rows)


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)
