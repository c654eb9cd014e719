"""Memory: the most that this process has held, on the host and on devices, and what is left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

_MIB = 2**20


def peak_mib() -> float:
    """Highest resident memory of this process so far, in MiB; NaN where the system has no count.

    Linux's own count comes first: ``ru_maxrss`` would pass on the peak of the process that began
    this one.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    kib = 1024 if sys.platform == "darwin" else 1  # counted in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib / 1024


def available_bytes() -> int | None:
    """Host memory that is left without swapping, or all of it; None where the system does not say.

    Linux says what is left, macOS what there is, Windows neither by Python alone.
    """
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that a device or the host had no room."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "allocate memory" in str(error)  # the host's allocator has no class of its own


def is_out_of_threads(error: Exception) -> bool:
    """Whether `error` says that the system starts no more threads."""
    return "start new thread" in str(error)  # Python's own: it has no class for it


def peaks() -> dict[str, int]:
    """Highest memory so far, as whole MiB: ``peak_mib``, and ``device_peak_mib`` if CUDA is used.

    Asking does not start CUDA.
    """
    host = peak_mib()
    found = {"peak_mib": round(host)} if host == host else {}
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["device_peak_mib"] = max(torch.cuda.max_memory_allocated(i) for i in devices) // _MIB
    return found
