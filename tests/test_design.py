"""The measures of the design: what a reader may rely on when something is added or moved.

One toy of each kind, each in one place, trains through the command. The page of the label task is
made of public names and gives the command's bits. Settings of the command stay in the command, and
no code outside its file knows the class of an object that implements a protocol.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.cli import main as cli
from shoal.cli import train as train_command
from shoal.core import checkpoint
from shoal.tasks import settings as task_settings

ROOT = Path(shoal.__file__).parent
FROZEN = Path(__file__).with_name("frozen")
LABELS = "text,labels\n" + "".join(
    f"{color} {thing} number {i},{color} thing\n"
    for i in range(12)
    for color in ("red", "blue", "green")
    for thing in ("mug", "hat")
)
SMALL = ["--dim", "8", "--batch-size", "16", "--cluster-size", "4", "--epochs", "2"]
SMALL += ["--device", "cpu", "--json", "--valid", "0.5"]
NODES = ["--hidden", "8", "--fanouts", "3", "3", "--batch-size", "32", "--epochs", "1"]
NODES += ["--device", "cpu", "--json", "--no-baselines"]


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Any]:
    """Run the command in a folder with a data set and a module of a user's own."""
    (tmp_path / "mugs.csv").write_text(LABELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def command(code: str, *words: str) -> dict[str, Any]:
        (tmp_path / "toy.py").write_text("import torch\nimport shoal\n" + code)
        sys.modules.pop("toy", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "argv", ["shoal", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.err
        return json.loads(said.out)

    yield command
    if "toy" not in before:
        sys.modules.pop("toy", None)
    train_command.tasks().pop("popular", None)


def called() -> Any:
    """What the toy noted of its calls."""
    return sys.modules["toy"].CALLS


LOSS = """
CALLS = []
def loss(scores, block):
    CALLS.append(scores.shape)
    return -(scores * block.mask()).sum(1).mean() + scores.pow(2).mean()
"""

BATCHES = """
CALLS = []
class Halves:
    "Even examples, then odd ones."
    sampling = "independent"
    def __init__(self, n, *rest):
        self.n = n
        CALLS.append(n)
    def __len__(self):
        return 2
    def __iter__(self):
        return iter([torch.arange(0, self.n, 2), torch.arange(1, self.n, 2)])
"""

BLOCKS = """
CALLS = []
def blocks(graph, fanouts):
    "All neighbors, whatever the fan-outs."
    every = shoal.NeighborSampler(graph, [None] * len(fanouts))
    def sample(seeds, generator):
        CALLS.append(len(seeds))
        return every(seeds, generator)
    return sample
"""

RANKER = """
from dataclasses import dataclass
from shoal.rank.ranking import Ranking
CALLS = []
@shoal.ranker_kind("popular")
@dataclass(frozen=True, eq=False)
class Popular:
    "The most frequent labels, whatever the text."
    kind, features, lexical = "popular", ("popular",), False
    def fitted(self, model, known):
        return self
    def rank(self, query, k):
        CALLS.append(k)
        best = query.model.frequency.float().topk(k)
        n = len(query.texts)
        return [Ranking(best.values.repeat(n, 1), best.indices.repeat(n, 1))]
    def reasons(self, query, ids):
        return {}
    def with_labels(self, old, new, texts):
        return self
    def with_examples(self, model, known):
        return self
    def state_dict(self):
        return {}
    @staticmethod
    def of_state(state, model):
        return Popular()
rankers = [Popular()]
"""

ROW_RULE = """
from functools import partial
from shoal.core.optimizers import OptimizerInfo
CALLS = []
class Sign:
    "Each number moves by the learning rate, against the sign of its gradient."
    def __init__(self, lr):
        self.lr = lr
    def step(self, table, ids, grad):
        CALLS.append(len(ids))
        table[ids] -= self.lr * grad.sign()
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        pass
    def curvature_info(self, at=None):
        return OptimizerInfo("sgd", lr=self.lr)
encoder = partial(shoal.BagEncoder, dim=8, optimizer=Sign)
"""

ENCODER = """
from dataclasses import dataclass, field
from torch import nn
from torch.nn import functional
from shoal.text.transformer import tokens_of
CALLS = []

class Mean(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
    def forward(self, blocks, rows):
        return self.vectors(tokens_of(blocks[0], len(self.weight)))
    def vectors(self, tokens):
        bag = functional.embedding_bag(tokens.indices.long(), self.weight, tokens.indptr,
                                       include_last_offset=True, mode="sum")
        return functional.normalize(bag, dim=1)

@dataclass(frozen=True)
class Letters:
    "A vector per letter."
    lr: float = 0.05
    batch_size: int = 16
    warmup: int = 5
    def begin(self, documents, labels, *, seed, device, folder):
        generator = torch.Generator().manual_seed(seed)
        module = Mean(torch.randn(128, 8, generator=generator))
        encoder = OfLetters(module, torch.optim.Adam(module.parameters(), lr=self.lr))
        return encoder, encoder.documents(documents).stack(encoder.labels(labels))

@shoal.encoder_kind("letters")
@dataclass(frozen=True, eq=False)
class OfLetters:
    module: nn.Module
    optimizer: object = None
    table, words, dim, n_tokens = None, None, 8, 128
    spec = Letters()
    kind = "letters"
    def read(self, texts):
        return shoal.Texts.of(texts)
    def known(self, texts):
        return shoal.Csr.from_lists([[ord(c) % 128 for c in text] for text in texts], 128)
    def documents(self, texts):
        CALLS.append(len(texts))
        return self.known(texts.all())
    labels = documents
    def embed(self, tokens):
        with torch.no_grad():
            return self.module.vectors(tokens)
    embed_labels = embed
    def begin(self, documents, labels, **given):
        return self.spec.begin(documents, labels, **given)
    def without_fields(self, label_tokens):
        return None
    def load_trained(self, state):
        self.module.load_state_dict(state["model"])
        return OfLetters(self.module)
    def save(self, folder):
        torch.save(self.module.weight.detach(), folder / "letters.pt")
        return {"kind": "letters"}
    @staticmethod
    def open(folder, about, device):
        return OfLetters(Mean(torch.load(folder / "letters.pt", weights_only=True)))
    def export(self, folder, documents, labels):
        return []
"""

TEXT_FORMAT = """
from pathlib import Path
from shoal.data.formats.registry import text_format
from shoal.data.texts import label_data
CALLS = []
def read(path, encoding):
    CALLS.append(path)
    rows = [line.split(" <- ") for line in Path(path).read_text(encoding).splitlines()]
    return label_data([row[1] for row in rows], [row[0] for row in rows])
@text_format("arrows", read, suffixes=(".arrows",))
def write(data, path):
    path.write_text("".join(f"x <- {text}\\n" for text in data.train.texts.all()))
"""

GRAPH_FORMAT = """
from pathlib import Path
CALLS = []
@shoal.graph_format("ring", lambda source: str(source).endswith(".ring"))
def read(source):
    n = int(Path(source).read_text())
    CALLS.append(n)
    near = [[(i - 1) % n, (i + 1) % n] for i in range(n)]
    graph = shoal.Csr.from_lists(near, n)
    return shoal.GraphData("ring", graph, torch.eye(n), torch.arange(n) % 2)
"""

TASK = """
import json
from dataclasses import dataclass
from shoal.tasks.settings import Training
from shoal.models.base import Result
CALLS = []
@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    "Predict the most frequent label."
    most: int = 1
    "How many labels."
class Popular:
    def __init__(self, most):
        self.most = most
    def fit(self, data, *, out, **given):
        CALLS.append(str(data))
        data = shoal.load(data)
        return Result(out, "steps", 1, 0.0, 0.0, {}, {"labels": float(len(data.labels))})
@shoal.task("popular", Settings, model="toy:Popular")
def popular(settings):
    return Popular(settings.most)
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (LOSS, ["labels", "mugs.csv", *SMALL, "--loss", "toy:loss"]),
        (BATCHES, ["labels", "mugs.csv", *SMALL[:2], *SMALL[6:], "--batches", "toy:Halves"]),
        (BLOCKS, ["nodes", str(FROZEN / "data/nodes.npz"), *NODES, "--blocks", "toy:blocks"]),
        (RANKER, ["labels", "mugs.csv", *SMALL, "--rank", "toy:rankers"]),
        (ROW_RULE, ["labels", "mugs.csv", *SMALL[2:], "--encoder", "toy:encoder"]),
        (ENCODER, ["labels", "mugs.csv", *SMALL[2:], "--encoder", "toy:Letters"]),
        (TASK, ["toy:popular", "mugs.csv", "--json"]),
    ],
    ids=["loss", "batches", "blocks", "ranker", "row rule", "encoder", "task"],
)
def test_a_toy_in_one_place_trains_through_the_command(
    toys: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    words: list[str],
) -> None:
    """A user's own object, named as module:name, is what trains; nothing of shoal was changed."""
    monkeypatch.setattr("shoal.tasks.labels.FEWEST", 5)  # so that little data has an ensemble
    result = toys(code, "train", *words, "--out", "run")
    assert called() and result["test"]


@pytest.mark.parametrize(
    ("code", "name", "text", "words"),
    [
        (TEXT_FORMAT, "a.arrows", LABELS, ["labels", "a.arrows", *SMALL, "--loss", "toy:loss"]),
        (GRAPH_FORMAT, "a.ring", "40", ["nodes", "a.ring", *NODES, "--blocks", "toy:blocks"]),
    ],
    ids=["text format", "graph format"],
)
def test_a_format_in_one_place_is_read_by_the_command(
    toys: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    name: str,
    text: str,
    words: list[str],
) -> None:
    """A registered reader is found by the source's name; the flag imports the module."""
    from shoal.data import graph
    from shoal.data.formats import registry

    for formats in (graph.FORMATS, registry.FORMATS):
        monkeypatch.setattr(sys.modules[type(formats).__module__], "_unused", None, raising=False)
        for key in ("arrows", "ring"):
            monkeypatch.delitem(formats, key, raising=False)
    if name == "a.arrows":
        rows = [line.rsplit(",", 1) for line in text.splitlines()[1:]]
        text = "".join(f"{label} <- {words_}\n" for words_, label in rows)
    (tmp_path / name).write_text(text)
    extra = LOSS if "loss" in words[-1] else BLOCKS
    result = toys(extra.replace("CALLS = []\n", "") + code, "train", *words, "--out", "run")
    assert called() and result["test"]
    for formats in (graph.FORMATS, registry.FORMATS):
        for key in ("arrows", "ring"):
            formats.pop(key, None)


# -- the page ------------------------------------------------------------------------------------


def test_the_page_of_the_label_task_uses_public_names_alone() -> None:
    """From data to a trained predictor, the page imports the standard library and ``shoal``.

    What turns the command's settings into objects stands below a line of its own and also imports
    the base of settings.
    """
    source = (ROOT / "tasks" / "labels.py").read_text()
    page, line, _ = source.partition("# -- the command")
    assert line
    tree = ast.parse(source)
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    inside = {name for name in imported if name and name.split(".")[0] == "shoal"}
    assert inside == {"shoal", "shoal.tasks", "shoal.tasks.settings"}
    used = {
        node.attr
        for node in ast.walk(ast.parse(page))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "shoal"
    }
    assert {"Loader", "Job", "fit", "ShortlistSampler", "fit_ensemble"} <= used
    assert all(hasattr(shoal, name) for name in used)
    functions = [node for node in ast.parse(page).body if isinstance(node, ast.FunctionDef)]
    assert sum(node.end_lineno - node.lineno for node in functions) < 200  # pyright: ignore


@pytest.mark.whole
def test_the_page_gives_the_commands_bits(
    toys: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects by hand and flags of the command end in the same encoder, bit for bit."""
    from shoal.data.splits import folds
    from shoal.tasks import labels

    toys("CALLS = [1]", "train", "labels", "mugs.csv", *SMALL, "--out", "run")
    (saved,) = tmp_path.joinpath("run").glob("bag.safetensors")
    data = shoal.load("mugs.csv")
    parts = labels.Parts(encoder=shoal.BagEncoder(dim=8), batches=shoal.Clustered(16, 4))
    run, budget = shoal.Run.create(tmp_path / "by hand", {}), shoal.Budget(epochs=2)
    held_out = folds(data, 0.5, 0, labels.ENOUGH)
    predictor, _ = labels.train(data, held_out, run, parts, budget=budget)
    rows = checkpoint.load(saved)["rows"]
    assert torch.equal(predictor.encoder.rows, rows) and rows.abs().sum() > 0


# -- who knows what ------------------------------------------------------------------------------


@cache
def parsed() -> dict[str, ast.Module]:
    """Modules of the package by their path."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def sources(*left_out: str) -> Iterator[tuple[str, ast.Module]]:
    """Those whose path does not begin so."""
    return ((name, tree) for name, tree in parsed().items() if not name.startswith(left_out))


@cache
def names_in(tree: ast.AST) -> set[str]:
    """Every name that code or an annotation uses, those in strings of annotations included."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def settings_classes() -> set[str]:
    """Names of the dataclasses that the command fills."""
    classes = {settings for settings, _ in cli.VERBS.values()}
    classes |= {task.settings for task in train_command.tasks().values()}
    known: set[type] = set()
    waiting = list(classes)
    while waiting:
        one = waiting.pop()
        if one in known or not is_dataclass(one):
            continue
        known.add(one)
        waiting += [base for base in one.__mro__ if is_dataclass(base)]
        waiting += [type(x.default) for x in fields(one) if is_dataclass(type(x.default))]
    found = {one.__name__ for one in known}
    assert {"Training", "LabelSettings", "EncoderSettings", "NodeSettings"} <= found
    return found


def test_settings_of_the_command_stay_in_the_command() -> None:
    """No module but those of cli/ and the tasks' own names a dataclass that the command fills."""
    classes = settings_classes()
    offences = {
        (name, alias.name)
        for name, tree in sources("cli/", "tasks/", "__init__.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(("shoal.cli", "shoal.tasks"))
        for alias in node.names
        if alias.name in classes
    }
    assert offences == set()


def test_settings_classes_are_defined_for_the_command_alone() -> None:
    """The base of settings lies where tasks may import it, and knows no task."""
    tree = ast.parse(inspect.getsource(task_settings))
    assert not {"LabelSettings", "NodeSettings", "LinkSettings"} & names_in(tree)


# Classes that implement a protocol: text encoders, rankers, row rules, tasks' models.
IMPLEMENT = {
    "text/bag.py": {"Bag"},
    "text/transformer.py": {"Transformer"},
    "rank/rankers.py": {
        "EncoderRanker", "ClassifierRanker", "NeighborRanker", "PlainRanker", "WordRanker",
        "NameRanker",
    },
    "fetch/update.py": {"RowSGD", "RowAdagrad", "RowAdam"},
}  # fmt: skip


def test_no_code_asks_for_the_class_of_an_object_behind_a_protocol() -> None:
    """No isinstance on, and no name of, such a class outside its file.

    Exceptions: the list of public names, the pages and defaults that choose an object (a name that
    is called or passed on, never asked about), and the reader of old runs, which makes them.
    """
    for home, classes in IMPLEMENT.items():
        for name, tree in sources(home):
            asked = [
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("isinstance", "issubclass")
                and names_in(node.args[1]) & classes
            ]
            assert not asked, f"{name} asks for {classes}"
            strings = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            may_name = ("__init__.py", "tasks/", "models/", "text/bag.py", "rank/classifiers.py")
            assert name.startswith(may_name) or not strings & classes, name
            if not name.startswith(may_name):
                assert not names_in(tree) & classes, f"{name} names {names_in(tree) & classes}"
