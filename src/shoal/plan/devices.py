"""What a machine does a second: named profiles, and this machine measured.

Work is counted in five currencies, each with a rate of the device: arithmetic of matrix products,
bytes that are read and written one after the other, bytes of scattered rows, entries of ids that
samplers draw and sort on the host, and operations that are started. Two more belong to the links:
bytes between host and device, and bytes between ranks. Nothing overlaps:

    flops / F + streamed / S + gathered / G + entries / E + calls · c + linked / L + sent / N
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from shoal.core.errors import expect, expect_positive
from shoal.core.memory import available_bytes

Real = float | int
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Work:
    """What a stage of a step has to do on one rank; see the module for the currencies."""

    flops: Real = 0.0
    streamed: Real = 0.0
    gathered: Real = 0.0
    entries: Real = 0.0
    calls: Real = 0.0
    linked: Real = 0.0
    sent: Real = 0.0


@dataclass(frozen=True)
class Device:
    """A device and its host.

    Attributes:
        name: of the profile.
        memory: bytes of the device; None where rows, activations and all lie in host memory.
        host: bytes of host memory; None where it is not known.
        flops: FLOP/s that float32 products reach.
        flops_bf16: those of bfloat16.
        streamed: bytes per second read and written in order.
        gathered: bytes per second of scattered rows.
        entries: ids per second that the host draws, sorts and numbers.
        call: seconds to start an operation.
        linked: bytes per second between host and device.
        sent: bytes per second between two ranks.
    """

    name: str
    memory: Real | None
    host: Real | None
    flops: Real
    flops_bf16: Real
    streamed: Real
    gathered: Real
    entries: Real
    call: Real
    linked: Real
    sent: Real

    def seconds(self, work: Work, precision: Precision = "float32") -> Real:
        """How long it works, one thing after the other.

        Example:
            >>> slow = Device("slow", None, None, 1e9, 1e9, 1e9, 1e9, 1e6, 0.0, 1e9, 1e9)
            >>> slow.seconds(Work(flops=2e9, entries=1e6))
            3.0
        """
        rate = self.flops if precision == "float32" else self.flops_bf16
        bytes_moved = work.streamed / self.streamed + work.gathered / self.gathered
        carried = work.linked / self.linked + work.sent / self.sent
        started = work.entries / self.entries + work.calls * self.call
        return work.flops / rate + bytes_moved + carried + started


def _accelerator(
    name: str, memory: Real, flops: Real, bf16: Real, stream: Real, link: Real, sent: Real
) -> Device:
    """A profile of data-sheet rates.

    Assumption: products reach half of the peak, memory 0.7 of it, links 0.85; scattered rows a
    third of memory's peak, as docs/results/tiers.md has it.
    """
    return Device(
        name,
        memory=memory,
        host=None,
        flops=flops / 2,
        flops_bf16=bf16 / 2,
        streamed=0.7 * stream,
        gathered=stream / 3,
        entries=2e7,
        call=1e-5,
        linked=0.85 * link,
        sent=0.85 * sent,
    )


DEVICES: dict[str, Device] = {
    # data sheets: dense FLOP/s, memory, PCIe of sixteen lanes one way, NVLink one way or PCIe
    "h200": _accelerator("h200", 141e9, 67e12, 989e12, 4.8e12, 63e9, 450e9),
    "h100": _accelerator("h100", 80e9, 67e12, 989e12, 3.35e12, 63e9, 450e9),
    "a100": _accelerator("a100", 80e9, 19.5e12, 312e12, 2.04e12, 31.5e9, 300e9),
    "rtx4090": _accelerator("rtx4090", 24e9, 82.6e12, 165e12, 1.01e12, 31.5e9, 31.5e9),
    # one core with AVX2, fitted: docs/results/plan.md
    "cpu": Device("cpu", None, None, 4.5e10, 4.5e10, 1.4e10, 7.8e9, 2e7, 1.1e-5, 1e12, 1e9),
}
"""Profiles by name."""


def device_of(name: Device | str) -> Device:
    """A profile by its name, or what is measured here: ``"measured"``, a second's work.

    Raises:
        InputError: if there is no such profile.
    """
    if isinstance(name, Device):
        return name
    if name == "measured":
        return measured()
    names = ", ".join((*DEVICES, "measured"))
    expect(name in DEVICES, "device", f"one of {names}", name, "choose one, or pass a Device")
    return DEVICES[name]


def measured(device: str | None = None) -> Device:
    """Time products, copies, gathers and sorts here; links between ranks keep the profile's rate.

    Args:
        device: ``"cuda"`` or ``"cpu"``; the first where there is one by default.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = where.type == "cuda"
    like = DEVICES["h100" if cuda else "cpu"]
    size = 4096 if cuda else 768
    x = torch.ones(size, size, device=where)
    half = x.bfloat16()
    rows = torch.ones(2**19 if cuda else 2**16, 256, device=where)
    other, host = torch.empty_like(rows), torch.ones(2**16, 256)
    ids = torch.randint(len(rows), (2**16,), device=where)
    drawn, one = torch.randint(2**20, (2**18,)), torch.ones(1, device=where)

    def rate(amount: Real, work: Callable[[], object]) -> Real:
        return amount / _seconds(work, where)

    return replace(
        like,
        name="measured",
        memory=float(torch.cuda.mem_get_info(where)[0]) if cuda else None,
        host=None if (left := available_bytes()) is None else float(left),
        flops=rate(2.0 * size**3, lambda: x @ x),
        flops_bf16=rate(2.0 * size**3, lambda: half @ half if cuda else x @ x),
        streamed=rate(2.0 * rows.nbytes, lambda: other.copy_(rows)),
        gathered=rate(2.0 * ids.numel() * 1024, lambda: rows.index_select(0, ids)),
        entries=rate(drawn.numel(), drawn.sort),
        call=_seconds(lambda: one + 1, where),
        linked=rate(host.nbytes, lambda: host.to(where)) if cuda else like.linked,
    )


@dataclass(frozen=True)
class Machine:
    """What a job runs on.

    Attributes:
        device: of each rank; a profile's name, or ``"measured"``, is looked up.
        ranks: processes that train together.
        ranks_a_host: how many of them share a host's memory.
        precision: of products.
        price: of a device for an hour, in any currency; None where it is not known.

    Raises:
        InputError: if a number is out of range or there is no such profile.

    Example:
        >>> Machine("h200", ranks=8).device.memory
        141000000000.0
    """

    device: Any = "cpu"
    ranks: int = 1
    ranks_a_host: int = 8
    precision: Precision = "float32"
    price: Real | None = None

    def __post_init__(self) -> None:
        expect_positive("ranks", self.ranks)
        expect_positive("ranks_a_host", self.ranks_a_host)
        known = self.precision in ("float32", "bfloat16")
        expect(known, "precision", "float32 or bfloat16", self.precision, "choose one of them")
        good = self.price is None or 0 <= self.price < math.inf
        expect(good, "price", "a finite number of at least 0", self.price, "leave it out")
        object.__setattr__(self, "device", device_of(self.device))

    @property
    def on_host(self) -> bool:
        """Whether the host itself computes."""
        return self.device.memory is None

    def seconds(self, work: Work) -> Real:
        """How long one rank works."""
        return self.device.seconds(work, self.precision)


def _seconds(work: Callable[[], object], device: torch.device) -> Real:
    """The least of five timings: what others do at the same time only adds."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)
