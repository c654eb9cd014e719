"""Batches of any kind: their size, and every tensor of them elsewhere."""

from __future__ import annotations

from typing import NamedTuple

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
