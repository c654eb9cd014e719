"""The two-line promise: a plain-torch script, the document's two lines, the same numbers.

Its like for PyTorch Geometric is tests/integrations/test_pyg.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.fetch.unified import UnifiedTensor

ROOT = Path(__file__).parents[2]
PLAIN = (ROOT / "examples" / "embedding.py").read_text(encoding="utf-8")


def with_two_lines() -> str:
    """The script after the diff of docs/concepts/placement.md."""
    page = (ROOT / "docs" / "concepts" / "placement.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    lines = diff.splitlines()
    assert sum(line.startswith("+") for line in lines) == 2 and "-" not in {x[0] for x in lines}
    text = PLAIN
    for hunk in ("\n".join(lines[:2]), "\n".join(lines[3:])):
        context = "\n".join(x[1:] for x in hunk.splitlines() if x[0] == " ")
        assert text.count(context) == 1
        text = text.replace(context, "\n".join(x[1:] for x in hunk.splitlines()))
    assert len(text.splitlines()) == len(PLAIN.splitlines()) + 2
    return text


def test_two_lines_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding trained with torch's Adam has the same losses as a unified parameter."""
    reads: list[type] = []
    monkeypatch.setattr(
        torch.optim,
        "Adam",
        lambda params, lr: _adam(reads, list(params), lr),
    )
    found = []
    for text in (PLAIN, with_two_lines()):
        names: dict[str, Any] = {"__name__": "script"}
        exec(compile(text, "embedding.py", "exec"), names)
        found.append(names["main"]())
    assert found[0] == found[1] and found[0][-1] < 0.8 * found[0][0]
    assert reads == [torch.nn.Parameter, UnifiedTensor]  # the lines did something


_ADAM = torch.optim.Adam


def _adam(reads: list[type], params: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    reads.append(type(params[0]))
    return _ADAM(params, lr=lr)
