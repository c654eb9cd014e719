"""Planted data: what it promises about its truth holds, exactly or within sampling error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.metrics import evaluate, inverse_propensity
from shoal.core.search import top_k
from shoal.data.nodes import NodeData
from tests.planted import one_hop_accuracy, planted_graph, planted_labels


def read_back(texts: list[str], words: Tensor) -> Tensor:
    """The bag of words that knows the true word vectors."""
    return torch.stack([words[[int(w[1:]) for w in text.split()]].mean(0) for text in texts])


def shown_class(data: NodeData) -> Tensor:
    """The class whose feature each node shows."""
    return data.features.indices // (data.features.n_cols // len(data.class_names))


def test_true_vectors_rank_perfectly() -> None:
    """Searching with the planted vectors gives P@2 = 100: labels are the two of largest score."""
    data = planted_labels(n=200, n_labels=64, seed=1)
    _, top = top_k(data.test_rows, data.label_rows, 2)
    weight = inverse_propensity(data.train.labels)
    metrics = evaluate(top, data.test.labels, weight, (1, 2))
    assert metrics["P@1"] == metrics["P@2"] == metrics["R@2"] == 100.0
    assert len(data.train) == 200 and len(data.test) == 50


def test_hard_negatives_stand_in_the_cluster() -> None:
    """Most of a point's ten nearest labels are of its best label's cluster of eight or near it.

    Chance would put 8 / 256 of them there.
    """
    data = planted_labels(n=100, n_labels=256, seed=2)
    _, top = top_k(data.train_rows, data.label_rows, 8)
    same = (top // 8 == top[:, :1] // 8).float().mean()
    assert same > 0.5


def test_a_bag_of_words_reads_the_truth_and_noise_blurs_it() -> None:
    """With the true word vectors P@1 is far above chance (2 / 64), and falls as words are lost."""
    scores = []
    for noise in (0.0, 0.5, 1.0):
        data = planted_labels(n=200, n_labels=64, noise=noise, seed=3)
        queries = read_back(data.test.texts.all(), data.word_rows)
        keys = read_back(data.labels.all(), data.word_rows)
        _, top = top_k(queries, torch.nn.functional.normalize(keys, dim=1), 1)
        weight = inverse_propensity(data.train.labels)
        scores.append(evaluate(top, data.test.labels, weight, (1,))["P@1"])
    assert scores[0] > 70 and scores[0] > scores[1] > scores[2] and scores[2] < 20


def test_a_seed_fixes_everything_and_leaves_global_state() -> None:
    """Same seed, same data; another seed, other data; torch's own generator is not touched."""
    state = torch.get_rng_state()
    first, again, other = (planted_labels(40, 16, noise=0.3, seed=s) for s in (5, 5, 6))
    assert first.train.texts.all() == again.train.texts.all() != other.train.texts.all()
    assert torch.equal(first.label_rows, again.label_rows)
    one, two = planted_graph(100, seed=5), planted_graph(100, seed=5)
    assert torch.equal(one.graph.indices, two.graph.indices)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_does_not_move_the_truth() -> None:
    """Vectors and labels of a seed are the same whatever the noise."""
    clear, noisy = planted_labels(40, 16), planted_labels(40, 16, noise=0.9)
    assert torch.equal(clear.train.labels.indices, noisy.train.labels.indices)
    assert torch.equal(clear.test_rows, noisy.test_rows)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_graph_has_the_promised_homophily_and_clarity(classes: int) -> None:
    """Shares of same-class edges and of nodes that show their class: within 4 standard errors."""
    data = planted_graph(6000, classes, degree=4, homophily=0.7, dim=30, seed=classes)
    row, col = data.graph.row_ids(), data.graph.indices
    assert not bool((row == col).any()) and data.graph.degrees().unique().tolist() == [4]
    same = (data.target[row] == data.target[col]).double().mean().item()
    assert same == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 24000))
    clear = (shown_class(data) == data.target).double().mean().item()
    assert clear == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / 6000))
    others = data.target[col][data.target[row] != data.target[col]].bincount(minlength=classes)
    assert others.max() < 1.2 * others.min()


@pytest.mark.parametrize(("degree", "homophily", "clarity"), [(5, 0.8, 0.6), (4, 0.1, 0.7)])
def test_the_best_rule_reaches_the_closed_form(degree, homophily, clarity) -> None:
    """The log-odds vote over a node and its neighbors is right as often as one_hop_accuracy says.

    The bound is not vacuous: it lies above the node alone by more than the tolerance.
    """
    n = 20000
    data = planted_graph(n, 2, degree, homophily, 8, seed=7, clarity=clarity)
    sign = 2.0 * shown_class(data).double() - 1
    r = homophily * clarity + (1 - homophily) * (1 - clarity)
    votes = sign[data.graph.indices].view(n, degree).sum(1)
    score = sign * math.log(clarity / (1 - clarity)) + votes * math.log(r / (1 - r))
    right = ((score > 0) == (data.target == 1)).double()
    right[score.abs() < 1e-9] = 0.5
    bound = one_hop_accuracy(degree, homophily, clarity)
    tolerance = 4 * math.sqrt(0.25 / n)
    assert right.mean().item() == pytest.approx(bound, abs=tolerance)
    assert bound > clarity + tolerance


def test_one_hop_accuracy_in_the_limits() -> None:
    """Clear neighbors of one's own class decide; features that tell nothing leave one half."""
    assert one_hop_accuracy(1, 1.0, 0.9) == pytest.approx(0.9)
    assert one_hop_accuracy(4, 0.9, 0.5) == 0.5
    assert one_hop_accuracy(201, 1.0, 0.6) > 0.99
    assert one_hop_accuracy(3, 0.9, 0.7) == pytest.approx(one_hop_accuracy(3, 0.1, 0.7))


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Counts that do not divide and shares that are none: one line each."""
    with pytest.raises(InputError, match="n: expected a whole number"):
        planted_labels(0, 8)
    with pytest.raises(InputError, match="n_labels: expected at least 2"):
        planted_labels(8, 1)
    with pytest.raises(InputError, match="noise: expected a share"):
        planted_labels(8, 8, noise=1.5)
    with pytest.raises(InputError, match="n: expected a multiple of 3 classes"):
        planted_graph(100, 3, dim=3)
    with pytest.raises(InputError, match="dim: expected a multiple of 2 classes"):
        planted_graph(100, 2, dim=3)
    with pytest.raises(InputError, match="homophily, clarity: expected shares"):
        planted_graph(100, homophily=2.0)
    with pytest.raises(InputError, match="classes: expected at least 2"):
        planted_graph(100, 1)
