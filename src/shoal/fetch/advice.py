"""Memory advice: what the system is told about a table's reads, and what has no place for it.

PyTorch-Direct allocated managed memory and passed ``cudaMemAdvise`` on. Managed pages migrate;
registered host pages never do, so each piece of CUDA's advice is refused by name, with what serves
its purpose here. What remains is the host's own ``madvise`` (Linux).
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

from shoal.core.errors import expect, fail
from shoal.fetch.register import bytes_of, pages_of, touch

_MADVISE = {"normal": 0, "random": 1, "sequential": 2, "willneed": 3, "hugepages": 14}
_REFUSED = {
    "read_mostly": "keep hot rows on the device with shoal.TieredTable",
    "preferred_location": "keep hot rows on the device with shoal.TieredTable",
    "accessed_by": "leave it out: every device maps registered rows",
}


def advise(table: Tensor, advice: str, mapped: bool = False) -> None:
    """Tell the system how a table in host memory will be read.

    Args:
        table: rows in host memory.
        advice: ``populate`` backs all pages with memory now (not those of a mapped file, which it
            would copy); ``hugepages`` asks for pages of 2 MB, before they are touched; ``random``,
            ``sequential``, ``willneed`` and ``normal`` steer the reading ahead of a mapped file.
        mapped: whether the rows belong to a mapped file.

    Raises:
        InputError: for CUDA's advice and unknown words, each with what to do instead.
    """
    known = [*_MADVISE, "populate"]
    if advice in _REFUSED:
        fail("advice", f"one of {known}", f"CUDA's {advice}", _REFUSED[advice])
    expect(advice in known, "advice", f"one of {known}", repr(advice), "choose one")
    begin, end = pages_of(*bytes_of(table.untyped_storage()))
    if advice == "populate":
        expect(not mapped, "advice", "rows in memory", "a mapped file", 'use "willneed"')
        touch(begin, end)
    elif sys.platform.startswith("linux"):
        # advice about whole pages: those that the table shares with others at its ends are left out
        begin += mmap.PAGESIZE * (begin < table.untyped_storage().data_ptr())
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(max(end - begin, 0)), _MADVISE[advice])
