"""Inside sentence-transformers' own trainer: its batches, its resume, its evaluation."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from shoal.core import metrics
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.integrations.sentence_transformers import (
    HardestTripletsLoss,
    MaskedSoftmaxLoss,
    NgameBatches,
    cached,
    encode,
    number_pairs,
    xc_evaluator,
)
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank
from tests.integrations.conftest import WORDS

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of packages that are not ours
    pytest.mark.usefixtures("st"),
]


class Watched(MaskedSoftmaxLoss):
    """Writes down the documents of every training batch."""

    seen: list[list[int]]

    def forward(self, sentence_features: Any, labels: Any) -> Any:
        if torch.is_grad_enabled():
            self.seen.append(labels[:, 0].tolist())
        return super().forward(sentence_features, labels)


@pytest.fixture
def train(static_model: Callable[[], Any], pairs: Any, tmp_path: Path) -> Callable[..., Any]:
    """Train the bag on 48 documents in batches of 16: three steps an epoch."""
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    def run(banked=False, resume: str | None = None, embed=encode, **options: Any) -> Any:
        (data, held), known = number_pairs(pairs, pairs.select(range(30)))
        model, bank = static_model(), EmbeddingBank(48, 8) if banked else None
        batches = NgameBatches(data, 4, embed if bank is None else bank)
        loss = Watched(model, known, bank=bank)
        loss.seen = []
        callbacks = options.pop("callbacks", [batches.callback()])
        options = {"output_dir": str(tmp_path / "out"), "num_train_epochs": 3} | options
        args = SentenceTransformerTrainingArguments(
            per_device_train_batch_size=16,
            per_device_eval_batch_size=7,
            learning_rate=0.1,
            batch_sampler=options.pop("batch_sampler", batches),
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **options,
        )
        trainer = SentenceTransformerTrainer(model, args, data, held, loss, callbacks=callbacks)
        if resume is not None or options["num_train_epochs"]:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def test_pairs_are_numbered_by_text(pairs: Any) -> None:
    """Equal texts are one; labels are shared by data sets, documents and known pairs are not."""
    (data, held), known = number_pairs(pairs, pairs.select(range(5)))
    ids, other = torch.tensor(data["label"][:]), torch.tensor(held["label"][:])
    assert known.shape == (48 + 3, len(set(pairs["positive"])))
    assert bool(known.find(ids[:, 0], ids[:, 1])[0].all()) and known.nnz == len(data) + 5
    assert len({*zip(ids[:, 0].tolist(), pairs["anchor"], strict=True)}) == 48
    assert torch.equal(other[:, 1], ids[:5, 1]) and other[:, 0].tolist() == [48, 49, 49, 50, 50]


@pytest.mark.parametrize("banked", [False, True])
def test_resumed_training_sees_the_same_batches(
    train: Callable[..., Any], banked: bool, tmp_path: Path
) -> None:
    """Stopped inside the clustered epoch 1, it goes on to the same batches and weights."""
    whole = train(banked, save_steps=4)
    assert len(whole.loss.seen) == 9 and whole.state.epoch == 3
    resumed = train(banked, resume=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.loss.seen == whole.loss.seen[4:]
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_trainer_batches_are_shoals_own(train: Callable[..., Any]) -> None:
    """Every anchor once an epoch, grouped as ClusterBatchSampler groups the model's embeddings."""
    rows: list[Any] = []

    def remember(model: Any, texts: list[str]) -> Any:
        assert texts == [f"w{i} w{7 * i % 50}" for i in range(48)]
        rows.append(encode(model, texts))
        return rows[-1]

    seen = train(embed=remember).loss.seen
    own = ClusterBatchSampler(48, 16, 4, seed=42)  # the trainer's default seed
    for epoch in range(3):
        own.set_epoch(epoch)
        if epoch:
            own.refresh(rows[epoch - 1])
        assert [seeds.tolist() for seeds in own] == seen[3 * epoch : 3 * epoch + 3]
    assert len(rows) == 2 and not torch.equal(*rows)


def test_evaluation_is_untouched(train: Callable[..., Any]) -> None:
    """The evaluation loader has the batches of a trainer that was never told of us."""
    ours = train(num_train_epochs=0).get_eval_dataloader()
    plain = train(num_train_epochs=0, batch_sampler="batch_sampler").get_eval_dataloader()
    batches = [[batch["label"].tolist() for batch in loader] for loader in (ours, plain)]
    assert batches[0] == batches[1] and len(batches[0]) == 5


def test_a_forgotten_callback_is_named(train: Callable[..., Any]) -> None:
    """Without the callback there is no model to cluster by: an error, not random batches."""
    with pytest.raises(InputError, match=r"callbacks: expected that of NgameBatches"):
        train(callbacks=[])


def test_another_training_set_is_named(train: Callable[..., Any], pairs: Any) -> None:
    """Bound to one data set and given another, training refuses instead of going on unclustered."""
    (data,), _ = number_pairs(pairs)
    with pytest.raises(InputError, match=r"train_dataset: expected the data set of NgameBatches"):
        train(callbacks=[NgameBatches(data).callback()])


def test_arguments_leave_the_data_behind(pairs: Any) -> None:
    """Pickled into training_args.bin, it is settings only."""
    (data,), _ = number_pairs(pairs)
    batches = pickle.loads(pickle.dumps(NgameBatches(data, 8, refresh_every=3)))
    assert vars(batches) == {"cluster_size": 8, "warm_epochs": 1, "refresh_every": 3}


def test_encode_changes_nothing_but_the_type(static_model: Callable[[], Any]) -> None:
    """Training mode stays; half precision is the same direction to a thousandth."""
    model = static_model().train()
    rows, half = encode(model, ["w1 w2", "w3"]), encode(model, ["w1 w2", "w3"], dtype=torch.float16)
    assert model.training and half.dtype == torch.float16
    torch.testing.assert_close(half.float(), rows, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("make", [MaskedSoftmaxLoss, partial(HardestTripletsLoss, k=3)])
@pytest.mark.parametrize("size", [4, 5])
def test_cached_equals_uncached(transformer_model: Any, pairs: Any, make: Any, size: int) -> None:
    """Mini-batches bound memory only: same loss, same gradient, whether or not they divide it."""
    (data,), known = number_pairs(pairs.select(range(12)))
    ids = torch.tensor(data["label"][:])
    plain = make(transformer_model.eval(), known)  # no dropout: chunks draw other masks

    def columns() -> list[Any]:
        return [transformer_model.preprocess(data[name][:]) for name in ("anchor", "positive")]

    results = []
    for loss in (plain, cached(plain, size)):
        transformer_model.zero_grad()
        value = loss(columns(), ids)
        value.backward()
        grads = [p.grad.clone() for p in transformer_model.parameters() if p.grad is not None]
        results.append((value.item(), torch.cat([g.flatten() for g in grads])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    assert results[0][1].abs().sum() > 0.1


def test_a_bag_cannot_be_cached(static_model: Callable[[], Any], pairs: Any) -> None:
    """Its inputs are one flat list of tokens, which cannot be cut into rows."""
    _, known = number_pairs(pairs)
    with pytest.raises(InputError, match=r"loss: expected a transformer model"):
        cached(MaskedSoftmaxLoss(static_model(), known))


@pytest.mark.parametrize("name", ["", "held"])
def test_the_evaluator_reports_shoals_metrics(
    static_model: Callable[[], Any], pairs: Any, name: str
) -> None:
    """Equal to shoal.core.metrics on all cosines, dropped pairs out; the primary metric is P@1."""
    (data,), truth = number_pairs(pairs)
    model = static_model()
    documents = list(dict.fromkeys(pairs["anchor"]))
    labels = list(dict.fromkeys(pairs["positive"]))
    drop = Csr.from_coo(torch.arange(48), torch.arange(48) % truth.n_cols, truth.shape)
    inverse = metrics.inverse_propensity(truth)
    evaluator = xc_evaluator(documents, labels, truth, inverse, drop, ks=(1, 5), name=name)
    found = evaluator(model)
    rows, keys = (normalize(encode(model, texts)) for texts in (documents, labels))
    scores = (rows @ keys.T).masked_fill(drop.to_dense().bool(), -torch.inf)
    want = metrics.evaluate(scores.topk(5).indices, truth, inverse, (1, 5))
    prefix = f"{name}_" if name else ""
    assert found == pytest.approx({prefix + key: value for key, value in want.items()})
    assert evaluator.primary_metric == prefix + "P@1" and 0 < found[prefix + "P@5"] < 100
    bare = xc_evaluator(documents, labels, truth, ks=(1,))(model)
    assert set(bare) == {"P@1", "nDCG@1", "R@1"} and len(data) == 96


def texts_of(first: int, n: int = 48) -> Any:
    """Rows (anchor, positive) of `n` anchors, two positives each, other than those of another."""
    from datasets import Dataset

    rows = [(i, j) for i in range(first, first + n) for j in range(2)]
    return Dataset.from_dict(
        {
            "anchor": [f"w{i % 60} w{(7 * i + first) % 50}" for i, _ in rows],
            "positive": [f"w{(i + 5 * j) % 60} w{i // 4 % 60} w{first % 60}" for i, j in rows],
        }
    )


@pytest.fixture
def two_towers(st: Any) -> Any:
    """A model in which word i + 7 means in a document what word i means in a query."""
    from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS, "query", "label"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = torch.randn(63, 16, generator=torch.Generator().manual_seed(0))
    moved = rows.clone()
    moved[1:61] = torch.roll(rows[1:61], 7, 0)
    towers = [StaticEmbedding(tokenizer, embedding_weights=x.numpy()) for x in (rows, moved)]
    router = Router.for_query_document(query_modules=[towers[0]], document_modules=[towers[1]])
    return st.SentenceTransformer(modules=[router], device="cpu")


def information_retrieval(model: Any, documents: list[str], labels: list[str], **how: str) -> float:
    """P@1 as sentence-transformers itself finds it: document i has label i."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    names = list(map(str, range(len(documents))))
    pairs = {name: {name} for name in names}
    queries, corpus = (dict(zip(names, x, strict=True)) for x in (documents, labels))
    judge = InformationRetrievalEvaluator(queries, corpus, pairs, accuracy_at_k=[1], **how)
    return 100 * judge(model)["cosine_accuracy@1"]


def test_two_towers_are_judged_by_their_routes(two_towers: Any) -> None:
    """As InformationRetrievalEvaluator judges them: documents are queries, labels are documents."""
    documents, labels = [f"w{i}" for i in range(40)], [f"w{(i + 7) % 60}" for i in range(40)]
    truth = Csr.from_lists([[i] for i in range(40)], 40)
    found = xc_evaluator(documents, labels, truth, ks=(1,))(two_towers)["P@1"]
    assert found == information_retrieval(two_towers, documents, labels) == 100
    swapped = xc_evaluator(documents, labels, truth, ks=(1,), tasks=("document", "query"))
    assert swapped(two_towers)["P@1"] < 50


@pytest.mark.parametrize("given", [False, True])
def test_prompts_are_part_of_the_texts(static_model: Callable[[], Any], given: bool) -> None:
    """The model's own prompts for queries and documents, or those that are passed."""
    model = static_model()
    with torch.no_grad():  # all words share a large part, of which the word w0 rids them
        weight, shared = model[0].embedding.weight, 5 * torch.ones(8)
        weight += shared
        weight[1] = -shared
    documents = [f"w{i}" for i in range(20, 40)]
    labels = [f"w0 w{i}" for i in range(20, 40)]
    truth = Csr.from_lists([[i] for i in range(20)], 20)
    how: dict[str, Any] = {}
    if given:
        how = {"prompts": ("w0 ", "")}
    else:
        model.prompts = {"query": "w0 ", "document": ""}
    assert xc_evaluator(documents, labels, truth, ks=(1,), **how)(model)["P@1"] == 100
    theirs = {"query_prompt": "w0 ", "corpus_prompt": ""} if given else {}
    assert information_retrieval(model, documents, labels, **theirs) == 100
    model.prompts = {}
    assert xc_evaluator(documents, labels, truth, ks=(1,))(model)["P@1"] < 50


class Seeing(MaskedSoftmaxLoss):
    """Writes down the anchors' vectors of every training batch, as the loss gets them."""

    seen: list[tuple[Any, Any]]

    def from_embeddings(self, columns: Any, labels: Any, learning: bool) -> Any:
        if learning:
            self.seen.append((labels[:, 0].tolist(), columns[0].detach().clone()))
        return super().from_embeddings(columns, labels, learning)


ROUTES = {"anchor": "query", "positive": "document"}


@pytest.mark.parametrize(
    ("routed", "named", "arguments"),
    [
        (False, False, {"prompts": "w9 w8 "}),
        (False, False, {"prompts": {"anchor": "w9 ", "positive": "w3 "}}),
        (False, False, {"prompts": {"positive": "w3 "}}),
        (True, False, {"router_mapping": ROUTES}),
        (True, False, {"router_mapping": ROUTES, "prompts": {"anchor": "query "}}),
        (True, False, {"router_mapping": {"anchor": "document", "positive": "query"}}),
        (False, True, {"prompts": {"one": "w9 ", "two": "w3 "}}),
        (False, True, {"prompts": {"one": {"anchor": "w9 "}, "two": {"positive": "w3 "}}}),
        (False, True, {"prompts": {"anchor": "w9 "}}),
        (True, True, {"router_mapping": {"one": ROUTES, "two": ROUTES}}),
    ],
)
def test_clusters_are_made_of_what_the_loss_sees(
    routed: bool,
    named: bool,
    arguments: dict[str, Any],
    two_towers: Any,
    static_model: Callable[[], Any],
    tmp_path: Path,
) -> None:
    """Whatever prompts and routes the trainer gives anchors: at weights that hardly move, batches
    have the vectors that were clustered."""
    from datasets import DatasetDict
    from sentence_transformers import SentenceTransformerTrainer as Trainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    rows: list[Any] = []

    def remember(model: Any, texts: list[str], prompt: str = "", task: str | None = None) -> Any:
        rows.append(encode(model, texts, prompt=prompt, task=task))
        return rows[-1]

    model = two_towers if routed else static_model()
    model.prompts, model.default_prompt_name = {"query": "w1 w2 ", "odd": "w5 "}, "odd"
    (data, other), known = number_pairs(texts_of(0), texts_of(500))
    batches = NgameBatches(data, 4, remember)
    loss = Seeing(model, known)
    loss.seen = []
    args = Arguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-7,
        batch_sampler=batches, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", **arguments,
    )  # fmt: skip
    train = DatasetDict({"one": data, "two": other}) if named else data
    Trainer(model, args, train, loss=loss, callbacks=[batches.callback()]).train()
    ours = [(ids, vectors) for ids, vectors in loss.seen if max(ids) < 48]
    assert len(rows) == 1 and len(ours) == 6
    for ids, vectors in ours:
        torch.testing.assert_close(vectors, rows[0][torch.tensor(ids)], atol=1e-4, rtol=0)


def choose(each: dict[int, NgameBatches], dataset: Any, *args: Any, **options: Any) -> Any:
    """What a user writes to choose among samplers."""
    return each[id(dataset)](dataset, *args, **options)


@pytest.mark.parametrize("sizes", [(48, 48), (48, 32)])
@pytest.mark.parametrize("chosen", [False, True])
def test_two_clustered_data_sets_keep_two_states(
    chosen: bool, sizes: tuple[int, int], static_model: Callable[[], Any], tmp_path: Path
) -> None:
    """Stopped anywhere and resumed, both have the batches of the run that was not stopped."""
    from datasets import DatasetDict
    from sentence_transformers import SentenceTransformerTrainer as Trainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    def run(resume: str | None = None) -> list[list[int]]:
        numbered, known = number_pairs(texts_of(0, sizes[0]), texts_of(500, sizes[1]))
        model = static_model()
        loss = Watched(model, known)
        loss.seen = []
        first = NgameBatches(numbered[0], 4)
        second = NgameBatches(numbered[1], 4, otherwise=first)
        each = {id(numbered[0]): first, id(numbered[1]): second}
        args = Arguments(
            str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=0.1,
            report_to="none", disable_tqdm=True, use_cpu=True, save_steps=5,
            batch_sampler=partial(choose, each) if chosen else second,
        )  # fmt: skip
        train = DatasetDict(dict(zip(("one", "two"), numbered, strict=True)))
        callbacks = [first.callback(), second.callback()]
        Trainer(model, args, train, loss=loss, callbacks=callbacks).train(
            resume_from_checkpoint=resume
        )
        return loss.seen

    whole = run()
    for step in (5, 10, 15, 20):
        folder = tmp_path / f"checkpoint-{step}"
        assert len(list(folder.glob("ngame-*.safetensors"))) == 2
        assert run(str(folder)) == whole[step:]


def fit(model: Any, folder: Path, data: Any, loss: Any, batches: Any, **options: Any) -> Any:
    """Train for two epochs, without a line on the screen."""
    from sentence_transformers import SentenceTransformerTrainer as Trainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    args = Arguments(
        str(folder), num_train_epochs=2, learning_rate=0.1, batch_sampler=batches, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    trainer = Trainer(model, args, data, loss=loss, callbacks=[batches.callback()])
    return trainer.train()


@pytest.mark.parametrize("dims", [[16, 8], [8, 16, 4], [16]])
@pytest.mark.parametrize("mini", [None, 6])
def test_a_bank_beside_matryoshka(
    transformer_model: Any, pairs: Any, tmp_path: Path, dims: list[int], mini: int | None
) -> None:
    """Only the full width is written: the bank holds what the loss alone would have left there."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    (data,), known = number_pairs(pairs)
    bank = EmbeddingBank(48, 16)
    inner = MaskedSoftmaxLoss(transformer_model, known, bank=bank)
    loss = MatryoshkaLoss(transformer_model, inner if mini is None else cached(inner, mini), dims)
    batches = NgameBatches(data, 4, bank)
    fit(transformer_model, tmp_path, data, loss, batches, per_device_train_batch_size=12)
    assert bank.filled == 1
    torch.testing.assert_close(bank.rows.float().norm(dim=1), torch.ones(48), atol=2e-3, rtol=0)
    assert batches.sampler is not None and batches.sampler.clusters.size == 4


def test_a_bank_that_nothing_fills_is_named(
    static_model: Callable[[], Any], pairs: Any, tmp_path: Path
) -> None:
    """Not given to the loss, of another width, or beside narrower losses only."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    (data,), known = number_pairs(pairs)
    model = static_model()
    with pytest.raises(InputError, match="bank: expected a bank of the model's width 8, got 16"):
        MaskedSoftmaxLoss(model, known, bank=EmbeddingBank(48, 16))
    for banked in (False, True):
        bank = EmbeddingBank(48, 8)
        inner = MaskedSoftmaxLoss(model, known, bank=bank if banked else None)
        loss = MatryoshkaLoss(model, inner, [4, 2]) if banked else inner
        with pytest.raises(InputError, match="embed: expected a bank that the loss fills"):
            fit(model, tmp_path, data, loss, NgameBatches(data, 4, bank))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 12, 48])
@pytest.mark.parametrize("kind", [MaskedSoftmaxLoss, HardestTripletsLoss])
def test_small_batches_train(
    kind: Any, batch_size: int, static_model: Callable[[], Any], pairs: Any, tmp_path: Path
) -> None:
    """The trainer's own default of eight rows, and others, without another argument."""
    (data,), known = number_pairs(pairs)
    model, batches = static_model(), NgameBatches(data)
    done = fit(
        model, tmp_path, data, kind(model, known), batches, per_device_train_batch_size=batch_size
    )
    assert done.global_step == 2 * -(-48 // batch_size) and done.training_loss == done.training_loss


def frames() -> dict[str, tuple[Callable[[], Any], str]]:
    """Data of other kinds, and what is said of it."""
    import pandas
    from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value

    columns = {"a": ["x", "y"], "b": ["u", "v"]}
    rows = Dataset.from_dict(columns)

    def of(a: list[Any], **others: Any) -> Any:
        return lambda: Dataset.from_dict({"a": a, **(others or {"b": ["u"] * len(a)})})

    features = Features({"a": Value("string"), "b": ClassLabel(names=["p", "q"])})
    return {
        "DatasetDict": (
            lambda: DatasetDict(train=rows, test=rows),
            "pass its data sets one by one",
        ),
        "one split": (lambda: DatasetDict(train=rows), "pass its data sets one by one"),
        "dict of splits": (lambda: {"train": rows}, "pass its data sets one by one"),
        "streamed": (lambda: rows.to_iterable_dataset(), "load it without streaming"),
        "generator": (
            lambda: IterableDataset.from_generator(lambda: iter(rows)),
            "load it without streaming",
        ),
        "DataFrame": (lambda: pandas.DataFrame(columns), "use Dataset.from_pandas"),
        "list": (lambda: [{"a": "x", "b": "u"}], "use Dataset.from_list"),
        "path": (lambda: "rows.csv", "got a str; make one by"),
        "none": (lambda: None, "got a NoneType; make one by"),
        "lists": (of([["x"], ["y", "z"]]), r"column 'a', row 0: expected a text, got \['x'\]"),
        "numbers": (of([1, 2]), "column 'a', row 0: expected a text, got 1"),
        "None": (of(["x", None]), "column 'a', row 1: expected a text, got None"),
        "classes": (
            lambda: Dataset.from_dict({"a": ["x"], "b": [1]}, features=features),
            "column 'b', row 0: expected a text, got 1",
        ),
        "label": (lambda: rows.rename_column("b", "label"), "no column 'label' yet"),
        "label as anchor": (lambda: rows.rename_column("a", "label"), r"rename_column\('label'"),
        "numbered": (lambda: number_pairs(rows)[0][0], "expected two columns"),
        "empty": (lambda: rows.select([]), "expected some rows"),
        "one column": (lambda: rows.select_columns(["a"]), "expected two columns"),
    }


def test_other_kinds_of_data_are_refused_with_what_to_pass() -> None:
    """Each in one line, by number_pairs and, where it comes so far, by NgameBatches."""
    for name, (make, said) in frames().items():
        with pytest.raises(InputError, match=said):
            number_pairs(make())
        if name in ("DatasetDict", "streamed", "DataFrame", "list", "none"):
            with pytest.raises(InputError, match=said):
                NgameBatches(make())
    with pytest.raises(InputError, match="datasets: expected one or more"):
        number_pairs()


def test_remedies_of_other_kinds_work() -> None:
    """Each way that an error names makes the same pairs."""
    import pandas
    from datasets import Dataset, DatasetDict

    columns = {"a": ["x", "y"], "b": ["u", "v"]}
    rows = Dataset.from_dict(columns)
    made = [
        DatasetDict(train=rows)["train"],
        Dataset.from_list(list(rows.to_iterable_dataset())),
        Dataset.from_pandas(pandas.DataFrame(columns, index=[5, 3]), preserve_index=False),
        rows.rename_column("b", "label").rename_column("label", "positive"),
    ]
    for data in made:
        (found,), known = number_pairs(data)
        assert found["label"][:] == [[0, 0], [1, 1]] and known.shape == (2, 2)
