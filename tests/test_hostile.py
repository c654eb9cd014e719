"""A file or folder from a stranger is data: read as meant, or refused in one line that names it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import shoal as library
from shoal.core import checkpoint
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs.pickled import unpickle
from shoal.text.vocabulary import Vocabulary, learn
from tests import hostile
from tests.command import shoal
from tests.graphs import write_links
from tests.tiny import save_tiny_bert

ROOT = Path(__file__).parents[1]
SLOW = pytest.mark.slow
TEXTS = [f"{a} {b}" for a in ("red", "blue", "old", "new") for b in ("mug", "hat", "cup")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on labels, made by the command."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = "".join(f"{text} {i},{text.split()[0]}\n" for i in range(60) for text in TEXTS)
    (folder / "data.csv").write_text("text,labels\n" + rows)
    words = [
        "--dim",
        4,
        "--batch-size",
        32,
        "--cluster-size",
        8,
        "--steps",
        2,
        "--valid",
        0.45,
        "--device",
        "cpu",
    ]
    made = shoal(
        "train", "labels", folder / "data.csv", *words, "--device", "cpu", "--out", folder / "run"
    )
    assert made.status == 0, made.err
    return folder / "run"


@pytest.fixture
def evil(run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "evil"))


def refused(*words: object) -> str:
    """The one line with which a command ends."""
    found = shoal(*words)
    assert found.refused, (found.status, found.err)
    return found.err


def predicted(folder: Path, tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("red mug\n")
    return refused("predict", folder, tmp_path / "texts.txt")


# -- anything, at random -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readers", "inputs"),
    [
        ("graph.npz planetoid edges.txt csr", 6),
        pytest.param(" ".join(hostile.READERS), 40, marks=SLOW),
    ],
)
@pytest.mark.whole
def test_whatever_is_changed_it_is_read_or_refused(readers: str, inputs: int) -> None:
    """In bounded memory and time, in one line that names the source (tests/hostile.py)."""
    names = [name for name in hostile.READERS if name in readers]
    words = [sys.executable, "-m", "tests.hostile", *names, "--inputs", str(inputs)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    assert {name for ended in found.values() for name in ended} <= {"read", "refused"}, told.stderr


# -- checkpoints -----------------------------------------------------------------------------------


def _cut(state: Any) -> None:
    state["label_tokens"]["indptr"][1] = 1_000_000


def _narrow(state: Any) -> None:
    state["rankers"][-2]["examples"]["n_cols"] = 1


def _far(state: Any) -> None:
    state["rankers"][-1]["singulars"][0] = 2**40


def _nan(state: Any) -> None:
    state["rankers"][-4]["rows"][0] = float("nan")


def _text(state: Any) -> None:
    state["truth"]["indices"] = "all"


@pytest.mark.parametrize("change", [_cut, _narrow, _far, _nan, _text])
@pytest.mark.whole
def test_arrays_of_a_checkpoint_are_looked_at(
    evil: Path, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    """Its checksum is right, as anybody can make it; what indexes with the arrays believes them."""
    path = evil / "model.safetensors"
    state = json_like(checkpoint.load(path))
    change(state)
    checkpoint.save(path, state)
    assert str(evil) in predicted(evil, tmp_path)


def json_like(state: Any) -> Any:
    """A state whose tensors may be written to."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: json_like(value) for key, value in state.items()}
    return [json_like(x) for x in state] if isinstance(state, list) else state


def test_a_header_cannot_ask_for_memory(tmp_path: Path) -> None:
    """A network that model.json makes a billion wide is none of the weights that are there."""
    graph = write_links(tmp_path / "graph.npz", n=60)
    model = library.NodeModel(hidden=4, fanouts=(2,), device="cpu")
    model.fit(str(graph), steps=1)
    model.save(tmp_path / "model")
    header = tmp_path / "model" / "model.json"
    about = json.loads(header.read_text())
    about["network"]["hidden"] = 10**9
    header.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"expected floats \[4, 1000000000\]"):
        library.open(tmp_path / "model")


# -- tokenizers and transformers -----------------------------------------------------------------


@pytest.mark.parametrize("texts", [["red cup", "red hat"] * 4, ["東京都の地図", "京都の地図"] * 6])
def test_a_tokenizer_comes_back_from_its_words(texts: list[str]) -> None:
    """The library is given words alone, and makes the same JSON of them again."""
    vocabulary = learn(texts, n_pieces=60)
    again = Vocabulary.of_state(vocabulary.state_dict())
    assert again.tokenizer.to_str() == vocabulary.tokenizer.to_str()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}),
        ("truncation", {"max_length": 2**62, "stride": 2**61, "strategy": "LongestFirst"}),
        ("post_processor", {"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["y", 0]}),
        ("added_tokens", [{"id": 2**31, "content": "x", "special": True}]),
        ("model", {"type": "BPE", "vocab": {}, "merges": []}),
    ],
)
def test_a_tokenizer_that_shoal_does_not_write_is_refused(name: str, value: Any) -> None:
    """Patterns without an end, sizes that abort, other models: nothing of them is built."""
    state = learn(["red cup", "red hat"], n_pieces=30).state_dict()
    facts = json.loads(bytes(state["tokenizer"].numpy())) | {name: value}
    text = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    with pytest.raises(InputError, match="tokenizer: expected"):
        Vocabulary.of_state(state | {"tokenizer": text})


def _asks_the_network(folder: Path) -> None:
    about = {"model_type": "detr", "backbone": "someone/repo", "use_pretrained_backbone": True}
    (folder / "config.json").write_text(json.dumps(about))


def _leaves(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../w.dat"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _claims(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))


def _widens(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10**9}))


@pytest.mark.parametrize("change", [_asks_the_network, _leaves, _claims, _widens])
def test_a_transformer_folder_stays_what_it_is(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no file but its own, no memory that its weights do not bring."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    folder = save_tiny_bert(tmp_path / "bert")
    change(folder)
    with pytest.raises(InputError, match=str(folder)):
        library.TransformerEncoder(str(folder), max_length=8).begin(
            library.Texts.of(["red"]), library.Texts.of(["cup"]), seed=0, device="cpu", folder=None
        )


# -- folders ---------------------------------------------------------------------------------------


def test_a_link_out_of_a_run_is_not_followed(evil: Path, tmp_path: Path) -> None:
    """Neither its log nor its labels; every command that opens a run refuses."""
    (evil / "log.jsonl").unlink()
    (evil / "log.jsonl").symlink_to("/etc/hostname")
    assert "a link that leaves it" in predicted(evil, tmp_path)
    assert "a link that leaves it" in refused("export", evil, tmp_path / "out")
    assert "a link that leaves it" in refused("report", evil)
    assert not (tmp_path / "out").exists()


def test_a_spoiled_line_of_the_log_is_passed_over(evil: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, brackets without end, a line that is no event, one cut short."""
    before = len(library.Run.open(evil).log())
    with (evil / "log.jsonl").open("ab") as file:
        file.write(b"\xff\n" + b"[" * 100_000 + b'\n{"step": 1}\n{"event": 7}\n\0\0\n{"event": "te')
    assert len(library.Run.open(evil).log()) == before
    for words in (("export", evil, tmp_path / "out"), ("report", evil)):
        found = shoal(*words)
        assert found.status == 0, found.err


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02K\x01r\x00\x00\x00 .",  # a memo of 2^29 places
        b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x08\x85R.",  # memory that the file does not bring
        b"\x80\x02cscipy.sparse.csr\ncsr_matrix\nN}X\x03\x00\x00\x00csrK\x01s\x86b.",  # setattr
        b"\x80\x02]" + b"\x85" * 50_000 + b"K\x01s.",  # a key of nested tuples
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray of 2^63 bytes
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",  # a dtype of objects
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02(K\x01K\x02.",
        b"\x80\x02\x85.",
        b"",
    ],
)
def test_a_pickle_runs_nothing_and_takes_nothing(tmp_path: Path, code: bytes) -> None:
    """Each in one line, or as the number that it holds."""
    path = tmp_path / "ind.x.y"
    path.write_bytes(code)
    try:
        assert isinstance(unpickle(path), int)
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_a_pickle_of_data_is_read(tmp_path: Path, protocol: int) -> None:
    """Arrays of either byte order and either order of axes, matrices, neighbor lists."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = rows, rows.T, rows.astype(">f8"), rows > 2
    for i, part in enumerate([*arrays, {0: [1, 2], 1: []}, csr_matrix(rows)]):
        path = tmp_path / str(i)
        path.write_bytes(pickle.dumps(part, protocol=protocol))
        found = unpickle(path)
        if isinstance(found, Csr):
            assert found.to_dense().tolist() == rows.tolist()
        elif isinstance(found, np.ndarray):
            assert found.tolist() == part.tolist() and found.dtype.isnative
        else:
            assert found == part


def test_a_header_that_no_line_carries_is_refused(tmp_path: Path) -> None:
    """Labels have memory each, whether they occur or not."""
    path = tmp_path / "one.txt"
    path.write_text("3 10 134217728\n0 1:1\n1 2:1\n2 3:1\n")
    assert "expected labels numbered from 0" in refused("data", path)
    folder = tmp_path / "xc"
    folder.mkdir()
    for split in ("trn", "tst"):
        (folder / f"{split}.json").write_text('{"uid": "1", "title": "red"}\n')
        (folder / f"{split}_X_Y.txt").write_text("1 2147483647\n5:1\n")
    assert "expected labels numbered from 0" in refused("data", folder)


def test_arrays_of_other_kinds(tmp_path: Path) -> None:
    """The other byte order is read as it is meant; 2^62 columns are refused."""
    edges, x = np.array([[0, 1, 2], [1, 2, 0]]), np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "a.npz", edge_index=edges.astype(">i8"), x=x.astype(">f4"))
    np.savez(tmp_path / "b.npz", edge_index=edges, x=x.astype("f4"))
    one, two = (library.data.graphs.read(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.graph.indices, two.graph.indices)
    sparse = {"x_indptr": np.arange(4), "x_indices": np.zeros(3, int), "x_data": np.ones(3)}
    np.savez(tmp_path / "c.npz", edge_index=edges, x_shape=np.array([3, 2**62]), **sparse)
    assert "c.npz: x_shape: expected" in refused("data", tmp_path / "c.npz")


def test_texts_to_predict_are_read_as_all_texts(run: Path, tmp_path: Path) -> None:
    """Half of a character, brackets without end, a name that no file system takes."""
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud800 item"}\n')
    (tmp_path / "deep.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n")
    for name in ("half.jsonl", "deep.jsonl"):
        assert f"{name}:1: expected" in refused("predict", run, tmp_path / name)
    assert "expected text in the encoding of" in refused("query", "\udcff red", "--run", run)
    assert "File name too long" in refused("data", "n" * 300)


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["/nonexistent.csv", "DATA"])
def test_training_leaves_a_folder_of_somebody_else_alone(
    run: Path, tmp_path: Path, source: str
) -> None:
    """Whatever its files are called, and whether the source exists or not."""
    names = ["best.safetensors", "rows.npy", "log.jsonl", "tracked.json", "indexes/years"]
    for name in [*names, "settings.json"]:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"precious": 1}')
    data = str(run.parent / "data.csv") if source == "DATA" else source
    told = refused("train", "labels", data, "--out", tmp_path / "project")
    assert ("a new or an empty folder" in told) == (source == "DATA")
    found = [x for x in (tmp_path / "project").rglob("*") if x.is_file()]
    assert len(found) == 6 and {x.read_text() for x in found} == {'{"precious": 1}'}


def test_an_export_leaves_files_of_somebody_else_alone(evil: Path, tmp_path: Path) -> None:
    """An earlier export is replaced, one to which a file was added is not."""
    for _ in range(2):
        assert shoal("export", evil, tmp_path / "out").status == 0
    (tmp_path / "out" / "deploy.sh").write_text("precious")
    assert "deploy.sh" in refused("export", evil, tmp_path / "out")
    assert (tmp_path / "out" / "deploy.sh").read_text() == "precious"


@pytest.mark.whole
def test_one_training_at_a_time(run: Path, tmp_path: Path) -> None:
    """The second one is refused, and says which process trains there."""
    words = ["train", "labels", str(run.parent / "data.csv"), "--out", str(tmp_path / "both")]
    words += ["--dim", "4", "--batch-size", "32", "--cluster-size", "8", "--valid", "0"]
    words += ["--device", "cpu"]
    first = [sys.executable, "-m", "shoal", *words, "--epochs", "100000"]
    with subprocess.Popen(first, stderr=subprocess.DEVNULL) as one:
        while not (tmp_path / "both" / "log.jsonl").exists():
            assert one.poll() is None
        assert f"got one of process {one.pid} on " in refused(*words)
        one.kill()
    again = shoal(*words, "--steps", 1, "--resume")
    assert again.status == 0, again.err
    assert "nothing to resume, training starts from the beginning" in again.err
    events = [line["event"] for line in library.Run.open(tmp_path / "both").log()]
    assert events.count("start") == 1
    assert not [x for x in tmp_path.rglob(".*shoal*")]


def test_every_file_has_the_mode_of_the_umask(run: Path, tmp_path: Path) -> None:
    """Weights, too: a service of another account opens them."""
    assert shoal("export", run, tmp_path / "out").status == 0
    before = os.umask(0)
    os.umask(before)
    files = [x for folder in (run, tmp_path / "out") for x in folder.rglob("*") if x.is_file()]
    assert {x.stat().st_mode & 0o777 for x in files} == {0o666 & ~before}
