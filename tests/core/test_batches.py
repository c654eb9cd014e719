"""Batches of any kind: their size, and every tensor of them elsewhere."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.core.batches import map_tensors, moved, size_of
from shoal.core.block import Batch


class Pair(NamedTuple):
    """What a data set with names gives."""

    x: Tensor
    y: list[Tensor]


def test_every_tensor_is_reached() -> None:
    """Through tuples, named ones too, lists and dictionaries; the rest stays what it is."""
    batch = {"a": (torch.ones(2), "text"), "b": Pair(torch.zeros(3), [torch.ones(1)]), "c": None}
    other = moved(batch, torch.device("meta"))
    assert isinstance(other["b"], Pair) and other["a"][1] == "text" and other["c"] is None
    tensors: list[Tensor] = []
    map_tensors(other, tensors.append)
    assert [x.device.type for x in tensors] == ["meta"] * 3


def test_sizes() -> None:
    """Seeds of shoal's batches; else the first axis of the first tensor that has one, or 0."""
    ids = torch.arange(4)
    assert size_of(Batch(ids, (), torch.zeros(9, 2))) == 4
    assert size_of({"text": "abc", "x": [torch.zeros(5, 1), ids]}) == 5
    assert size_of(Pair(ids, [])) == 4 and size_of(torch.tensor(1.0)) == 1
    assert size_of(["abc", 3]) == size_of({}) == size_of(7) == 0


@dataclass
class Named:
    """A batch of a data class."""

    text: list[str]
    x: Tensor


X, Y = torch.zeros(16, 8), torch.zeros(16, dtype=torch.int64)


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        {"text": ["a"] * 16, "x": X, "y": Y},
        {"split": "train", "step": torch.tensor(3), "lr": torch.tensor([0.1]), "x": X, "y": Y},
        Named(["a"] * 16, X),
        (X.numpy(), Y.numpy()),
        (list(X), list(Y)),
        ((X, X.long()), Y),
        UserDict(x=X, y=Y),
        (torch.zeros(5, 16, 8), Y),  # time first
        {"x": X, "edge_index": torch.zeros(2, 40), "y": Y},
        ["a text"] * 16,
        [["a text"] * 16, Y],
        (X, np.arange(16)),
    ],
)
def test_batches_of_every_kind_have_a_size(batch: Any) -> None:
    assert size_of(batch) == 16


def test_kinds_are_kept() -> None:
    """Data classes and mappings with attributes of their own come back as what they were."""

    class Attributes(UserDict):
        def __getattr__(self, name: str) -> Any:
            return self.data[name]

    other = moved(Attributes(x=X), torch.device("meta"))
    assert isinstance(other, Attributes) and other.x.device.type == "meta"
    other = moved(Named(["a"], X), torch.device("meta"))
    assert isinstance(other, Named) and other.x.device.type == "meta" and other.text == ["a"]
