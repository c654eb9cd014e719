"""Likely keys of large inner product, at a quarter of the cost of all products.

Most of an inner product lies in the directions in which the keys vary most (principal components;
for maximum inner product search see Bachrach et al., "Speeding up the Xbox recommender system",
RecSys 2014). A :class:`Sketch` holds the keys in 64 such directions. What it finds is to be scored
again by the keys themselves (:func:`products`): the order among the found is then exact, and only a
key that the sketch ranks below all k that it returns is missed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

# Among fewer keys, looking at all of them costs less than what follows a sketch. Assumption.
SKETCHED = 8192
# directions that are kept: recall of the ten best among 400 found is 97 % on WordNet (docs/LOG.md)
_WIDTH = 64
# keys whose directions are taken for those of all
_SAMPLE = 16384
# neighbors that are passed over by their maximum alone, as in shoal.core.search
_GROUP = 32
# queries at a time, and scores: 64 MiB of them
_QUERIES, _SCORES = 128, 2**24


@dataclass(frozen=True, eq=False)
class Sketch:
    """Keys in their principal directions.

    Attributes:
        basis: those directions.
        keys: the keys in them, one a column; behind the last key zeros up to a multiple of 32.
        m: how many keys there are.

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        >>> Sketch.of(keys).search(torch.tensor([[2.0, 1.0]]), 1)
        tensor([[2]])
    """

    basis: Float[Tensor, "d r"]
    keys: Float[Tensor, "r m_padded"]
    m: int

    @staticmethod
    def of(keys: Float[Tensor, "m d"]) -> Sketch:
        """Find the directions of a sample of the keys, and the keys in them."""
        sample = keys[:: -(-len(keys) // _SAMPLE)].float()
        _, directions = torch.linalg.eigh(sample.T @ sample)
        basis = directions[:, -_WIDTH:].contiguous()
        columns = torch.cat([basis.T @ part.float().T for part in keys.split(_SAMPLE)], dim=1)
        return Sketch(basis, pad(columns, (0, -len(keys) % _GROUP)), len(keys))

    def search(self, queries: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n {k}"]:
        """The k keys of largest product with each query within the sketch, in no order.

        Args:
            queries: on the device of the keys.
            k: at most the number of keys.
        """
        rows = max(1, min(_QUERIES, _SCORES // self.keys.shape[1]))
        parts = (queries.float() @ self.basis).split(rows)
        return torch.cat([self._found(part, k) for part in parts])

    def _found(self, queries: Float[Tensor, "b r"], k: int) -> Int[Tensor, "b {k}"]:
        scores = queries @ self.keys
        scores[:, self.m :] = -torch.inf
        groups = scores.unflatten(1, (-1, _GROUP))
        # the k best keys lie in the k groups of largest maximum
        which = groups.amax(2).topk(min(k, groups.shape[1]), sorted=False).indices
        listed = groups.gather(1, which.unsqueeze(2).expand(-1, -1, _GROUP)).flatten(1)
        at = listed.topk(k, sorted=False).indices
        return which.gather(1, at // _GROUP) * _GROUP + at % _GROUP


def products(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], ids: Int[Tensor, "n c"]
) -> Float[Tensor, "n c"]:
    """Inner products of each query with keys of its own; -inf where the id is -1.

    Example:
        >>> products(torch.eye(2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0, -1], [0, 0]]))
        tensor([[3., -inf],
                [4., 4.]])
    """
    listed, (n, width) = ids.clamp(min=0), ids.shape
    # a quarter of the time of gathering rows; torch takes no more entries than a matrix has
    if keys.is_cpu and 0 < width <= len(keys):
        _warned()
        indptr = torch.arange(0, n * width + 1, width)
        zeros = torch.zeros(n * width)
        wanted = torch.sparse_csr_tensor(
            indptr, listed.flatten(), zeros, (n, len(keys)), check_invariants=False
        )
        found = torch.sparse.sampled_addmm(wanted, queries.float(), keys.float().T, beta=0.0)
        scores = found.values().view(n, width)
    else:
        scores = torch.einsum("nd,ncd->nc", queries.float(), keys[listed].float())
    return scores.masked_fill(ids < 0, -torch.inf)


@cache
def _warned() -> None:
    """Let torch say once, unheard, that its sparse tensors are young."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)
