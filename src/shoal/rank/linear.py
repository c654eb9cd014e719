"""Ridge regression of a sparse label matrix on sparse rows, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.csr import Csr


def ridge_regression(
    x: Csr, y: Csr, ridge: float
) -> tuple[Float[Tensor, "f l"], Float[Tensor, " l"]]:
    """Weights and biases that minimize Σ |x W + b − y|² + λ |W|² over rows x and y.

    W = (Σ (x − x̄)ᵀ(x − x̄) + λ I)⁻¹ Σ (x − x̄)ᵀ(y − ȳ) and b = ȳ − x̄ W (Hoerl and Kennard, "Ridge
    regression", Technometrics 1970). One factorization of ``[f, f]`` serves all columns of y.

    Args:
        x: ``[n, f]``.
        y: ``[n, l]``.
        ridge: λ, above 0.

    Example:
        >>> x, y = Csr.from_lists([[0], [0], [], []], 1), Csr.from_lists([[0], [0], [], []], 1)
        >>> weights, bias = ridge_regression(x, y, ridge=1.0)
        >>> weights.tolist(), bias.tolist()
        ([[0.5]], [0.25])
    """
    n, width = x.shape
    rows, columns = x.to_scipy(), y.to_scipy()
    x_mean, y_mean = (torch.from_numpy(part.mean(0).A1).float() for part in (rows, columns))
    square, both = (torch.from_numpy((rows.T @ part).toarray()) for part in (rows, columns))
    square += ridge * torch.eye(width) - n * torch.outer(x_mean, x_mean)
    both -= n * torch.outer(x_mean, y_mean)
    weights = torch.cholesky_solve(both, torch.linalg.cholesky(square))
    return weights, y_mean - x_mean @ weights
