"""NGAME's published recipe, bent from the page of the label task (shoal/tasks/labels.py).

    python examples/ngame.py --epochs 30
    python examples/ngame.py data.csv --encoder distilbert-base-uncased --out runs/ngame

What differs from the page is what Dahiya et al., "NGAME" (WSDM 2023), published as configuration
for LF-AmazonTitles-131K: one encoder without field embeddings; clusters that grow from 2 to 512
examples, made every fifth epoch from embeddings that training steps left behind; triplets with the
hardest negatives of one positive; classifiers by triplets over cosines; and a decision tree over
cosines and classifiers. Learning rate and warm-up are the encoder's own. The 300 and 100 epochs
are theirs, too: WordNet needs fewer, and a bag on two cores takes half a minute per epoch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import shoal
from shoal.data.splits import validation_split

# When clusters of 2, 4, 8, … examples begin, as shares of the training: the published configuration
# halves the number of clusters at epochs 10, 20, 25, … of 300 for the encoder, and at 10, 15, … of
# 100 for the classifiers.
ENCODER_SHARES = (10 / 300, 20 / 300, 25 / 300, 50 / 300, 75 / 300, 1 / 3, 125 / 300, 0.5, 2 / 3)
CLASSIFIER_SHARES = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)
ALONE = (shoal.EncoderRanker(),)


@dataclass(frozen=True)
class Recipe:
    """The numbers of the published configuration.

    Attributes:
        encoder: how to begin the encoder.
        batch_size: 1,600 there, where clusters of 512 are cut apart; here they stay whole.
        cluster: examples per cluster in the end.
        epochs: of the encoder.
        classifier_epochs: of the classifiers.
        refresh_every: epochs between two clusterings.
        rankers: of which the decision tree reads the first two; more bring candidates.
        seed: of everything random.
        device: where to compute.
    """

    encoder: Any = shoal.BagEncoder(fields=False)  # noqa: RUF009
    batch_size: int = 1536
    cluster: int = 512
    epochs: int = 300
    classifier_epochs: int = 100
    refresh_every: int = 5
    rankers: Sequence[Any] = (shoal.EncoderRanker(), shoal.ClassifierRanker())
    seed: int = 0
    device: str = "cpu"

    def batches(self, epochs: int, shares: Sequence[float]) -> shoal.Clustered:
        """Random batches at first, then clusters that double until they are large."""
        sizes = tuple(curriculum(self.cluster, epochs, shares))
        return shoal.Clustered(self.batch_size, sizes, self.refresh_every, warm_epochs=0)


def curriculum(
    size: int, epochs: float, shares: Sequence[float] = ENCODER_SHARES
) -> list[tuple[int, int]]:
    """From which epoch on clusters have which size: doublings up to `size`.

    Args:
        size: the last one; halves of it come before, down to 2 or the last whole number.
        epochs: how long the training is.
        shares: of the training, after which the first, second, … size begins; sizes beyond them
            begin with the last.

    Returns:
        (epoch, size) pairs; where several begin in one epoch, the largest.

    Example:
        >>> curriculum(8, epochs=300.0)
        [(10, 2), (20, 4), (25, 8)]
        >>> curriculum(8, epochs=30.0)
        [(1, 2), (2, 4), (3, 8)]
    """
    sizes = [size]
    while sizes[0] % 2 == 0 and sizes[0] > 2:
        sizes.insert(0, sizes[0] // 2)
    starts = {}
    for i, each in enumerate(sizes):
        starts[math.ceil(shares[min(i, len(shares) - 1)] * epochs - 1e-9)] = each
    return sorted(starts.items())


def train(
    data: shoal.LabelData,
    learned: shoal.Examples,
    held_out: shoal.Examples,
    run: shoal.Run,
    recipe: Recipe,
    *,
    resume: bool = False,
    callbacks: Any = lambda stage: [shoal.ShowProgress(stage)],
) -> shoal.Predictor:
    """The recipe from data to a predictor; the arguments are those of the page's ``train``."""
    n, seed, on = len(learned), recipe.seed, None if recipe.device == "cpu" else recipe.device
    encoder, tokens = recipe.encoder.begin(
        learned.texts, data.labels, seed=seed, device=recipe.device, folder=run.folder / "tokens"
    )
    label_tokens, truth = tokens.span(n, tokens.n_rows), learned.labels

    # the encoder, on clusters of what its own steps left in the bank
    batches = recipe.batches(recipe.epochs, ENCODER_SHARES)
    seeds, bank = batches(n, seed), shoal.EmbeddingBank(n, encoder.dim)
    shortlist = shoal.ShortlistSampler(truth, 1)
    blocks = shoal.Chain(shortlist, shoal.Hop(tokens), partial(shoal.dst_then_src, offset=n))

    def observe(batch: shoal.Batch, outputs: Tensor) -> None:
        bank.write(batch.seeds, outputs[: len(batch.seeds)])

    def validate() -> dict[str, float]:
        now = shoal.Predictor(encoder, data.labels, label_tokens, ALONE)
        return shoal.validate(partial(now.rank, held_out.texts), held_out)

    job = shoal.Job(
        shoal.Objective(encoder.module, shoal.in_batch(shoal.hardest_triplets)),
        shoal.Loader(seeds, blocks, encoder.table, seed=seed, device=on),
        encoder.optimizer,
        warmup=recipe.encoder.warmup,
        seed=seed,
        refresh=lambda epoch: shoal.refreshed(seeds, lambda: bank.rows, epoch, batches),
        observe=observe,
        evaluate=validate,
        evaluate_every=5,
        state={"batch_sampler": seeds, "bank": bank},
    )
    budget = shoal.Budget(epochs=recipe.epochs)
    progress = shoal.fit(job, budget, run, resume=resume, callbacks=callbacks("encoder"))
    encoder = encoder.load_trained(run.load_model())
    predictor = shoal.Predictor(encoder, data.labels, label_tokens, ALONE)
    if progress.stopped == "interrupt":
        return predictor

    # classifiers on the frozen encoder: lowest positives against hardest negatives, by cosine
    classifiers = shoal.Classifiers(
        recipe.classifier_epochs, lr=0.001, loss=shoal.lowest_triplets, label_texts=False
    )
    weights, progress = classifiers.fit(
        encoder.embed(tokens.span(0, n)),
        predictor.label_embeddings,
        truth,
        recipe.batches(recipe.classifier_epochs, CLASSIFIER_SHARES),
        held_out=(predictor.encode(held_out.texts), held_out),
        evaluate_every=5,
        warmup=recipe.encoder.warmup,
        seed=seed,
        device=on,
        run=run.stage("classifiers", {"encoder_steps": progress.step}, resume),
        resume=resume,
        callbacks=callbacks("classifiers"),
    )
    if progress.stopped == "interrupt":
        return predictor

    # a tree of depth 7 over both scores and how rare a label is
    combiner = shoal.TreeCombiner()
    seen = shoal.evidence(predictor, recipe.rankers, learned, held_out, weights, seed)
    return shoal.fit_ensemble(predictor, recipe.rankers, combiner, seen, data.train, weights, seed)


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", default="wordnet", help="texts with labels")
    parser.add_argument("--out", type=Path, default=Path("runs/ngame"), help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--encoder", default="bag", help="bag, or a Hugging Face encoder")
    parser.add_argument("--dim", type=int, default=256, help="width of a bag's vectors")
    parser.add_argument("--epochs", type=int, default=300, help="of the encoder")
    parser.add_argument("--classifier-epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=1536)
    parser.add_argument("--cluster-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    bag = asked.encoder == "bag"
    recipe = Recipe(
        encoder=shoal.BagEncoder(dim=asked.dim, fields=False)
        if bag
        else shoal.TransformerEncoder(asked.encoder),
        batch_size=asked.batch_size,
        cluster=asked.cluster_size,
        epochs=asked.epochs,
        classifier_epochs=asked.classifier_epochs,
        seed=asked.seed,
        device=asked.device,
    )
    data = shoal.load_labels(asked.source)
    learned, held_out = validation_split(data, 0.1, asked.seed)
    settings = {"source": data.name, "recipe": repr(recipe)}
    run = shoal.Run.open(asked.out) if asked.resume else shoal.Run.create(asked.out, settings)
    predictor = train(data, learned, held_out, run, recipe, resume=asked.resume)
    model = shoal.LabelModel(device=asked.device).with_predictor(predictor)
    model.save(run.folder)
    metrics = model.evaluate(data)
    print("  ".join(f"{name} {metrics[name]:.2f}" for name in ("P@1", "P@5", "PSP@5", "R@5")))


if __name__ == "__main__":
    main()
