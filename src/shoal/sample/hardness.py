"""How hard the batches' negatives are: the recall of each example's true hardest negatives.

The k hardest negatives of example i are the k labels of largest inner product with it, over *all*
labels that are not its positives. A batch offers example i the labels of its shortlist, so

    recall@k = mean over examples of |hardest k of i  ∩  shortlist of i's batch| / k,

the share of what exhaustive negative mining would find that in-batch negatives hold for nothing
(NGAME, section 4, Dahiya et al., WSDM 2023, argues by it that clustered batches suffice). It needs
all labels; :func:`batch_hardness` looks at one batch only, so that it can be watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, expect_positive
from shoal.core.search import top_k


def hard_negative_recall(
    examples: Float[Tensor, "n d"],
    labels: Float[Tensor, "l d"],
    truth: Csr,
    batches: Iterable[Tensor],
    shortlist: Callable[[Tensor, Generator], list[Block]],
    ks: Sequence[int] = (10, 100),
    sample: int = 2000,
    seed: int = 0,
) -> dict[int, float]:
    """Measure which share of each example's k hardest negatives its batch holds.

    Args:
        examples: an embedding per example.
        labels: an embedding per label; the inner product with an example is their score.
        truth: ``[n, l]``, all known positives.
        batches: seeds ``[b]`` of each batch, as a batch sampler yields them.
        shortlist: a block sampler; `src` of its last block are the labels that a batch scores.
        ks: how many negatives count as the hardest; an example with fewer negatives counts them
            all, one with none does not count.
        sample: so many examples are looked at, drawn without replacement from all n; 2,000 leave a
            standard error of at most 1.1 points.
        seed: of the sample and of the shortlists.

    Returns:
        For each k the mean share, 0 … 1, over the sampled examples that occur in a batch.

    Raises:
        InputError: if shapes disagree, a k is not positive, or no sampled example is in a batch.

    Example:
        >>> from shoal.sample.expand import ShortlistSampler
        >>> truth = Csr.from_lists([[0], [1], [2], [3]], n_cols=4)  # labels are the examples
        >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> for batches in ([[0, 1], [2, 3]], [[0, 2], [1, 3]]):
        ...     seeds = torch.tensor(batches).unbind()
        ...     hard_negative_recall(rows, rows, truth, seeds, ShortlistSampler(truth), ks=(1,))
        {1: 1.0}
        {1: 0.0}
    """
    shape = len(examples), len(labels)
    expect(truth.shape == shape, "truth", f"examples x labels, {shape}", truth.shape, "align them")
    for name, value in (("sample", sample), *(("ks", k) for k in ks)):
        expect_positive(name, value)
    generator = Generator().manual_seed(seed)
    picked = torch.randperm(len(examples), generator=generator)[:sample].to(examples.device)
    row = torch.full((len(examples),), -1, device=examples.device).scatter_(
        0, picked, torch.arange(len(picked), device=examples.device)
    )
    _, hardest = top_k(examples[picked], labels, min(max(ks), len(labels)), truth.rows(picked))
    held, seen = _held(hardest, row, len(labels), batches, shortlist, generator)
    expect(len(seen) > 0, "batches", "some of the sampled examples", "none", "raise sample")
    return {k: _mean_share(held[:, :k], hardest[seen, :k] >= 0) for k in ks}


def batch_hardness(
    outputs: Float[Tensor, "n d"], shortlist: Block, sample: int = 128
) -> dict[str, float]:
    """How near a batch's hardest negatives come to its positives, from what the step computed.

    Cheap enough to watch while training runs: 128 examples against 2,000 labels of width 256 are a
    hundredth of a step's arithmetic.

    Args:
        outputs: embeddings of the shortlist's `dst`, then of its `src`.
        shortlist: all known positives between the two.
        sample: at most so many examples are looked at, evenly spread over the batch.

    Returns:
        mean inner products: ``hardest_negative``, each example's highest over the labels that are
        not its positives, and ``positive``, over its positives. Empty if no example has both.

    Example:
        >>> ids = torch.tensor([0])
        >>> one = Block(ids, torch.arange(2), torch.tensor([0, 1]), ids, ids)
        >>> batch_hardness(torch.tensor([[1.0, 0.0], [0.75, 0.0], [0.5, 0.0]]), one)
        {'hardest_negative': 0.5, 'positive': 0.75}
    """
    if not len(shortlist.src):  # no example of the batch has a label
        return {}
    examples, labels = outputs.detach().split([len(shortlist.dst), len(shortlist.src)])
    picked = torch.arange(0, len(examples), -(-len(examples) // sample), device=examples.device)
    known = shortlist.csr.rows(picked)
    row, column = known.row_ids(), known.indices.long()
    scores = (examples[picked] @ labels.T).float()
    positive = scores[row, column]
    scores[row, column] = -torch.inf
    hardest = scores.amax(dim=1)[known.degrees() > 0]
    hardest = hardest[hardest > -torch.inf]
    if not len(hardest):
        return {}
    return {"hardest_negative": float(hardest.mean()), "positive": float(positive.mean())}


def _held(
    hardest: Int[Tensor, "q k"],
    row: Int[Tensor, " n"],
    n_labels: int,
    batches: Iterable[Tensor],
    shortlist: Callable[[Tensor, Generator], list[Block]],
    generator: Generator,
) -> tuple[Bool[Tensor, "v k"], Int[Tensor, " v"]]:
    """Which of `hardest` each visit's shortlist holds, and the row of `hardest` of each visit."""
    held, seen = [hardest[:0] > 0], [row[:0]]
    for seeds in batches:
        expect_ids("batches", seeds, len(row))
        visits = row[seeds.to(row.device)]
        visits = visits[visits >= 0]
        src = shortlist(seeds, generator)[-1].src
        # One place more than labels: -1, where an example has too few negatives, is never held.
        inside = torch.zeros(n_labels + 1, dtype=torch.bool, device=row.device)
        inside[src.to(row.device).long()] = True
        held.append(inside[hardest[visits]])
        seen.append(visits)
    return torch.cat(held), torch.cat(seen)


def _mean_share(held: Bool[Tensor, "v k"], exists: Bool[Tensor, "v k"]) -> float:
    count = exists.sum(1)
    return float((held.sum(1)[count > 0] / count[count > 0]).mean())
