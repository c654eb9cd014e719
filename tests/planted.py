"""Data with a known truth, small enough to train on in seconds: labels on a sphere, and a graph.

*Labels.* Label vectors z_l lie in clusters on the unit sphere; a point x is a label's vector,
blurred, and its labels are the two with the largest true score x·z_l, so hard negatives and the
best ranking are known exactly. A text spells a vector: the words w of largest x·v_w, which a bag of
words reads back, since the mean of the v_w near x points to x.

*Graph.* A directed block model with features (after Deshpande, Montanari, Mossel, Sen, "Contextual
Stochastic Block Models", NeurIPS 2018): each of a node's neighbors is of its own class with
probability h, and each node shows its class with probability q; :func:`one_hop_accuracy` is the
best that can be done for two classes with a node and its neighbors in sight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.data.nodes import NodeData
from shoal.data.splits import random_split
from shoal.data.texts import Examples, LabelData, Texts, no_pairs

# Choices of this module, tried out: labels of one cluster are each other's hard negatives, a point
# stays nearest its own label, and 12 words leave the neighborhood of a vector recognizable.
_LABELS_A_CLUSTER = 8
_LABEL_SPREAD, _POINT_SPREAD = 0.7, 0.3
_LABELS_A_POINT = 2
_WORDS_A_DIMENSION, _WORDS_A_TEXT = 16, 12


@dataclass(frozen=True, eq=False)
class PlantedLabels(LabelData):
    """A label data set together with the vectors it was made from, all of unit length.

    Attributes:
        train_rows: of the training points, ``[n, d]``.
        test_rows: of the test points, ``[n_test, d]``.
        label_rows: of the labels, ``[l, d]``.
        word_rows: of the words "w0", "w1", …, ``[words, d]``.
    """

    train_rows: Float[Tensor, "n d"]
    test_rows: Float[Tensor, "n_test d"]
    label_rows: Float[Tensor, "l d"]
    word_rows: Float[Tensor, "words d"]


def planted_labels(
    n: int, n_labels: int, dim: int = 16, noise: float = 0.0, seed: int = 0
) -> PlantedLabels:
    """Make points, labels and texts whose true scores are known.

    Args:
        n: training points; there are n / 4 test points besides, at least one.
        n_labels: labels, at least 2; 8 stand in a cluster.
        dim: width of the vectors.
        noise: the share of words that are drawn at random instead of spelling their vector, in
            [0, 1]. Labels follow from the vectors, so noise blurs what is seen, never the truth.
        seed: of every draw.

    Returns:
        the data; ``train.labels`` holds for each row of `train_rows` its two labels of largest
        inner product with `label_rows`.

    Raises:
        InputError: if a count or the noise is out of range.

    Example:
        >>> data = planted_labels(n=40, n_labels=16)
        >>> best = (data.test_rows @ data.label_rows.T).topk(2).indices.sort().values
        >>> best.flatten().tolist() == data.test.labels.indices.tolist()
        True
    """
    for name, count in (("n", n), ("dim", dim)):
        expect_positive(name, count)
    expect(n_labels >= _LABELS_A_POINT, "n_labels", "at least 2", n_labels, "raise it")
    expect(0 <= noise <= 1, "noise", "a share in [0, 1]", noise, "try 0.2")
    generator = torch.Generator().manual_seed(seed)
    centers = _blur(torch.zeros(-(-n_labels // _LABELS_A_CLUSTER), dim), 1.0, generator)
    cluster = torch.arange(n_labels) // _LABELS_A_CLUSTER
    labels = _blur(centers[cluster], _LABEL_SPREAD, generator)
    words = _blur(torch.zeros(_WORDS_A_DIMENSION * dim, dim), 1.0, generator)
    own = torch.randint(n_labels, (n + max(n // 4, 1),), generator=generator)
    rows = _blur(labels[own], _POINT_SPREAD, generator)
    train, test = rows[:n], rows[n:]
    return PlantedLabels(
        "planted",
        _points("train", train, labels, _spell(train, words, noise, generator)),
        _points("test", test, labels, _spell(test, words, noise, generator)),
        _texts("label", _spell(labels, words, noise, generator)),
        train,
        test,
        labels,
        words,
    )


def planted_graph(
    n: int,
    classes: int = 2,
    degree: int = 5,
    homophily: float = 0.8,
    dim: int = 16,
    seed: int = 0,
    *,
    clarity: float = 0.6,
) -> NodeData:
    """Make a graph on which the best possible accuracy is known.

    Every node reads `degree` neighbors, drawn with repeats and never itself, and shows one of `dim`
    features, which are dealt out evenly among the classes. Seen alone, a node's class is guessed
    right with probability `clarity`; with its neighbors and two classes, with probability
    :func:`one_hop_accuracy`, a bound for one layer only: neighbors of neighbors tell more.

    Args:
        n: nodes, a multiple of `classes`, at least two a class.
        classes: how many, at least 2, equally large.
        degree: neighbors a node.
        homophily: probability that a neighbor is of the node's class, in [0, 1]; otherwise it is of
            any other with equal probability.
        dim: features, a multiple of `classes`.
        seed: of every draw.
        clarity: probability that a node shows a feature of its own class, in [0, 1]; otherwise of
            any other with equal probability.

    Returns:
        the graph, split 60/20/20 at random.

    Raises:
        InputError: if a count is not a multiple of `classes` or a probability is none.

    Example:
        >>> data = planted_graph(n=100, classes=4, degree=3)
        >>> data.graph, data.features.shape, data.target.bincount().tolist()
        (Csr(100 x 100, nnz=300, torch.int64), (100, 16), [25, 25, 25, 25])
    """
    _expect_blocks(n, classes, degree, dim, homophily, clarity)
    generator = torch.Generator().manual_seed(seed)
    # not randperm: random_split would draw the same one, and the test nodes be of one class
    members = torch.rand(n, generator=generator).argsort().view(classes, -1)
    target = torch.empty(n, dtype=torch.int64)
    target[members] = torch.arange(classes)[:, None]
    shown = _same_or_other(target, clarity, classes, generator)
    feature = shown * (dim // classes) + torch.randint(dim // classes, (n,), generator=generator)
    ids = torch.arange(n)
    rest, test = random_split(n, 0.2, seed)
    kept, valid = random_split(len(rest), 0.25, seed + 1)
    return NodeData(
        "planted-graph",
        _neighbors(members, degree, homophily, generator),
        Csr.from_coo(ids, feature, (n, dim), torch.ones(n)),
        target,
        rest[kept],
        rest[valid],
        test,
        tuple(f"class {c}" for c in range(classes)),
    )


def one_hop_accuracy(degree: int, homophily: float, clarity: float) -> float:
    """The best accuracy on two planted classes of any rule that sees a node and its neighbors.

    Given its class y, a node shows y with probability q (clarity), and each neighbor does with
    probability r = h q + (1 - h)(1 - q), independently. The rule adds log q/(1-q) for the class
    that the node shows and log r/(1-r) for each that a neighbor shows, and takes the larger sum. So
    the accuracy is a sum over whether the node shows y and how many of its neighbors do, of which
    there are Binomial(degree, r).

    Args:
        degree: neighbors a node.
        homophily: h, in [0, 1].
        clarity: q, in (0, 1).

    Returns:
        a share in [1/2, 1].

    Example:
        >>> one_hop_accuracy(degree=3, homophily=0.5, clarity=0.6)  # neighbors tell nothing
        0.6
    """
    r = homophily * clarity + (1 - homophily) * (1 - clarity)
    total = 0.0
    for hits in range(degree + 1):
        ways = math.comb(degree, hits)
        for q in (clarity, 1 - clarity):
            # The rule is right for whichever class is the more likely; each has probability 1/2.
            for_y = q * r**hits * (1 - r) ** (degree - hits)
            against = (1 - q) * (1 - r) ** hits * r ** (degree - hits)
            total += ways * max(for_y, against) / 2
    return round(total, 12)


def _blur(
    rows: Float[Tensor, "n d"], spread: float, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Unit rows: `rows` plus a random vector of expected length `spread`."""
    noise = torch.randn(rows.shape, generator=generator) / math.sqrt(rows.shape[1])
    return torch.nn.functional.normalize(rows + spread * noise, dim=1)


def _spell(
    rows: Float[Tensor, "n d"],
    words: Float[Tensor, "words d"],
    noise: float,
    generator: torch.Generator,
) -> list[str]:
    """The words nearest to each row, a share of them replaced by any."""
    ids = (rows @ words.T).topk(min(_WORDS_A_TEXT, len(words)), dim=1).indices
    other = torch.randint(len(words), ids.shape, generator=generator)
    lost = torch.rand(ids.shape, generator=generator) < noise
    return [" ".join(f"w{i}" for i in row) for row in torch.where(lost, other, ids).tolist()]


def _points(
    name: str, rows: Float[Tensor, "n d"], labels: Float[Tensor, "l d"], titles: list[str]
) -> Examples:
    n, n_labels = len(rows), len(labels)
    best = (rows @ labels.T).topk(_LABELS_A_POINT, dim=1).indices.sort(dim=1).values
    indptr = torch.arange(n + 1) * _LABELS_A_POINT
    return Examples(
        _texts(name, titles), Csr(indptr, best.flatten(), n_labels), no_pairs(n, n_labels)
    )


def _texts(name: str, titles: list[str]) -> Texts:
    return Texts([f"{name}{i}" for i in range(len(titles))], titles, [""] * len(titles))


def _same_or_other(
    target: Int[Tensor, " n"], same: float, classes: int, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """Each class itself with probability `same`, else any other with equal probability."""
    shift = torch.randint(1, classes, target.shape, generator=generator)
    kept = torch.rand(target.shape, generator=generator) < same
    return torch.where(kept, target, (target + shift) % classes)


def _neighbors(
    members: Int[Tensor, "classes per"],
    degree: int,
    homophily: float,
    generator: torch.Generator,
) -> Csr:
    """Draw `degree` neighbors a node: a class by homophily, then any of its members but oneself."""
    classes, per = members.shape
    own = torch.arange(classes).repeat_interleave(per * degree)
    place = torch.arange(per).repeat_interleave(degree).repeat(classes)
    chosen = _same_or_other(own, homophily, classes, generator)
    # A step of 1 … per - 1 around the circle of one's own class never ends at oneself.
    step = torch.randint(1, per, own.shape, generator=generator)
    neighbor = members[chosen, (place + step) % per]
    return Csr.from_coo(members[own, place], neighbor, (members.numel(), members.numel()))


def _expect_blocks(
    n: int, classes: int, degree: int, dim: int, homophily: float, clarity: float
) -> None:
    expect_positive("degree", degree)
    expect(classes >= 2, "classes", "at least 2", classes, "raise it")
    good = n >= 2 * classes and n % classes == 0
    expect(good, "n", f"a multiple of {classes} classes, two or more each", n, "round it")
    good = dim >= classes and dim % classes == 0
    expect(good, "dim", f"a multiple of {classes} classes", dim, "round it")
    good = 0 <= homophily <= 1 and 0 <= clarity <= 1
    expect(good, "homophily, clarity", "shares in [0, 1]", (homophily, clarity), "try 0.8, 0.6")
