"""Who is in the batches of a job on labels, by what they are clustered, and when anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.metrics import inverse_propensity
from shoal.core.sparse import matmul
from shoal.sample.expand import ShortlistSampler
from shoal.sample.seeds import ClusterBatchSampler, RandomBatchSampler
from shoal.tasks.encoders import defaults_of
from shoal.training.job import Budget

Seeds = ClusterBatchSampler | RandomBatchSampler

# When clusters of 2, 4, 8, ... points begin, as shares of the training: NGAME's published
# configuration halves the number of clusters at epochs 10, 20, 25, ... of 300 for the encoder, and
# at 10, 15, ... of 100 for the classifiers.
ENCODER_SHARES = (10 / 300, 20 / 300, 25 / 300, 50 / 300, 75 / 300, 1 / 3, 125 / 300, 0.5, 2 / 3)
HEAD_SHARES = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


def batch_sampler_of(
    n: int, settings: Train, budget: Budget, shares: Sequence[float] = ENCODER_SHARES
) -> Seeds:
    """Batches of n points as the settings ask for them.

    Args:
        n: how many points.
        settings: batch and cluster size, and whether clusters grow.
        budget: how long the training is, which tells when they do.
        shares: of the training, after which clusters double.

    Raises:
        InputError: if batch and cluster size do not fit one another, or the data, or clusters are
            to grow and only the clock tells the end.
    """
    batch = settings.batch_size or defaults_of(settings).batch_size
    if settings.batches == "random":
        return RandomBatchSampler(n, batch, settings.seed)
    size: int | list[tuple[int, int]] = settings.cluster_size
    if settings.curriculum:
        steps_per_epoch = -(-n // batch)
        total = budget.total_steps(steps_per_epoch)
        want = "a number of epochs or steps"
        expect(total is not None, "curriculum", want, "minutes alone", "pass --epochs")
        assert total is not None
        size = curriculum(settings.cluster_size, total / steps_per_epoch, shares)
    return ClusterBatchSampler(n, batch, size, settings.seed)


def curriculum(
    size: int, epochs: float, shares: Sequence[float] = ENCODER_SHARES
) -> list[tuple[int, int]]:
    """Say from which epoch on clusters have which size: doublings up to `size`.

    Args:
        size: the last one; halves of it come before, down to 2 or the last whole number.
        epochs: how long the training is.
        shares: of the training, after which the first, second, ... size begins; sizes beyond them
            begin with the last.

    Returns:
        (epoch, size) pairs; where several begin in one epoch, the largest.

    Example:
        >>> curriculum(8, epochs=300.0)
        [(10, 2), (20, 4), (25, 8)]
        >>> curriculum(8, epochs=30.0)
        [(1, 2), (2, 4), (3, 8)]
    """
    sizes = [size]
    while sizes[0] % 2 == 0 and sizes[0] > 2:
        sizes.insert(0, sizes[0] // 2)
    starts = {}
    for i, each in enumerate(sizes):
        starts[math.ceil(shares[min(i, len(shares) - 1)] * epochs - 1e-9)] = each
    return sorted(starts.items())


def shortlist_of(truth: Csr, settings: Train) -> ShortlistSampler:
    """The shortlist of a batch: positives drawn evenly, or in proportion to inverse propensity."""
    if settings.positives_by == "chance":
        return ShortlistSampler(truth, settings.positives)
    weight = inverse_propensity(truth)[truth.indices.long()]
    return ShortlistSampler(truth.with_values(weight), settings.positives, weighted=True)


def with_scored(
    seeds: Float[Tensor, "n d"], scored: Float[Tensor, "l d"], truth: Csr
) -> Float[Tensor, "n d"]:
    """Unit vectors of seeds and of what they are tagged with: of x + the mean of its positives.

    Examples that share labels become alike however differently they are worded.

    Args:
        seeds: unit vectors x.
        scored: unit vectors of what may be their positives.
        truth: which are; values are not read.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> with_scored(x, torch.tensor([[0.0, 1.0]]), Csr.from_lists([[0], []], 1))
        tensor([[0.7071, 0.7071],
                [1.0000, 0.0000]])
    """
    total = matmul(truth.with_values(None).to(scored.device), scored)
    mean = total / truth.degrees().clamp(min=1).unsqueeze(1).to(total)
    return functional.normalize(seeds.to(mean) + mean, dim=1)


def renew(
    seeds: Seeds,
    embed: Callable[[], Tensor],
    settings: Train,
    epoch: int,
    *,
    warm: int,
    mine: Callable[[Tensor], None] | None = None,
) -> dict[str, Any]:
    """Choose clusters, and mined labels where there are any, anew for `epoch` if that is due.

    Args:
        seeds: clusters, or random batches, which embed nothing unless something is mined.
        embed: makes one row a point, ``[n, d]``.
        settings: say how often.
        epoch: the one that is about to begin.
        warm: epochs before the first time.
        mine: reads the same rows.

    Returns:
        facts for the record: points a cluster (1: random batches), how many clusters there are, all
        full but at most one, and whether they, or mined labels, are new.
    """
    seeds.set_epoch(epoch)
    age, idle = epoch - warm, seeds.sampling == "independent" and mine is None
    anew = age >= 0 and age % settings.refresh_every == 0 and not idle
    if anew:
        rows = embed()
        seeds.refresh(rows)
        if mine is not None:
            mine(rows)
    size = getattr(seeds, "size", 1)
    return {"cluster_size": size, "clusters": -(-seeds.n // size), "anew": anew}
