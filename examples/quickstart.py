"""Four ways in, each at most five lines of shoal: a table, lists, a graph, a loop of your own.

    python examples/quickstart.py

The data is made on the spot from the shipped WordNet: the definition of a word is the text, the
part of the dictionary that it stands in is the label. Nothing is downloaded; the graph needs the
extra pyg.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

import shoal


def from_table(path: Path, folder: Path) -> Any:
    """A CSV file with the columns text and labels → a trained model in a folder, evaluated."""
    model = shoal.LabelModel()
    result = model.fit(path, out=folder, epochs=10)
    print(f"P@1 {result.test['P@1']:.1f} on rows held out; {result.size / 1e6:.1f} MB")
    return shoal.open(folder)  # what a later process begins with; or `shoal serve FOLDER`


def from_lists(texts: list[str], labels: list[str], asked: list[str]) -> Any:
    """Texts and the label (or the labels) of each → labels of other texts, with probabilities.

    With fewer than 2,000 texts the scores are cosines: too few are held out to learn from.
    """
    model = shoal.LabelModel()
    model.fit(texts, labels, epochs=10)
    for text, found in zip(asked, model.predict(asked, k=2), strict=True):
        print(text, *(f"{one.label} {one.score:.2f}" for one in found), sep=" | ")
    return model


def from_pyg(data: Any) -> Any:
    """A PyTorch Geometric ``Data`` → the classes of its nodes."""
    model = shoal.NodeModel(hidden=32, fanouts=(10, 5), batch_size=64)
    result = model.fit(data, epochs=10)
    print(f"accuracy {result.test['accuracy']:.1f} on nodes held out")
    print("node 3 is of class", model.predict(3)[0].label)
    return model


def own_loop(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> Any:
    """A network that a loop of one's own trains at batch size 64 → its rate for 512."""
    measured = shoal.spectrum(model, cross_entropy, loader)
    lr = optimizer.param_groups[0]["lr"]
    plan = shoal.rescale(measured, lr, batch_size=64, to=512, optimizer=optimizer)
    print(plan.explain())
    return plan


def main() -> None:
    """Make the data, and go each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=3000, help="of the table")
    asked = parser.parse_args()
    texts, labels = definitions(asked.rows)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "definitions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "labels"), *zip(texts, labels, strict=True)])
        from_table(path, Path(scratch) / "run")
    from_lists(texts, labels, ["a large wild cat", "someone who bakes bread"])
    if find_spec("torch_geometric") is not None:
        from_pyg(planted_graph(1000))
    own_loop(*trained_by_hand())


def definitions(n: int) -> tuple[list[str], list[str]]:
    """Definitions of WordNet in random order, and the part of the dictionary of each."""
    from shoal.data import wordnet

    synsets = wordnet.read()
    chosen = torch.randperm(len(synsets.texts), generator=torch.Generator().manual_seed(0))[:n]
    texts = [synsets.texts.contents[i] for i in chosen.tolist()]
    return texts, [wordnet.CLASS_NAMES[i] for i in synsets.files[chosen].tolist()]


def planted_graph(n: int) -> Any:
    """Nodes of four classes, most of whose neighbors are of their own class."""
    from torch_geometric.data import Data  # pyright: ignore[reportMissingImports]

    draw = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4
    readers = torch.arange(n).repeat_interleave(8)
    others = torch.randint(n // 4, readers.shape, generator=draw) * 4
    strays = (torch.rand(readers.shape, generator=draw) < 0.3) * torch.randint(
        4, readers.shape, generator=draw
    )
    sources = (others + (y[readers] + strays) % 4) % n
    x = one_hot(y, 4).float() + torch.randn(n, 4, generator=draw)
    return Data(x=x, y=y, edge_index=torch.stack([sources, readers]))


def trained_by_hand() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
    """A small network after one epoch of plain torch, its optimizer and its loader."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    inputs = torch.randn(4096, 32, generator=draw)
    targets = (torch.tanh(inputs @ torch.randn(32, 10, generator=draw))).argmax(1)
    loader = DataLoader(TensorDataset(inputs, targets), 64, shuffle=True, generator=draw)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch, classes in loader:
        optimizer.zero_grad()
        cross_entropy(model(batch), classes).backward()
        optimizer.step()
    return model, optimizer, loader


if __name__ == "__main__":
    main()
