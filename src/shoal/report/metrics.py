"""Metrics by kind and k, as a page and a terminal show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# metrics of nodes and links, which have no k
OF_GRAPHS = ("accuracy", "micro_F1", "MRR", "AUC")


def metric_table(
    metrics: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The ks, and per kind of metric its name and one value per k, None where there is none.

    Metrics without a k stand in the first column.

    Example:
        >>> metric_table({"P@1": 40.0, "P@5": 20.0, "PSP@5": 9.0, "step": 3})
        (['1', '5'], [('P', [40.0, 20.0]), ('PSP', [None, 9.0])])
        >>> metric_table({"accuracy": 80.0})
        ([''], [('accuracy', [80.0])])
    """
    kinds: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, at, k = name.removeprefix("valid_").partition("@")
        if at or kind in OF_GRAPHS:
            kinds.setdefault(kind, {})[k] = value
    ks = list(dict.fromkeys(k for row in kinds.values() for k in row if k)) or [""]
    first = ks[0]
    rows = [(kind, [row.get(k, row.get("") if k == first else None) for k in ks])
            for kind, row in kinds.items()]  # fmt: skip
    return ks, rows
