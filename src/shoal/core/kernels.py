"""Whether Triton's kernels run on a device: tried once, with one warning where they do not.

Triton compiles a kernel when it is first launched, and needs a C compiler for that, which slim
images lack. So each stage first runs a tiny kernel of its own and compares what it gives with the
torch line in the kernel's docstring; where that fails, torch's ordinary kernels do the same work.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

Probe = Callable[[torch.device], bool]
"""Runs a kernel on the device: whether it gave what its torch line gives."""

_KNOWN: dict[tuple[Probe, torch.device], bool] = {}
_LOCK = threading.Lock()


def usable(probe: Probe, device: torch.device) -> bool:
    """Return whether kernels run on `device`; a failure is warned of once and remembered.

    Example:
        >>> usable(lambda device: device.type == "cpu", torch.device("cpu"))
        True
    """
    with _LOCK:
        if (probe, device) not in _KNOWN:
            _KNOWN[probe, device] = _runs(probe, device)
        return _KNOWN[probe, device]


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current one, on which Triton launches and events are recorded."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _runs(probe: Probe, device: torch.device) -> bool:
    try:
        with current(device):
            if probe(device):
                return True
        reason = "its answer differs from torch's"
    except Exception as error:
        # whatever it is: no Triton, no compiler, an architecture that Triton lacks
        reason = (str(error) or type(error).__name__).splitlines()[0]
    text = f"Triton does not run on {device}, so torch's own kernels are used, which are slower"
    warnings.warn(f"{text}: {reason}", stacklevel=4)
    return False
