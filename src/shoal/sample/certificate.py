"""How accurate in-batch negatives must be, proven from distances alone.

Examples x and labels z are unit vectors with scores ``s(x, l) = x · z_l``; example i lies in
cluster C, whose shortlist are all labels of its examples. Two bounds, by Cauchy-Schwarz and the
triangle inequality:

*What a cluster holds is hard.* For a label l of another example j of C,

    s(x_i, l)  =  s(x_j, l) + (x_i − x_j) · z_l  ≥  s(x_j, l) − |x_i − x_j|  ≥  s(x_j, l) − 2 r,

r the largest distance of an example of C to its center: a negative of i scores within 2 r of what
it scores as another's positive.

*What a cluster misses is not.* Let ``e_l`` be the distance of z_l to the nearest example that has
l, and ``rho_i`` that of x_i to the nearest example outside C. A label that C misses has all of its
examples outside, so ``|x_i − z_l| ≥ rho_i − e_l`` and, as ``|x − z|² = 2 − 2 s`` for unit vectors,

    s(x_i, l)  ≤  1 − max(rho_i − e_l, 0)² / 2.

Where the hardest negative that C holds scores at least the largest of these, no label anywhere is a
harder negative of i. Labels without examples are in no shortlist and are left out.

NGAME (Dahiya et al., WSDM 2023) claims in its section 4 that its in-batch negatives are provably
accurate. The bounds here are derived here, and :func:`certify` computes both sides of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.sample.expand import expand


@dataclass(frozen=True, eq=False)
class Certificate:
    """Scores of each example's hardest negative in its cluster, and what is proven about them.

    Attributes:
        hardest: score of the hardest negative that the cluster holds; -inf where it holds none.
        floor: lower bound of `hardest`.
        ceiling: upper bound of the score of every negative that the cluster misses.
    """

    hardest: Float[Tensor, " n"]
    floor: Float[Tensor, " n"]
    ceiling: Float[Tensor, " n"]

    @property
    def proven(self) -> float:
        """Share of the examples whose hardest negative of all is proven to be in their cluster."""
        return float((self.hardest >= self.ceiling).float().mean())


def certify(
    examples: Float[Tensor, "n d"],
    labels: Float[Tensor, "l d"],
    truth: Csr,
    order: Int[Tensor, " n"],
    size: int,
) -> Certificate:
    """Compute the bounds of this module for clusters of examples.

    It compares all pairs of examples: n² distances, in bounded memory.

    Args:
        examples: unit vectors.
        labels: unit vectors.
        truth: ``[n, l]``, all known positives.
        order: the examples, clusters one after the other, as
            :func:`~shoal.sample.clusters.balanced_clusters` gives them.
        size: examples per cluster.

    Raises:
        InputError: if shapes disagree or a vector is not of length one.

    Example:
        Two far clusters of two near examples with one label each: nothing is missed that is harder.

        >>> rows = torch.nn.functional.normalize(
        ...     torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), dim=1)
        >>> truth = Csr.from_lists([[0], [1], [2], [3]], n_cols=4)
        >>> found = certify(rows, rows, truth, torch.arange(4), size=2)
        >>> found.proven, bool((found.floor <= found.hardest).all())
        (1.0, True)
    """
    shape = len(examples), len(labels)
    expect(truth.shape == shape, "truth", f"examples x labels, {shape}", truth.shape, "align them")
    expect_positive("size", size)
    for name, rows in (("examples", examples), ("labels", labels)):
        unit = bool(((rows.norm(dim=1) - 1).abs() < 1e-3).all())
        expect(unit, name, "unit vectors", "others", "normalize them")
    error = _errors(examples, labels, truth)
    parts = [torch.empty_like(examples[:, 0]) for _ in range(3)]
    for ids in order.split(size):
        for part, found in zip(parts, _cluster(examples, labels, truth, ids, error), strict=True):
            part[ids] = found
    return Certificate(*parts)


def _errors(examples: Tensor, labels: Tensor, truth: Csr) -> Float[Tensor, " l"]:
    """Distance of each label to the nearest example that has it; -inf where none has."""
    row, column = truth.row_ids(), truth.indices.long()
    distance = (examples[row] - labels[column]).norm(dim=1)
    nearest = distance.new_full((len(labels),), torch.inf)
    nearest = nearest.scatter_reduce(0, column, distance, "amin")
    return nearest.masked_fill(nearest == torch.inf, -torch.inf)


def _cluster(
    examples: Tensor, labels: Tensor, truth: Csr, ids: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hardest, floor and ceiling of the examples of one cluster."""
    x, block = examples[ids], expand(truth, ids, induced=True)
    scores, own = x @ labels[block.src].T, block.mask()
    hardest = scores.masked_fill(own, -torch.inf).amax(1)
    # of label l for example i: its best score at an example j that has it, less the way from i to j
    near = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    held = scores.masked_fill(~own, -torch.inf)
    reached = torch.stack([(held - way.unsqueeze(1)).amax(0) for way in near])
    floor = reached.masked_fill(own, -torch.inf).amax(1)
    away = torch.cdist(x, examples)
    away[:, ids] = torch.inf
    missed = error.index_fill(0, block.src, -torch.inf).amax()
    ceiling = 1 - (away.amin(1) - missed).clamp(min=0) ** 2 / 2
    return hardest, floor, ceiling.where(missed > -torch.inf, -torch.inf)
