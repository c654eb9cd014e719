"""Typed nodes and edges in time, by PyTorch Geometric's own models and shoal's loader.

    pip install 'torch-shoal[pyg]'
    python examples/with_pyg_typed.py

Shops sell items of four kinds, users buy mostly one kind. An item's kind is learned from who bought
it so far: around an item that is asked about at some time, no later purchase is read. Users' rows
are a unified tensor, items' another one, and shops have no features.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData  # pyright: ignore[reportMissingImports]
from torch_geometric.nn import HeteroConv, SAGEConv  # pyright: ignore[reportMissingImports]

from shoal import unified
from shoal.integrations.pyg import NeighborLoader  # was: from torch_geometric.loader import …

KINDS = 4


class Net(nn.Module):
    """Two layers, each with a convolution for each type of edges that it reads."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        read = ("user", "buys", "item"), ("item", "bought by", "user")
        self.first, self.last = (
            HeteroConv({kind: SAGEConv((-1, -1), width) for kind in read})
            for width in (hidden, KINDS)
        )

    def forward(self, rows: dict[str, Tensor], edges: dict[tuple[str, str, str], Tensor]) -> Tensor:
        """Logits of all items of a batch; the first are those of its seeds."""
        hidden = {kind: x.relu() for kind, x in self.first(rows, edges).items()}
        return self.last(hidden, edges)["item"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    asked = parser.parse_args()

    data = planted(asked.items)
    train = torch.rand(asked.items, generator=torch.Generator().manual_seed(1)) < 0.5
    loaders = [
        NeighborLoader(
            data,
            num_neighbors=[10, 5],
            input_nodes=("item", nodes),
            input_time=torch.full((int(nodes.sum()),), 60),
            time_attr="time",
            batch_size=100,
            shuffle=True,
            seed=0,
        )
        for nodes in (train, ~train)
    ]
    torch.manual_seed(0)
    net = Net(hidden=32)
    before = accuracy(net, loaders[1])  # also makes the weights, whose widths are the rows'
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(asked.epochs):
        for batch in loaders[0]:
            assert (batch["user", "buys", "item"].time <= 60).all()
            size = batch["item"].batch_size
            out = net(batch.x_dict, batch.edge_index_dict)[:size]
            loss = nn.functional.cross_entropy(out, batch["item"].y[:size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"accuracy {before:.2f} -> {accuracy(net, loaders[1]):.2f}")


def planted(items: int) -> HeteroData:
    """Users who know their kind, items that do not, shops of which only the number is known."""
    generator = torch.Generator().manual_seed(0)
    users, purchases = items // 2, 16 * items
    kind = torch.randint(KINDS, (items,), generator=generator)
    taste = torch.randint(KINDS, (users,), generator=generator)
    user = torch.randint(users, (purchases,), generator=generator)
    item = torch.randint(items, (purchases,), generator=generator)
    like = taste[user] == kind[item]
    kept = like | (torch.rand(purchases, generator=generator) < 0.05)
    time = torch.randint(100, (purchases,), generator=generator)[kept]
    edge_index = torch.stack([user[kept], item[kept]])

    data = HeteroData()
    noise = torch.randn(users, KINDS, generator=generator)
    data["user"].x = unified(2 * torch.eye(KINDS)[taste] + noise)
    data["item"].x = unified(torch.randn(items, 3, generator=generator))
    data["item"].y, data["shop"].num_nodes = kind, 20
    data["user", "buys", "item"].edge_index = edge_index
    data["item", "bought by", "user"].edge_index = edge_index.flip(0)
    data["shop", "sells", "item"].edge_index = torch.stack([item % 20, item])[:, kept]
    for edges in data.edge_types:
        data[edges].time = time
    return data


@torch.no_grad()
def accuracy(net: Net, loader: NeighborLoader) -> float:
    """Share of the seeds whose kind has the highest logit, in per cent."""
    right, seen = 0, 0
    for batch in loader:
        size = batch["item"].batch_size
        out = net(batch.x_dict, batch.edge_index_dict)[:size]
        right += int((out.argmax(1) == batch["item"].y[:size]).sum())
        seen += size
    return 100 * right / seen


if __name__ == "__main__":
    main()
