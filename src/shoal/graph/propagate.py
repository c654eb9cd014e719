"""What neighbors show, computed once: means of features and of known classes over a few hops.

With D⁻¹A the mean over a node's neighbors, features X and known classes Y (one-hot, zero where
nothing is known),

    X, D⁻¹A X, (D⁻¹A)² X, …        and        D⁻¹A Y, (D⁻¹A)² Y − diag((D⁻¹A)²) Y

are all that a linear model or a small perceptron needs to come near a graph network (Frasca, Rossi,
Eynard, Chamberlain, Bronstein, Monti, "SIGN: scalable inception graph neural networks", 2020). No
node sees its own class: the second term takes out what comes back after two hops.
:func:`spread_classes` lets classes flow until they settle (Zhou, Bousquet, Lal, Weston, Schölkopf,
"Learning with local and global consistency", NIPS 2003) and reads no features at all.

:func:`smoothed` averages features over all of a node's surroundings, near nodes weighing more:
where few classes are known, that is what tells most (Gasteiger, Bojchevski, Günnemann, "Predict
then propagate", ICLR 2019, equation 5, there of predictions).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.sparse import matmul

_BACK = 0.1  # share of a node's own class that returns at each step; with it far nodes fade
_RESTART, _STEPS = 0.1, 10  # the paper's
_SPREADS = 20  # by then what is further away weighs 0.9^20 = 12 %


def averaging(graph: Csr) -> Csr:
    """D⁻¹A: the graph without loops, each row's entries weighing the same and one together.

    Example:
        >>> averaging(Csr.from_lists([[0, 1, 2], [0], []], n_cols=3)).to_dense().tolist()
        [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    row, col = graph.row_ids(), graph.indices.long()
    other = row != col
    plain = Csr.from_coo(row[other], col[other], graph.shape)
    degrees = plain.degrees()
    return plain.with_values((1 / degrees.clamp(min=1).float()).repeat_interleave(degrees))


@torch.no_grad()
def neighbor_means(
    mean: Csr, features: Float[Tensor, "n f"], hops: int
) -> list[Float[Tensor, "n f"]]:
    """Features, and their means over one to `hops` hops.

    Args:
        mean: of :func:`averaging`.
        features: dense.
        hops: how many.
    """
    found = [features]
    for _ in range(hops):
        found.append(matmul(mean, found[-1]))
    return found


def word_means(mean: Csr, words: Csr) -> Csr:
    """``D⁻¹A @ words``, sparse: the mean over neighbors of sparse features.

    Args:
        mean: of :func:`averaging`.
        words: ``[n, f]``.

    Example:
        >>> mean = averaging(Csr.from_lists([[1, 2], [], []], n_cols=3))
        >>> word_means(mean, Csr.from_lists([[], [0], [0, 1]], n_cols=2)).to_dense().tolist()
        [[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]]
    """
    assert mean.values is not None
    read = words.rows(mean.indices.long())
    each = read.degrees()
    weights = mean.values.repeat_interleave(each)
    values = weights if read.values is None else weights * read.values
    row = mean.row_ids().repeat_interleave(each)
    return Csr.from_coo(row, read.indices, (mean.n_rows, words.n_cols), values).coalesce()


@torch.no_grad()
def class_means(mean: Csr, known: Csr) -> list[Float[Tensor, "n c"]]:
    """Mean known classes of neighbors and of their neighbors, without a node's own.

    Args:
        mean: of :func:`averaging`.
        known: ``[n, c]``, the classes that are known.

    Example:
        Node 1 knows nothing of itself by way of node 0.

        >>> mean = averaging(Csr.from_lists([[1], [0]], n_cols=2))
        >>> near, far = class_means(mean, Csr.from_lists([[], [0]], n_cols=1))
        >>> near.tolist(), far.tolist()
        ([[1.0], [0.0]], [[0.0], [0.0]])
    """
    own = known.with_values(None).to_dense().float()
    near = matmul(mean, own)
    assert mean.values is not None
    row, col = mean.row_ids(), mean.indices.long()
    order = mean.coalesce()
    there, at = order.find(col, row)
    assert order.values is not None
    back = torch.where(there, mean.values * order.values[at.clamp(min=0)], 0.0)
    returns = torch.zeros(mean.n_rows).index_add_(0, row, back)
    return [near, matmul(mean, near) - returns.unsqueeze(1) * own]


@torch.no_grad()
def smoothed(graph: Csr, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Personalized PageRank over features: ten steps of ``Z <- 0.9 Â Z + 0.1 X`` from ``Z = X``.

    ``Â = D^-1/2 (A + I) D^-1/2``, D the number of entries in a row of ``A + I``.

    Args:
        graph: A, row v lists the nodes that v reads; values and loops are not read.
        features: X, dense.

    Example:
        Two nodes that read each other grow alike, to what comes back to each itself.

        >>> pair = Csr.from_lists([[1], [0]], n_cols=2)
        >>> smoothed(pair, torch.eye(2))
        tensor([[0.5500, 0.4500],
                [0.4500, 0.5500]])
    """
    mean = averaging(graph)  # only for its entries, without loops
    plain, degrees = mean.with_values(None), (mean.degrees() + 1).unsqueeze(1)
    scale, found = degrees.float().rsqrt(), features
    for _ in range(_STEPS):
        near = scale * found
        found = (1 - _RESTART) * scale * (matmul(plain, near) + near) + _RESTART * features
    return found


@torch.no_grad()
def spread_classes(mean: Csr, known: Csr) -> Float[Tensor, "n c"]:
    """Classes that flow along the edges from where they are known; a row sums to at most one.

    Args:
        mean: of :func:`averaging`.
        known: as above.
    """
    own = known.with_values(None).to_dense().float()
    found = own
    for _ in range(_SPREADS):
        found = (1 - _BACK) * matmul(mean, found) + _BACK * own
    return found
