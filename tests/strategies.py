"""Hypothesis strategies for shoal's nouns: small, with empty rows, doubles and both id widths."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from shoal.core.csr import Csr


@st.composite
def csrs(draw: st.DrawFn, min_rows: int = 0, min_cols: int = 0) -> Csr:
    """A Csr of at most 8 x 8 with unsorted rows, doubles and, half the time, values."""
    n = draw(st.integers(min_rows, 8))
    m = draw(st.integers(min_cols, 8))
    columns = st.lists(st.integers(0, m - 1), max_size=6) if m else st.just([])
    rows = [draw(columns) for _ in range(n)]
    indptr = torch.tensor([sum(map(len, rows[:i])) for i in range(n + 1)])
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    indices = torch.tensor([c for row in rows for c in row], dtype=dtype)
    values = None
    if draw(st.booleans()):
        values = torch.tensor([float(draw(st.integers(1, 9))) for _ in indices])
    return Csr(indptr, indices, m, values)


def ids_below(n: int, max_size: int = 12) -> st.SearchStrategy[torch.Tensor]:
    """A possibly empty 1-d tensor of ids in [0, n), repeats allowed."""
    ids = st.lists(st.integers(0, n - 1), max_size=max_size)
    return ids.map(lambda x: torch.tensor(x, dtype=torch.int64))
