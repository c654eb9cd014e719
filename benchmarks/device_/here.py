"""The machine that is measured: its device or the CPU that plays one, its clocks and its meters."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.fetch.device_rows import device_view
from shoal.fetch.inplace import SORT_BYTES, Bounds, InPlace

Row = dict[str, Any]
Section = Callable[["Here"], Iterator[Row]]
GIB = 2**30


@dataclass(frozen=True)
class Here:
    """What every section is told.

    Attributes:
        device: a CUDA device, or the CPU, which then plays one: every line runs, no number counts.
        quick: whether sizes are small.
        until: when to stop beginning new measurements, by time.monotonic().
        data: the folder of outside data, if there is one.
    """

    device: torch.device
    quick: bool
    until: float
    data: Path | None = None

    @property
    def real(self) -> bool:
        """Whether there is a device."""
        return self.device.type == "cuda"

    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.until

    def wait(self) -> None:
        """Let all work of the device end."""
        if self.real:
            torch.cuda.synchronize(self.device)

    def view(self, table: Tensor) -> Tensor:
        """The memory of a host table as a tensor of the device."""
        return device_view(table, self.device) if self.real else table

    def in_place(self, table: Tensor, sort_bytes: int = SORT_BYTES) -> InPlace:
        """Reads of a host table by the device."""
        fault = torch.zeros(3, dtype=torch.int64, device=self.device)
        return InPlace(self.view(table), Bounds(len(table)), fault, sort_bytes)

    def seconds(self, run: Callable[[], object], repeats: int = 5) -> float:
        """Median of some runs behind two that compile and touch memory, the device waited for."""
        times = []
        for _ in range(repeats + 2):
            self.wait()
            begin = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:])

    def stream(self) -> Any:
        """A stream beside the current one; the CPU has none, and works at once."""
        return torch.cuda.Stream(self.device) if self.real else None


def facts(here: Here) -> Iterator[Row]:
    """What the numbers were measured on; question 7: how much memory may be locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    row: Row = {
        "device": torch.cuda.get_device_name(here.device)
        if here.real
        else "none: the CPU plays one",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB),
        "kernel": platform.release(),
        "memlock": "unlimited" if soft == resource.RLIM_INFINITY else soft,
        "huge_pages": _first_line(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "meters": ", ".join(joules()) or "none readable",
    }
    try:
        import triton

        row["triton"] = triton.__version__
    except ImportError:
        row["triton"] = "none"
    if here.real:
        query = "driver_version,pcie.link.gen.current,pcie.link.width.current,mig.mode.current"
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
        row["driver, link, lanes, MIG"] = answer.stdout.strip() or answer.stderr.strip()
    yield row


def joules() -> dict[str, float]:
    """Energy counters that can be read, in joules since some beginning: the device's, packages'."""
    found = {}
    for counter in sorted(Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")):
        text = _first_line(counter)
        if text.isdigit():
            found[f"rapl_{counter.parent.name[-1]}"] = int(text) / 1e6
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return found
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
    nvml.nvmlInit_v2()
    if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) == 0:
            found["device"] = used.value / 1e3
    return found


def random_ids(n: int, count: int, seed: int = 0) -> Tensor:
    """`count` ids below n, repeats allowed."""
    return torch.randint(n, (count,), generator=torch.Generator().manual_seed(seed))


def host_rows(nbytes: int, width: int, shift: int = 0) -> Tensor:
    """Rows of `width` bytes that fill some memory and begin `shift` bytes behind a line."""
    memory = torch.empty(nbytes + 256, dtype=torch.uint8)
    memory[::4096] = 1  # touched: a page that is not is no memory yet
    start = -memory.data_ptr() % 128 + shift
    n = nbytes // width
    return memory[start : start + n * width].view(n, width)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().split("\n")[0]
    except OSError:
        return "unreadable"
