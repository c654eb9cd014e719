"""``LabelModel``: for a text, the labels that fit it, among thousands to millions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# registered when they are imported: encoders and combiners that a folder may name
import shoal.rank.tree  # noqa: F401
import shoal.text.transformer  # noqa: F401
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail, naming
from shoal.core.search import Search, top_k
from shoal.core.state import integers
from shoal.data import load
from shoal.data.meant import expect_learnable
from shoal.data.splits import Fold, digests, folds
from shoal.data.texts import Examples, LabelData, Texts, as_texts, label_data
from shoal.models import base
from shoal.models.base import Fitting, Result, resolve_device, resolve_precision
from shoal.models.card import write_export
from shoal.models.hub import OnHub
from shoal.models.notebook import Answers, model_table
from shoal.rank.calibration import RULES, Rule
from shoal.rank.classifiers import Classifiers
from shoal.rank.ensemble import NetworkCombiner
from shoal.rank.evaluate import evaluate, first_columns
from shoal.rank.predictor import Predictor
from shoal.rank.rankers import RANKERS
from shoal.tasks.labels import ENOUGH, Parts, train
from shoal.text.bag import BagEncoder
from shoal.text.encoder import Exported
from shoal.training.gradients import Gradients

_log = logging.getLogger("shoal")


class LabelModel(OnHub):
    """Texts in, labels out: an encoder, classifiers and other rankers, combined.

    Every part is an argument, and the default is what measured best (docs/LOG.md).

    Args:
        encoder: how to begin the encoder: ``shoal.BagEncoder(…)``, ``shoal.TransformerEncoder(name,
            …)``, the encoder of an opened model to go on with, or one of your own.
        batches: ``shoal.Clustered(…)``, ``shoal.Random(…)`` or a function (number of examples,
            seed) → batch sampler.
        loss: a function of a batch's scores and its shortlist block → scalar; by default
            :func:`shoal.decoupled_softmax` at temperature 0.1.
        positives: labels drawn per example for a batch.
        classifiers: trained after the encoder; None for none.
        rankers: find labels; without a combiner, the first of them alone.
        combiner: learns on held-out examples what the rankers are worth; None for none.
        search: finds nearest keys: :func:`shoal.top_k` exactly, ``shoal.HnswSearch(folder)``
            approximately.
        step: makes a step rule from the training job, such as ``shoal.spectral_step``; None follows
            the schedule.
        gradients: how the gradient of a step is made: ``shoal.Gradients(…)``.
        seed: of everything random.
        device: where to compute: auto (the strongest of cuda, mps, cpu that works) or a name.
        precision: of the encoder's training: auto (bfloat16 where a CUDA device has it), float32 or
            bfloat16.

    Example:
        >>> texts = [f"{color} {thing}" for color in ("red", "blue") for thing in ("mug", "hat")]
        >>> model = LabelModel()
        >>> result = model.fit(texts * 4, [text.split()[0] for text in texts] * 4, valid=0)
        >>> [prediction.label for prediction in model.predict("a red scarf", k=1)]
        ['red']
    """

    def __init__(
        self,
        *,
        encoder: Any = BagEncoder(),
        batches: Callable[[int, int], Any] | None = None,
        loss: Callable[..., Tensor] | None = None,
        positives: int = 2,
        classifiers: Any | None = Classifiers(),
        rankers: Sequence[Any] = RANKERS,
        combiner: Any | None = NetworkCombiner(),
        search: Search = top_k,
        step: Callable[[Any], Any] | None = None,
        gradients: Any | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        expect_positive("positives", positives)
        _expect_method("encoder", encoder, "begin", "pass shoal.BagEncoder()")
        for name, given in (("classifiers", classifiers), ("combiner", combiner)):
            if given is not None:
                _expect_method(name, given, "fit", "leave it out, or pass None for none")
        for name, given in (("batches", batches), ("loss", loss), ("step", step)):
            good = given is None or callable(given)
            expect(good, name, "a function", given, "leave it out for the default")
        expect(len(rankers) > 0, "rankers", "at least one", "none", "pass [shoal.EncoderRanker()]")
        kinds = [base.plain(ranker) for ranker in rankers]
        twice = next((kind for i, kind in enumerate(kinds) if kind in kinds[:i]), None)
        got = twice["class"] if isinstance(twice, dict) else twice
        expect(twice is None, "rankers", "each once", f"{got} twice", "leave one of them out")
        expect(seed >= 0, "seed", "a whole number of at least 0", seed, "drop the sign")
        self.device = resolve_device(device)
        if gradients is None:
            gradients = Gradients(precision=resolve_precision(precision, self.device))
        own_loss = {} if loss is None else {"loss": loss}
        self.parts = Parts(
            encoder=encoder,
            batches=batches,
            positives=positives,
            gradients=gradients,
            step=step,
            classifiers=classifiers,
            rankers=tuple(rankers),
            combiner=combiner,
            seed=seed,
            **own_loss,
        )
        self.search = search
        self._predictor: Predictor | None = None
        self._trained_on = torch.zeros(0, dtype=torch.int64)
        self._about: dict[str, Any] = {}

    # -- training ------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        labels: Any = None,
        *,
        valid: float | int | tuple[Any, Any] | Examples = 0.1,
        test: tuple[Any, Any] | Examples | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        epochs: int | None = None,
        steps: int | None = None,
        minutes: float | None = None,
        patience: int | None = None,
        valid_every: int = 5,
        callbacks: Sequence[Any] = (),
        keep_resume: bool = False,
        settings: Any = None,
    ) -> Result:
        """Train; a fit after a fit begins anew.

        Args:
            data: a list of texts (strings, or pairs of title and content), a pandas column, …, with
                `labels`; a matrix of features in their place, a row an example, of numpy, scipy,
                torch or pandas; or a data set: a name or path that :func:`shoal.load` reads, a
                DataFrame, a ``datasets.Dataset``, a :class:`~shoal.data.texts.LabelData`.
            labels: per text the name of its label or a list of names; or a matrix with one row per
                text and one column per label.
            valid: share of the training examples that is held out at a time, for validation during
                training and to weigh the rankers. Where that is less than a thousand examples,
                further shares are held out in turn, each from training of its own, and the model
                is trained on all examples in the end. Or held-out texts and labels, of which those
                that no training example has are left out. 0 for none: the first ranker ranks
                alone.
            test: texts and labels to evaluate on; by default the data set's own test split, if it
                has one. Labels that no training example has count as missed.
            out: folder of the run, for checkpoints, the log and the model; None keeps the model in
                memory alone.
            resume: continue the run in `out`.
            epochs: passes of the encoder over the training examples; 6 without any limit.
            steps: optimizer steps of the encoder.
            minutes: of training the encoder.
            patience: stop after so many validations in a row without an improvement.
            valid_every: epochs between two validations.
            callbacks: called at each step, validation and so on (:class:`shoal.Callback`).
            keep_resume: keep the checkpoints of a finished run, which only training on needs.
            settings: what the caller wants to have written down in ``settings.json``.

        Returns:
            what happened: steps, seconds, validation and test metrics, the folder and its size.

        Raises:
            InputError: for any bad setting or input; finished work stays.
        """
        data = self._data(data, labels)
        judged = data.test if test is None else self._examples(test, data.labels, "test")
        fitting = Fitting(
            out, resume, epochs, steps, minutes, patience, callbacks, keep_resume, settings
        )
        expect_positive("valid_every", valid_every)
        begin = time.monotonic()
        held_out = self._folds(data, valid)
        about = base.header("labels", self._arguments(), source=data.name)
        seen = digests(data.train.texts)
        with fitting.run(about, seen, data.train.labels.indices) as run:
            seconds = round(time.monotonic() - begin, 3)
            out_of = [fold.held_out for fold in held_out if fold.held_out is not None]
            # in the end of several folds all examples are learned from
            learned = held_out[0].train if len(held_out) == 1 else data.train
            counts = {"train": len(learned), "held_out": sum(map(len, out_of))}
            counts |= {"test": len(judged)}
            counts["labels"] = len(data.labels)
            resolved = {"data": data.name, "examples": counts, "device": self.device}
            run.start(resolved | {"prepare_seconds": seconds})
            predictor, progress = train(
                data,
                held_out,
                run,
                self.parts,
                budget=fitting.budget(6),
                resume=resume,
                evaluate_every=valid_every,
                callbacks=lambda stage: fitting.watchers(stage, stage == "encoder"),
                device=self.device,
            )
            self._trained_on = seen
            if progress.stopped == "interrupt":
                self._predictor = predictor
                return fitting.result(run, progress, {})
            about |= {"predictor": self._save(predictor, run.folder, about)}
            # opened again, so that what is evaluated is what others will open
            self._open(run.folder, about)
            metrics = self._evaluated(judged, run) if len(judged) else {}
            self._about |= {"test": metrics, "steps": progress.step, "seconds": progress.seconds}
            base.write_header(run.folder, self._about)
            names = ("last.safetensors", "best.safetensors", "tokens")
            others = [path for name in names for path in run.folder.rglob(name)]
            result = fitting.close(run, progress, metrics, *others)
            return replace(result, details={"scores": self.scores} | result.details)

    def _data(self, data: Any, labels: Any) -> LabelData:
        if labels is not None:
            data = label_data(data, labels)
        elif not isinstance(data, LabelData):
            data = load(data)
            want, remedy = "texts with labels", "fit a NodeModel or LinkModel on a graph"
            expect(isinstance(data, LabelData), "data", want, type(data).__name__, remedy)
        expect(len(data.train) > 0, data.name, "at least one training example", 0, "add examples")
        expect_learnable(data)
        return data

    def _folds(self, data: LabelData, valid: Any) -> list[Fold]:
        """The examples to learn from, and those that are held out, once or in turn."""
        if not isinstance(valid, float | int):
            held_out = _known(self._examples(valid, data.labels, "valid"), len(data.labels))
            want, remedy = "examples with labels of the data", "name labels as there"
            expect(len(held_out) > 0, "valid", want, "none", remedy)
            return [Fold(data.train, held_out)]
        expect(0 <= valid < 1, "valid", "a share in [0, 1)", valid, "try 0.1, or 0 for none")
        if valid == 0:
            return [Fold(data.train, None)]
        # without a combiner nobody learns from more than one
        enough = 0 if self.parts.combiner is None else ENOUGH
        return folds(data, valid, self.parts.seed, enough)

    def _arguments(self) -> dict[str, Any]:
        return {one.name: getattr(self.parts, one.name) for one in fields(self.parts)}

    # -- using ---------------------------------------------------------------------------------

    @property
    def predictor(self) -> Predictor:
        """The trained parts.

        Raises:
            InputError: before ``fit``.
        """
        if self._predictor is None:
            fail("model", "a fitted one", "one that is not", "call fit, or shoal.open a folder")
        return self._predictor

    @property
    def encoder(self) -> Any:
        """The trained encoder; pass it to a new model to go on from its weights."""
        return self.predictor.encoder

    @property
    def labels(self) -> Texts:
        """All labels, by name and text."""
        return self.predictor.labels

    @property
    def trained_on(self) -> Int[Tensor, " n"]:
        """Digests of the training examples (:func:`shoal.data.splits.digests`)."""
        return self._trained_on

    @property
    def probabilities(self) -> bool:
        """Whether scores are probabilities; otherwise they are cosines or inner products."""
        return self.predictor.probabilities

    @property
    def scores(self) -> str:
        """What scores are: ``probabilities``, or ``cosines`` of the encoder or the like."""
        return "probabilities" if self.probabilities else "cosines"

    def predict(
        self, texts: Any, k: int = 5, threshold: float | Rule | None = None, explain: bool = False
    ) -> Any:
        """The best labels of texts.

        Args:
            texts: one text, or a list of them (strings, or pairs of title and content); or a matrix
                of features, as for `fit`.
            k: labels per text at most; all, where there are fewer.
            threshold: leave out labels of a lower score, in [0, 1] where scores are probabilities;
                or a rule learned on held-out examples: ``f1`` (one threshold, best by micro F1),
                ``macro-f1`` (best by macro F1), ``label-f1`` (one per label that is seen often
                enough), ``count`` (as many labels as are expected to be true).
            explain: say for each label which rankers found it, which words it shares with the text
                and which known examples nearby carry it.

        Returns:
            for many texts a list of lists of :class:`~shoal.rank.predictor.Prediction`, the best
            first; for one text one list. Scores are probabilities in [0, 1] where
            :attr:`probabilities`, else cosines.

        Raises:
            InputError: if an item is no text, k is not positive, or the threshold is out of range.
        """
        plain, single = as_texts(texts)
        expect_positive("k", k)
        self._expect_threshold(threshold)
        read = self._read(plain)
        unknown = int((self.unknown(plain)).sum())
        featured = plain.features is not None
        nothing = "examples have no known feature" if featured else "texts hold no known word"
        if unknown:
            _log.warning("%d of %d %s: their labels are guesses", unknown, len(plain), nothing)
        found = self.predictor.predict(read, min(k, len(self.labels)), threshold, explain)
        if single:
            return Answers(found[0], None, self.probabilities)
        asked = [f"example {uid}" for uid in plain.uids] if featured else plain.all()
        return Answers(found, asked, self.probabilities)

    def _repr_html_(self) -> str:
        parts = self.parts
        about = {"encoder": parts.encoder, "batches": parts.batches or "NGAME's clusters"}
        about |= {"classifiers": parts.classifiers, "combiner": parts.combiner}
        if self._predictor is None:
            return model_table("LabelModel, not fitted", about)
        ranks = ", ".join(ranker.features[0] for ranker in self.predictor.rankers)
        scores = "probabilities" if self.probabilities else "cosines or inner products"
        known = {"labels": f"{len(self.labels):,}", "rankers": ranks, "scores": scores}
        return model_table("LabelModel", known | about)

    def _expect_threshold(self, threshold: object) -> None:
        if threshold in RULES:
            want, remedy = "a model whose scores are probabilities", "train it with held-out texts"
            expect(self.probabilities, "threshold", want, "one of cosines", remedy)
        elif threshold is not None:
            rules = f"a probability in [0, 1] or one of {', '.join(RULES)}"
            want = rules if self.probabilities else "a number"
            number = threshold if isinstance(threshold, float | int) else math.nan
            good = 0 <= number <= 1 or not (self.probabilities or math.isnan(number))
            expect(good, "threshold", want, threshold, "try 0.5")

    def unknown(self, texts: Any) -> Tensor:
        """Which texts hold no word or feature that the model knows, as booleans ``[n]``."""
        plain, _ = as_texts(texts)
        self.predictor.expect_read(plain)
        if plain.features is not None:
            return self.encoder.documents(plain).degrees() == 0
        return self.encoder.known(plain.all()).degrees() == 0

    def encode(self, texts: Any) -> Float[Tensor, "*n d"]:
        """Unit vectors of texts; of one text one vector, ``[d]``.

        Raises:
            InputError: if an item is no text.
        """
        plain, single = as_texts(texts)
        vectors = self.predictor.encode(self._read(plain))
        return vectors[0] if single else vectors

    def evaluate(
        self, data: Any, labels: Any = None, threshold: float | Rule | None = None
    ) -> dict[str, float]:
        """Metrics of test examples, in per cent as the field prints them (P@1 38.45).

        Args:
            data: texts, with `labels`: all of them are judged; or a data set as `fit` takes it: its
                test split, or where it has none of its own, all examples but those that the model
                was trained on; or what :meth:`test_examples` gave.
            labels: as for `fit`; matched with the model's by name. Labels that the model does not
                have count as missed.
            threshold: as for `predict`; by default ``f1``, where the model has learned it.

        Returns:
            P@k, nDCG@k, R@k, and their propensity-scored kin by the propensities of the training
            examples; with a threshold micro and macro F1, precision and recall of all labels that
            it leaves (``F1``, ``F1_macro``, ``precision``, ``recall``); of probabilities ``ECE``,
            how far, in percentage points, stated and true shares of right answers are apart.

        Raises:
            InputError: if nothing is left to judge, or as `predict` for the threshold.
        """
        self._expect_threshold(threshold)
        return self._evaluated(self.test_examples(data, labels), threshold=threshold)

    def test_examples(self, data: Any, labels: Any = None) -> Examples:
        """The examples that :meth:`evaluate` judges."""
        if labels is not None:
            return self._examples((data, labels), self.labels, "labels")
        if isinstance(data, Examples):
            return data
        found = data if isinstance(data, LabelData) else load(data, test=0)
        if not isinstance(found, LabelData):
            fail("data", "texts with labels", type(found).__name__, "evaluate on data like its own")
        test = found.test if len(found.test) else found.train
        if not found.own_split:  # what load held out is a fifth, which says nothing here
            test = found.train.stack(found.test)
        seen = torch.isin(digests(test.texts), self._trained_on)
        count = int(seen.sum())
        if count and found.own_split:
            told = "%s: %d of %d test examples were trained on"
            _log.warning(told, found.name, count, len(test))
        elif count:
            _log.info("%s: %d examples left out, which were trained on", found.name, count)
            test = test.subset((~seen).nonzero().squeeze(1))
        expect(
            len(test) > 0, found.name, "examples to evaluate on", "none", "name a file of others"
        )
        return _over(test, found.labels, self.labels)

    def _evaluated(
        self, test: Examples, run: Any = None, threshold: float | Rule | None = None
    ) -> dict[str, float]:
        known = self.predictor.truth
        metrics, behind = evaluate(self.predictor, test, known, threshold)
        if run is not None:
            for event, facts in behind.items():
                run.write(event, facts)
        return metrics

    def _read(self, texts: Texts) -> Texts:
        """Plain strings as titles or contents; texts with contents as they are."""
        bare = texts.features is None and not any(texts.contents)
        return self.encoder.read(texts.titles) if bare else texts

    def _examples(self, given: Any, labels: Texts, name: str) -> Examples:
        """Texts and labels as examples over `labels`, and behind them labels that it lacks."""
        if isinstance(given, Examples):
            return given
        good = isinstance(given, tuple) and len(given) == 2
        expect(good, name, "(texts, labels)", type(given).__name__, "pass a pair of lists")
        if getattr(given[1], "ndim", 1) == 2:
            return label_data(*given, label_names=labels.uids).train
        data = label_data(*given)
        return _over(data.train, data.labels, labels)

    # -- extending -----------------------------------------------------------------------------

    def add(self, labels: Any = None, examples: tuple[Any, Any] | None = None) -> LabelModel:
        """A model that has more labels, or knows more examples, without training; this one stays.

        Args:
            labels: new labels, by their texts.
            examples: texts and their labels; new labels among them are added first.

        Raises:
            InputError: if a label is there already, or the model keeps no examples.
        """
        expect(
            labels is not None or examples is not None,
            "add",
            "labels or examples",
            "neither",
            "pass one",
        )
        predictor = self.predictor
        if labels is not None:
            texts = as_texts([labels] if isinstance(labels, str) else labels, "labels")[0]
            if not isinstance(labels, Texts):
                texts = Texts(list(texts.titles), texts.titles, texts.contents)
            unknown = int((self.encoder.known(texts.all()).degrees() == 0).sum())
            if unknown:
                told = "%d of %d new labels hold no known word: they are hardly ever found"
                _log.warning(told, unknown, len(texts))
            predictor = predictor.with_labels(texts)
        if examples is not None:
            data = label_data(*examples)
            known = set(predictor.labels.uids)
            new = [i for i, uid in enumerate(data.labels.uids) if uid not in known]
            if new:
                predictor = predictor.with_labels(data.labels.subset(torch.tensor(new)))
            added = _over(data.train, data.labels, predictor.labels)
            predictor = predictor.with_examples(self._read(added.texts), added.labels)
        added = len(predictor.labels) - len(self.labels)
        about = self._about | {"added": self._about.get("added", 0) + added}
        return self.with_predictor(predictor, about)

    def with_predictor(
        self,
        predictor: Predictor,
        about: Mapping[str, Any] | None = None,
        trained_on: Int[Tensor, " n"] | None = None,
    ) -> LabelModel:
        """This model with other trained parts.

        Args:
            predictor: the parts.
            about: where they come from: ``source``, ``test`` metrics; by default this model's.
            trained_on: digests of the training examples; by default this model's.
        """
        model = LabelModel.__new__(LabelModel)
        model.__dict__.update(self.__dict__)
        model._predictor = predictor
        model._about = dict(self._about if about is None else about)
        model._trained_on = self._trained_on if trained_on is None else trained_on
        return model

    # -- folders -------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder; :func:`shoal.open` reads it.

        Raises:
            InputError: before ``fit``, or if the folder cannot be written to.
        """
        folder = Path(folder)
        about = base.header("labels", self._arguments())
        kept = ("source", "test", "steps", "seconds", "added")
        about |= {name: self._about[name] for name in kept if name in self._about}
        folder.mkdir(parents=True, exist_ok=True)
        self._save(self.predictor, folder, about)

    def _save(self, predictor: Predictor, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
        parts, state = predictor.save(folder)
        state["trained_on"] = self._trained_on
        base.save(folder, about | {"predictor": parts}, state)
        return parts

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        state = base.read_state(folder)
        parts = about.get("predictor")
        if not isinstance(parts, dict):
            got = "one without its parts, as a run that was stopped has it"
            fail(str(folder / base.HEADER), "a whole model", got, "resume the run until its end")
        with naming(folder):
            if "trained_on" in state:
                self._trained_on = integers(state, "trained_on", None, low=-(2**63))
            self._predictor = Predictor.open(folder, parts, state, self.device, self.search)
        self._about = dict(about)

    @staticmethod
    def restore(folder: Path, about: dict[str, Any], objects: dict[str, Any]) -> LabelModel:
        """The model of a folder; what :func:`shoal.open` calls.

        Args:
            folder: of the model.
            about: its ``model.json``.
            objects: ``device``, ``search`` and arguments for a further ``fit``.
        """
        try:
            model = LabelModel(**objects)
        except TypeError as error:
            fail("open", "arguments of LabelModel", error, "leave it out")
        model._open(folder, about)
        return model

    def export(self, out: str | Path, documents: Texts | None = None) -> list[Exported]:
        """Write a folder for others: the model, encoders for sentence-transformers, and a card.

        Args:
            out: the folder; an earlier export there is replaced.
            documents: texts of the kind that the model is for, on which the exported encoders are
                measured; by default the labels'.

        Raises:
            InputError: if something else is there, or it cannot be written to.
        """
        return write_export(self, Path(out), documents)


def _over(examples: Examples, names: Texts, labels: Texts) -> Examples:
    """Examples whose labels are columns of `labels`, matched by name; others stand behind them.

    Where names are numbers of lines and mean nothing, labels are matched by their texts.
    """
    if names.uids == labels.uids and names.all() == labels.all():
        return examples
    by_text = not set(names.uids) & set(labels.uids) or _numbered(names.uids, labels.uids)
    key = Texts.all if by_text and any(labels.all()) else (lambda texts: texts.uids)
    position = {name: i for i, name in reversed(list(enumerate(key(labels))))}
    behind = len(labels)
    columns = []
    for name in key(names):
        if name not in position:
            position[name] = behind
            behind += 1
        columns.append(position[name])
    column = torch.tensor(columns, dtype=torch.int64)

    def moved(csr: Csr) -> Csr:
        return Csr.from_coo(
            csr.row_ids(), column[csr.indices.long()], (csr.n_rows, behind), csr.values
        ).coalesce()

    return Examples(examples.texts, moved(examples.labels), moved(examples.drop))


def _known(examples: Examples, n_labels: int) -> Examples:
    """Examples with the first labels alone, those that have some of them."""
    truth, drop = (first_columns(x, n_labels) for x in (examples.labels, examples.drop))
    some = (truth.degrees() > 0).nonzero().squeeze(1)
    return Examples(examples.texts, truth, drop).subset(some)


def _expect_method(name: str, given: Any, method: str, remedy: str) -> None:
    good = callable(getattr(given, method, None)) and not isinstance(given, type)
    expect(good, name, f"an object with {method}()", given, remedy)


def _numbered(one: list[str], other: list[str]) -> bool:
    return all(name.isdecimal() for name in (*one[:100], *other[:100]))
