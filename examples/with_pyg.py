"""A plain PyTorch Geometric script of which two lines are shoal's, marked below.

    pip install 'torch-shoal[pyg]'
    python examples/with_pyg.py

GraphSAGE learns the classes of a planted graph. PyG's own NeighborLoader needs pyg-lib, which is
not on PyPI; shoal's draws the neighbors in plain torch. The features are a unified tensor: rows of
host memory that are read by id.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Data  # pyright: ignore[reportMissingImports]
from torch_geometric.nn import SAGEConv  # pyright: ignore[reportMissingImports]

from shoal import unified
from shoal.integrations.pyg import NeighborLoader  # was: from torch_geometric.loader import …

sys.path.insert(0, str(Path(__file__).parents[1]))  # planted data lies with the tests
from tests.planted import planted_graph


class Net(nn.Module):
    """Two layers, as in PyG's examples."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = SAGEConv(width, hidden), SAGEConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of all nodes of a batch; the first are those of its seeds."""
        return self.last(self.first(x, edge_index).relu(), edge_index)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    asked = parser.parse_args()

    data = planted(asked.nodes)
    data.x = unified(data.x)  # the other line  # pyright: ignore[reportArgumentType]
    loaders = {
        name: NeighborLoader(
            data,
            num_neighbors=[10, 5],
            input_nodes=data[f"{name}_mask"],
            batch_size=256,
            shuffle=name == "train",
            num_workers=asked.workers,
        )
        for name in ("train", "test")
    }
    torch.manual_seed(0)
    net = Net(data.num_features, 32, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = accuracy(net, loaders["test"])
    for _ in range(asked.epochs):
        for batch in loaders["train"]:
            out = net(batch.x, batch.edge_index)[: batch.batch_size]
            loss = nn.functional.cross_entropy(out, batch.y[: batch.batch_size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"accuracy {before:.2f} -> {accuracy(net, loaders['test']):.2f}")


def planted(nodes: int) -> Data:
    """Four classes that a node's neighbors tell better than the node itself."""
    made = planted_graph(n=nodes, classes=4, degree=8)
    assert made.features is not None
    sources, targets = made.graph.indices, made.graph.row_ids()
    masks = {f"{name}_mask": torch.zeros(nodes, dtype=torch.bool) for name in ("train", "test")}
    masks["train_mask"][made.train], masks["test_mask"][made.test] = True, True
    edge_index = torch.stack([sources, targets])
    return Data(x=made.features.to_dense(), edge_index=edge_index, y=made.target, **masks)


@torch.no_grad()
def accuracy(net: Net, loader: object) -> float:
    """Share of the seeds whose class has the highest logit, in per cent."""
    right, seen = 0, 0
    for batch in loader:  # pyright: ignore[reportGeneralTypeIssues]
        out = net(batch.x, batch.edge_index)[: batch.batch_size]
        right += int((out.argmax(1) == batch.y[: batch.batch_size]).sum())
        seen += batch.batch_size
    return 100 * right / seen


if __name__ == "__main__":
    main()
