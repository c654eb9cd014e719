"""The processes that train together: what ``torch.distributed`` is asked for, in one place.

Every process makes the same global batch of ids by itself, so ids are never sent. What is sent:
outputs, once a batch (:func:`joined`); gradients, once a step (:func:`summed`, :func:`gathered`);
and what only one process can know, such as the time (:func:`agreed`). With one process each of
these returns what it was given.

The loss is computed by every process from all outputs, not by each for a slice of them: it is a
small part of a step, and processes that hold equal numbers take equal decisions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed

from shoal.core.errors import InputError, fail

# Processes that wait for one that is gone give up after this long; gathering a batch, validation
# and clustering of millions of examples lie between two messages.
TIMEOUT = timedelta(minutes=30)


def world_size() -> int:
    """How many processes train together; 1 where ``torch.distributed`` does not run."""
    running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if running else 1


def rank() -> int:
    """The number of this process, from 0; the first one alone prints and writes."""
    return distributed.get_rank() if world_size() > 1 else 0


@contextmanager
def launched(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did; a program that joined stays joined.

    Args:
        timeout: how long to wait for a process that does not answer.

    Yields:
        nothing; inside, :func:`world_size` is that of torchrun.

    Raises:
        InputError: if not all processes come, or one goes.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked == 1 or world_size() > 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        # gloo carries what lies in host memory, such as rows and decisions
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        fail("torchrun", f"{asked} processes at {address}", reason, "start all of them again")
    try:
        with together():
            yield
    except InputError as error:
        raise InputError(f"rank {rank()}: {error}") if rank() else error from error
    finally:
        distributed.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Say in one line that another process is gone, in place of what the network says of it.

    Raises:
        InputError: if a message to another process fails.
        RuntimeError: as it came, if it says anything else.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        lost = ("Connection", "Timed out", "peer", "NCCL", "gloo", "Socket")
        if world_size() == 1 or not any(word in said for word in lost):
            raise
        want, got = f"an answer of all {world_size()} processes", said.partition("\n")[0]
        remedy = "see what the process that ended first said, then train with --resume"
        raise InputError(f"rank {rank()}: expected {want}, got {got}; {remedy}") from error


# -- messages ------------------------------------------------------------------------------------


def joined(own: Shaped[Tensor, "r ..."], sizes: Sequence[int]) -> Shaped[Tensor, "n ..."]:
    """The rows of all processes, those of process 0 first.

    Args:
        own: rows of this process, as many as ``sizes[rank()]``.
        sizes: rows of each process, the same everywhere.
    """
    if world_size() == 1:
        return own
    # all-gather wants equal shapes; the longest part is at most one row longer where rows are dealt
    most = max(sizes)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gathered(own: Shaped[Tensor, "r ..."]) -> Shaped[Tensor, "n ..."]:
    """:func:`joined` where nobody knows how many rows the others have."""
    if world_size() == 1:
        return own
    counts = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(own)], device=own.device))
    return joined(own, [int(count) for count in counts])


def summed(parts: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over the processes, in one message; all of one dtype and device."""
    if world_size() == 1 or not parts:
        return list(parts)
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]


def log_sum_exp(own: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """``log Σ e^x`` over the processes, of the processes' own; −inf where all are.

    Two messages: the greatest first, so that no power overflows, then the sum.

    Example:
        >>> log_sum_exp(torch.tensor([0.5, -torch.inf])).tolist()
        [0.5, -inf]
    """
    if world_size() == 1:
        return own
    greatest = own.clone()
    distributed.all_reduce(greatest, distributed.ReduceOp.MAX)
    greatest = greatest.where(greatest > -torch.inf, 0.0)
    total = (own - greatest).exp()
    distributed.all_reduce(total)
    return total.log() + greatest


def agreed(own: Sequence[float]) -> list[float]:
    """The numbers of process 0, for all."""
    if world_size() == 1:
        return list(own)
    numbers = torch.tensor(own, dtype=torch.float64)
    distributed.broadcast(numbers, src=0)
    return numbers.tolist()


def averaged(own: Sequence[float]) -> list[float]:
    """The mean of each number over the processes; also where only a device carries messages."""
    if world_size() == 1:
        return list(own)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    numbers = torch.tensor(own, dtype=torch.float64, device=device)
    distributed.all_reduce(numbers)
    return (numbers / world_size()).tolist()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    count = torch.tensor(float(flag))
    distributed.all_reduce(count)
    return bool(count > 0)


def spread(
    function: Callable[[int, int], Shaped[Tensor, "r ..."]], n: int
) -> Shaped[Tensor, "n ..."]:
    """Rows 0 … n − 1 of what a function makes of a range, computed by all processes together.

    Example:
        >>> spread(lambda start, stop: torch.arange(start, stop), 3).tolist()
        [0, 1, 2]
    """
    return joined(function(*spans(n)[rank()]), [stop - start for start, stop in spans(n)])


def spans(n: int) -> list[tuple[int, int]]:
    """Ranges of 0 … n − 1, one per process, that differ in length by one at most.

    Example:
        >>> spans(3)
        [(0, 3)]
    """
    return list(pairwise(n * r // world_size() for r in range(world_size() + 1)))


def expect_same(facts: Mapping[str, str]) -> None:
    """Check that all processes were started alike.

    Args:
        facts: such as versions and digests of settings and data, by name.

    Raises:
        InputError: in every process, naming the first fact that differs and where.
    """
    if world_size() == 1:
        return
    every: list[dict[str, str]] = [{} for _ in range(world_size())]
    distributed.all_gather_object(every, dict(facts))
    for name, first in every[0].items():
        for number, other in enumerate(every):
            if other.get(name) != first:
                want, got = f"{first}, as on rank 0", f"{other.get(name)} on rank {number}"
                fail(name, want, got, "start all processes with the same data, settings and shoal")


def digest(*parts: Tensor | bytes) -> str:
    """A short fingerprint of tensors and bytes.

    Example:
        >>> digest(b"a") == digest(b"a"), digest(b"a") == digest(b"b")
        (True, False)
    """
    whole = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = isinstance(part, Tensor)
        whole.update(part.detach().cpu().numpy().tobytes() if data else part)
    return whole.hexdigest()
