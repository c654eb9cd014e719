"""Who is in the batches of a job on labels, and when they are chosen anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from shoal.sample.seeds import ClusterBatchSampler, RandomBatchSampler
from shoal.settings import Train
from shoal.tasks.encoders import defaults_of

Seeds = ClusterBatchSampler | RandomBatchSampler


def batch_sampler_of(n: int, settings: Train) -> Seeds:
    """Batches of n points as the settings ask for them.

    Raises:
        InputError: if batch and cluster size do not fit one another, or the data.
    """
    size = settings.batch_size or defaults_of(settings).batch_size
    if settings.batches == "random":
        return RandomBatchSampler(n, size, settings.seed)
    return ClusterBatchSampler(n, size, settings.cluster_size, settings.seed)


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
        facts for the record.
    """
    seeds.set_epoch(epoch)
    age, idle = epoch - warm, isinstance(seeds, RandomBatchSampler) and mine is None
    if age >= 0 and age % settings.refresh_every == 0 and not idle:
        rows = embed()
        seeds.refresh(rows)
        if mine is not None:
            mine(rows)
    return {"cluster_size": getattr(seeds, "size", 1)}
