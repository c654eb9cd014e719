"""A shortlist with mined negatives: labels that a search found hard, beside all positives.

Clusters bring examples together whose labels are hard for one another; a search over a head finds
the labels that are hard for an example wherever they are. ANCE (Xiong et al., ICLR 2021) mines from
an index that is rebuilt every so often; so does this, at each refresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.sample.expand import expand
from shoal.sample.relabel import Scratch


class MinedShortlist:
    """A block sampler: all positives of the batch's examples, and what was mined for each of them.

    Before the first :meth:`refresh` there are the positives alone. Ones of the block are all known
    positives, so a mined label that is another example's positive stays one.

    Args:
        labels: examples x labels.

    Example:
        >>> sampler = MinedShortlist(Csr.from_lists([[0], [2]], n_cols=5))
        >>> sampler.refresh(torch.tensor([[4, 3], [0, -1]]))
        >>> (block,) = sampler(torch.tensor([0, 1]), torch.Generator())
        >>> block.src.tolist(), block.mask().int().tolist()
        ([0, 2, 4, 3], [[1, 0, 0, 0], [0, 1, 0, 0]])
    """

    def __init__(self, labels: Csr) -> None:
        self.labels = labels
        self.mined = torch.empty(labels.n_rows, 0, dtype=torch.int32)
        self._scratch = Scratch()

    def refresh(self, mined: Int[Tensor, "n k"]) -> None:
        """Take up new hard labels of all examples, -1 for none.

        Raises:
            InputError: if there is not a row per example.
        """
        n, got = self.labels.n_rows, len(mined)
        expect(got == n, "mined", f"labels of {n} examples", got, "search for all examples")
        self.mined = mined.int().cpu()

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one induced block; nothing in it is random."""
        mined = self.mined[seeds].flatten()
        found = mined[mined >= 0]
        block = expand(self.labels, seeds, induced=True, extra=found, scratch=self._scratch)
        return [block]

    def state_dict(self) -> dict[str, Any]:
        """The mined labels (4 n k bytes)."""
        return {"mined": self.mined.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that :meth:`state_dict` of a like sampler returned.

        Raises:
            InputError: if it is that of a sampler over another number of examples.
        """
        self.refresh(state["mined"])
