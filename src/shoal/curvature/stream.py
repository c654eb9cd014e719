"""The stream of batches: how many samples there are, what draws them, and how."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, RandomSampler

from shoal.core.block import Batch
from shoal.core.errors import expect
from shoal.curvature.problem import Problem
from shoal.curvature.spectrum import Sampling


def dataset_size_of(loader: Any) -> int | None:
    """Samples of the whole data, or None where the loader does not say."""
    if isinstance(loader, DataLoader):
        data: Any = loader.dataset
        return len(data) if hasattr(data, "__len__") else None
    size = getattr(getattr(loader, "batch_sampler", None), "n", None)
    return size if isinstance(size, int) else None


def expect_size(size: int | None, problem: Problem) -> None:
    """Raise if the data is smaller than what was measured of it.

    Raises:
        InputError: naming both numbers.
    """
    measured = sum(problem.sizes)
    good = size is None or size >= measured
    want = f"at least the {measured} samples that were measured"
    expect(good, "dataset_size", want, size, "pass the number of samples of the whole data")


def sampling_of(loader: Any, problem: Problem, is_mean: bool = True) -> Sampling:
    """How samples of a batch were drawn, as far as the batch sampler and the blocks say.

    Args:
        loader: of the batches.
        problem: that holds them.
        is_mean: whether the loss is a mean of samples' losses; if not, samples meet in it.
    """
    drawn: Sampling = getattr(_batch_sampler(loader), "sampling", "independent")
    if drawn == "independent" and not is_mean:
        return "in-batch"
    batch = problem.batches[0]
    if drawn == "independent" and isinstance(batch, Batch) and batch.blocks:
        return "neighborhoods" if batch.blocks[-1].dst_in_src else "in-batch"
    return drawn


def sampler_of(loader: Any) -> str:
    """The name of what draws the batches, for people to read."""
    sampler = _batch_sampler(loader)
    if isinstance(loader, DataLoader) and not hasattr(sampler, "sampling"):
        return type(loader.sampler).__name__
    return type(sampler).__name__


def _batch_sampler(loader: Any) -> Any:
    inner = getattr(loader, "batch_sampler", None)
    return loader if inner is None else inner


def notes_on_stream(
    loader: Any, problem: Problem, size: int | None, sampling: Sampling
) -> list[str]:
    """Notes on what the stream of batches means for the noise."""
    notes = []
    own = hasattr(_batch_sampler(loader), "sampling")  # whose order is its own business
    if isinstance(loader, DataLoader) and not (own or isinstance(loader.sampler, RandomSampler)):
        notes.append(
            f"batches came in the order of {sampler_of(loader)}: the noise is that of shuffled "
            "batches only if that order is random"
        )
    if sampling != "independent":
        notes.append(
            f"{sampling} batches: the noise is that of this batch size, no multiple of 1 / batch "
            "size; for other sizes fit two of them (shoal.curvature.batch_spectra.fit_top)"
        )
    if len(problem.batches) < 2:
        notes.append("one batch: how batches differ was not measured; give two or more")
    if size is None:
        notes.append("the data's size is not known: noise is that of endless data; dataset_size=")
    return notes
