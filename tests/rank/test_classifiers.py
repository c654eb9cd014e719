"""Classifiers: loss-skip in chunks moves them as autograd over all logits does."""

from __future__ import annotations

import dataclasses
import math
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from shoal.core.block import Batch, Block
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.losses import decoupled_softmax
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdam, RowSGD
from shoal.rank.classifiers import (
    AllLabels,
    NoGather,
    classifier_job,
    with_label_examples,
)
from shoal.rank.loss_skip import one_vs_all_loss
from shoal.rank.one_vs_all import OneVsAll
from shoal.sample.expand import ShortlistSampler
from shoal.sample.seeds import RandomBatchSampler
from shoal.training.job import Budget, Job
from shoal.training.loop import fit
from shoal.training.run import Run

KINDS = ("decoupled", "softmax", "binary")
TAU = 0.5


def block_of(positives: Tensor, src: Tensor | None = None) -> Block:
    """The block of a dense 0/1 matrix over labels `src`, all of them by default."""
    csr = Csr.from_dense(positives)
    b, s = positives.shape
    src = torch.arange(s) if src is None else src
    return Block(torch.arange(b), src, csr.indptr, csr.indices, torch.arange(csr.nnz))


def dense_loss(kind: str, scores: Tensor, positives: Tensor, n_labels: int) -> Tensor:
    """The oracle: each loss as its definition has it, point by point, all logits in memory."""
    losses = []
    for z, y in zip(scores / TAU, positives, strict=True):
        if kind == "binary":
            shifted = z - math.log(n_labels)
            losses.append((functional.softplus(shifted) - y * shifted).sum())
        elif kind == "softmax" and bool(y.any()):
            losses.append((z.logsumexp(0) - z[y]).mean())
        elif kind == "decoupled" and bool(y.any()):
            own = [torch.cat([p[None], z[~y]]).logsumexp(0) - p for p in z[y]]
            losses.append(torch.stack(own).mean())
    return torch.stack(losses).mean() if losses else scores.sum() * 0


def problem(b: int = 6, n: int = 23, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, classifiers, positives in float64; a point without labels, one with all."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, d, generator=generator, dtype=torch.float64)
    w = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.rand(b, n, generator=generator) < 0.15
    y[1], y[2] = False, True
    return x, w, y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 23, 100, None])
def test_three_steps_equal_dense_autograd_and_adam(kind, chunk) -> None:
    """Loss, gradient of x and classifiers over three steps of Adam: equal in float64.

    The chunk only bounds memory: it need not divide the labels. torch.optim.Adam steps the oracle.
    """
    x, w, y = problem()
    classifiers = OneVsAll.of(w, RowAdam(0.1), kind, temperature=TAU, chunk=chunk)
    dense = w.clone().requires_grad_()
    adam = torch.optim.Adam([dense], 0.1)
    for step in range(3):
        ours, theirs = ((x + step).requires_grad_() for _ in range(2))
        loss = one_vs_all_loss(classifiers, ours, block_of(y))
        loss.backward()
        expected = dense_loss(kind, theirs @ dense.T, y, len(w))
        adam.zero_grad()
        expected.backward()
        adam.step()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert theirs.grad is not None and bool((theirs.grad != 0).any())
    torch.testing.assert_close(classifiers.weights, dense.detach())
    assert not torch.allclose(classifiers.weights, w)


@settings(max_examples=30)
@given(st.sampled_from(KINDS), st.integers(0, 30), st.integers(1, 9), st.integers(1, 30))
def test_any_shape_equals_the_oracle(kind, seed, b, n) -> None:
    """Whatever the shape, also with no or only positives: one step of SGD agrees."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (b, n))
    y = torch.rand(b, n, generator=generator) < (seed % 3) / 2
    classifiers = OneVsAll.of(w, RowSGD(1.0), kind, temperature=TAU, chunk=4)
    dense, ours, theirs = w.clone().requires_grad_(), x.requires_grad_(), x.clone()
    loss = one_vs_all_loss(classifiers, ours, block_of(y))
    loss.backward()
    expected = dense_loss(kind, theirs @ dense.T, y, n)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert dense.grad is not None
    torch.testing.assert_close(classifiers.weights, (dense - dense.grad).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_a_shortlist_moves_its_labels_only(kind) -> None:
    """Labels in any order, consecutive ids or not: theirs move as the oracle's, others stay."""
    x, w, y = problem()
    src = torch.tensor([9, 3, 4, 5, 6, 20, 1])
    classifiers = OneVsAll.of(w, RowSGD(1.0), kind, temperature=TAU, chunk=2)
    dense = w.clone().requires_grad_()
    one_vs_all_loss(classifiers, x.clone().requires_grad_(), block_of(y[:, src], src)).backward()
    dense_loss(kind, x @ dense[src].T, y[:, src], len(w)).backward()
    assert dense.grad is not None
    torch.testing.assert_close(classifiers.weights, (dense - dense.grad).detach())
    moved = (classifiers.weights != w).any(1).nonzero().flatten().tolist()
    assert moved == sorted(src.tolist())


def test_decoupled_is_the_loss_of_shortlists() -> None:
    """The same number as decoupled_softmax, which is differentiated by autograd."""
    x, w, y = problem()
    classifiers = OneVsAll.of(w.float(), RowSGD(1.0), temperature=TAU)
    expected = decoupled_softmax(x.float() @ w.float().T, block_of(y), TAU)
    torch.testing.assert_close(one_vs_all_loss(classifiers, x.float(), block_of(y)), expected)


def test_evaluating_moves_nothing_and_a_factor_scales() -> None:
    """Without backward() classifiers stay; (loss / 4).backward() takes a quarter of SGD's step."""
    x, w, y = problem()
    classifiers, quarter = (OneVsAll.of(w, RowSGD(1.0), temperature=TAU) for _ in "ab")
    leaf = x.clone().requires_grad_()
    loss = one_vs_all_loss(classifiers, leaf, block_of(y))
    assert torch.equal(classifiers.weights, w)
    loss.backward()
    (one_vs_all_loss(quarter, leaf, block_of(y)) / 4).backward()
    torch.testing.assert_close(quarter.weights - w, (classifiers.weights - w) / 4)


def test_no_point_or_no_label() -> None:
    """An empty batch and an empty shortlist give zero and move nothing."""
    _, w, _ = problem()
    for kind in KINDS:
        classifiers = OneVsAll.of(w, RowSGD(1.0), kind)
        for b, s in ((0, 23), (3, 0)):
            x = torch.zeros(b, 5, dtype=torch.float64).requires_grad_()
            y = torch.zeros(b, s, dtype=torch.bool)
            loss = one_vs_all_loss(classifiers, x, block_of(y))
            loss.backward()
            assert loss.item() == 0
        assert torch.equal(classifiers.weights, w)


def test_bfloat16_products_stay_close() -> None:
    """Products in bfloat16 err by no more than bfloat16 inputs explain; rows stay float32."""
    x, w, y = problem(b=20, n=50, d=64)
    x, w = (functional.normalize(part, dim=1).float() for part in (x, w))
    exact, coarse = (
        OneVsAll.of(w, RowSGD(1.0), temperature=TAU, dtype=t) for t in (None, torch.bfloat16)
    )
    moved = []
    for classifiers in (exact, coarse):
        leaf = x.clone().requires_grad_()
        one_vs_all_loss(classifiers, leaf, block_of(y)).backward()
        assert leaf.grad is not None
        moved.append(leaf.grad)
    assert coarse.weights.dtype == moved[1].dtype == torch.float32
    for a, b in ((moved[0], moved[1]), (exact.weights - w, coarse.weights - w)):
        error = (a - b).norm() / a.norm()
        assert 0 < error < 0.02


def test_an_encoder_behind_them_is_trained() -> None:
    """Gradients flow on into what made x: a linear encoder and classifiers fit random labels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 8, generator=generator)
    y = torch.eye(40, dtype=torch.bool)
    encoder = torch.nn.Linear(8, 16)
    classifiers = OneVsAll.of(
        torch.randn(40, 16, generator=generator), RowAdam(0.05), temperature=1.0
    )
    adam = torch.optim.Adam(encoder.parameters(), 0.05)
    losses = []
    for _ in range(30):
        adam.zero_grad()
        loss = one_vs_all_loss(classifiers, encoder(features), block_of(y))
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 2 < losses[0]
    _, best = classifiers.rank(encoder(features).detach(), k=1)
    assert (best[:, 0] == torch.arange(40)).float().mean() > 0.9


def fixed(mode: str) -> tuple[OneVsAll, Job]:
    """A small job on fixed embeddings, over all labels or shortlists."""
    generator = torch.Generator().manual_seed(3)
    labels = Csr.from_lists([[i % 10, (3 * i + 1) % 11] for i in range(30)], 12).coalesce()
    x = torch.randn(30, 4, generator=generator)
    classifiers = OneVsAll.of(torch.randn(12, 4, generator=generator), RowAdam(0.05), chunk=5)
    blocks = AllLabels(labels) if mode == "all" else ShortlistSampler(labels, 2)
    return classifiers, classifier_job(
        classifiers, x, RandomBatchSampler(30, 8, seed=1), blocks, warmup=2
    )


def interrupted(job: Job, step: int) -> Job:
    """The job, with a Ctrl-C during its step number `step`."""
    count = 0

    def observe(batch: Batch, outputs: Tensor) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)

    return dataclasses.replace(job, observe=observe)


@pytest.mark.parametrize("mode", ["all", "shortlist"])
def test_fit_trains_classifiers_and_resumes_them(mode, tmp_path) -> None:
    """Stopped after 5 of 9 steps and resumed: the same classifiers as the uninterrupted run's."""
    whole, job = fixed(mode)
    begin = whole.weights.clone()
    fit(job, Budget(steps=9))
    assert bool((whole.weights != begin).any())
    run = Run.create(tmp_path / "run", {})
    part, job = fixed(mode)
    stopped = fit(interrupted(job, 5), Budget(steps=9), run)
    assert (stopped.stopped, stopped.step) == ("interrupt", 5)
    again, job = fixed(mode)
    progress = fit(job, Budget(steps=9), run, resume=True)
    assert progress.step == 9 and not torch.equal(part.weights, whole.weights)
    torch.testing.assert_close(again.weights, whole.weights, rtol=0, atol=0)


def test_the_loader_gathers_nothing() -> None:
    """An empty input hop stands before the labels'."""
    _, job = fixed("all")
    batch = next(iter(job.loader))
    assert batch.src.shape == (0, 4) and len(batch.blocks) == 2
    assert len(batch.seeds) == 8 and len(batch.blocks[-1].src) == 12
    empty, block = NoGather(AllLabels(Csr.from_lists([[1]], 2)))(
        torch.tensor([0]), torch.Generator()
    )
    assert empty.src.numel() == 0 and block.mask().tolist() == [[False, True]]


def test_label_examples_keep_values() -> None:
    """Each label's own text is a further example with that label, of relevance one."""
    graded = Csr.from_lists([[1], [0]], 2).with_values(torch.tensor([0.5, 2.0]))
    dense = with_label_examples(graded).to_dense()
    assert dense.tolist() == [[0.0, 0.5], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Settings out of range, rows that do not learn, embeddings that do not fit: one line each."""
    w = torch.ones(3, 2)
    with pytest.raises(InputError, match="kind: expected decoupled, softmax or binary, got max"):
        OneVsAll.of(w, RowSGD(1.0), "max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="temperature: expected a number above 0"):
        OneVsAll.of(w, RowSGD(1.0), temperature=0.0)
    with pytest.raises(InputError, match="chunk: expected a whole number"):
        OneVsAll.of(w, RowSGD(1.0), chunk=0)
    with pytest.raises(InputError, match="table: expected an optimizer"):
        OneVsAll(unified(w))
    with pytest.raises(InputError, match="label_rows: expected finite rows"):
        OneVsAll.of(w * torch.nan, RowSGD(1.0))
    classifiers = OneVsAll.of(w, RowSGD(1.0))
    with pytest.raises(
        InputError, match=r"x: expected one embedding per point of the block, \(1, 2"
    ):
        one_vs_all_loss(classifiers, torch.ones(2, 2), block_of(torch.ones(1, 3) > 0))
    with pytest.raises(InputError, match=r"x: expected rows of 2, got \(4, 3\)"):
        classifier_job(classifiers, torch.ones(4, 3), [[0]], AllLabels(Csr.from_lists([[0]], 3)))
    with pytest.raises(InputError, match="dropout: expected a share"):
        classifier_job(
            classifiers, torch.ones(1, 2), [[0]], AllLabels(Csr.from_lists([[0]], 3)), dropout=1.0
        )
