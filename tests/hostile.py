"""Files as a stranger or a bad disk may make them: valid ones changed at random, and read.

``python -m tests.hostile [READER …] --inputs 400`` makes so many changed copies of a valid source
for each reader and reads each by the command, in a fork of this process whose memory and processor
time are bounded. A file is changed as what it is: bits of its bytes, tensors of a checkpoint (whose
checksum is made right again), arrays of an ``.npz``, values of JSON, words of a text, objects of a
pickle. Allowed are success, and status 2 with one line that names the source. The last line on
standard output is JSON: per reader, how many inputs ended how.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from safetensors.torch import load_file, save_file

import shoal
from shoal.cli import main as cli
from shoal.core import checkpoint
from shoal.core.errors import InputError
from shoal.data.formats import FORMATS, xc
from shoal.data.formats import convert as write_as
from tests.graphs import write_links
from tests.planted import planted_graph, planted_labels

FROZEN = Path(__file__).parent / "frozen"
_GIB = 2**30
_SECONDS = 20  # of processor time
TEXTS = "w1 w2\nw3 w5 w7\n"


# -- changes ---------------------------------------------------------------------------------------


def change(path: Path, chance: random.Random) -> None:
    """Change a file as what it is, or in one case of four its bytes."""
    whole = path.read_bytes()
    packed = path.suffix == ".gz" and chance.random() < 0.8
    data = gzip.decompress(whole) if packed else whole
    name = path.name.removesuffix(".gz")
    ways: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".safetensors": _tensors,
        ".npz": _npz,
        ".npy": _npy,
        ".json": _json,
        ".jsonl": _text,
    }
    pickled = name.startswith("ind.") and not name.endswith(".index")
    way = ways.get(Path(name).suffix, _pickle if pickled else _text)
    try:
        new = _bytes(data, chance) if chance.random() < 0.25 else way(data, chance)
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError, InputError, OSError):
        new = _bytes(data, chance)  # that change cannot be written at all
    path.unlink()
    path.write_bytes(gzip.compress(new, mtime=0) if packed else new)


def _bytes(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    way = chance.randrange(5)
    at = chance.randrange(len(found) + 1)
    if way == 0:
        return bytes(found[:at])
    if way == 1:
        found[at:at] = chance.randbytes(chance.choice([1, 8, 100]))
    elif way == 2:
        found[at : at + 64] = bytes(len(found[at : at + 64]))
    elif way == 3:
        found[at:at] = found[: min(at, 1000)]
    else:
        for _ in range(chance.choice([1, 1, 3, 20]) if found else 0):
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


_PLAIN = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**40, 2**62, 2**70, -(2**63), 10**400, 1e308, 0.5,
    float("nan"), float("inf"), "", "x", "\ud800", "a\nb", "w" * 100_000, [], {}, [1], ["x"],
    {"x": 1}, [[]], {"#0": 1}, "module:name",
]  # fmt: skip


def _value(chance: random.Random, old: Any) -> Any:
    """Another value in the place of one: near it, or of another kind."""
    if isinstance(old, (int, float)) and not isinstance(old, bool) and chance.random() < 0.4:
        return chance.choice([old + 1, old - 1, -old, old * 1000, old * 2])
    if chance.random() < 0.05:
        deep: Any = 1
        for _ in range(chance.choice([50, 900])):
            deep = [deep]
        return deep
    return chance.choice(_PLAIN)


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    # of a long list some stand for all
    some = [key for i, key in enumerate(keys) if i < 12]
    return [
        *([path] if path else []),
        *(x for key in some for x in _leaves(node[key], (*path, key))),
    ]


def _put(tree: Any, path: tuple[Any, ...], value: Any, remove: bool) -> None:
    for key in path[:-1]:
        tree = tree[key]
    if remove:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def _got(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _json(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return b"[" * 100_000 + data
    try:
        tree = json.loads(data)
    except ValueError:
        return _text(data, chance)
    path = chance.choice(_leaves(tree) or [()])
    if not path:
        return json.dumps(_value(chance, tree)).encode()
    _put(tree, path, _value(chance, _got(tree, path)), chance.random() < 0.15)
    return json.dumps(tree).encode()


def _text(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    line, way = lines[at], chance.randrange(6)
    if line.startswith(b"{") and way < 4:
        lines[at] = _json(line, chance)
    elif way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, chance.choice(lines))
    elif way == 2:
        lines.insert(at, chance.choice([b"", b"\0" * 30, b"\xff\xfe", b"[" * 100_000, b"x" * 300]))
    else:
        for mark in chance.sample([b"\t", b" ", b",", b":", b"|", b"::", b"\t"], 7):
            words = line.split(mark)
            if len(words) > 1:
                break
        else:
            mark, words = b" ", [line]
        junk = [
            b"-1", b"99999999999", b"1e400", b"nan", b"2147483647", b"134217728", b"0", b"",
            b"x", b'"', b"1:2:3", "²".encode(), b"\xff", b"9" * 5000, b"0:0", b"-0.5",
            b"\xed\xa0\x80",
        ]  # fmt: skip
        words[chance.randrange(len(words))] = chance.choice(junk)
        lines[at] = mark.join(words)
    return b"\n".join(lines)


_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16,
    torch.uint64, torch.float8_e4m3fn,
]  # fmt: skip


def _tensor(chance: random.Random, old: torch.Tensor) -> torch.Tensor:
    """Another tensor: of another dtype, shape, order or value."""
    way, new = chance.randrange(9), old.clone()
    if way == 0:
        return new.to(chance.choice(_DTYPES))
    if way == 1:
        shapes = [(-1,), (1, -1), (-1, 1), (*old.shape, 1)]
        return new.reshape(chance.choice(shapes))
    if way == 2:
        return chance.choice([new[:0], new[:-1], new[: len(new) // 2], torch.cat([new, new[:1]])])
    if way == 3:
        return new.flip(0) if new.dim() else new.reshape(1)
    if way == 4 and new.numel() > 1:
        order = torch.tensor(chance.sample(range(new.numel()), new.numel()))
        return new.flatten()[order].reshape(new.shape)
    if way == 5:
        return torch.tensor(chance.choice([0, 1.0, 2**40]))
    if new.numel() == 0:
        return torch.ones(3, dtype=new.dtype)
    flat = new.view(-1)
    at = chance.choice([0, flat.numel() - 1, chance.randrange(flat.numel())])
    if new.is_floating_point():
        flat[at] = chance.choice([float("nan"), float("inf"), -float("inf"), 1e30, -1.0, 0.0])
    elif new.dtype == torch.bool:
        flat.logical_not_()
    else:
        most = torch.iinfo(new.dtype)
        near = [-1, 0, 1, most.max, most.min, len(flat), 1_000_000 % most.max]
        flat[at] = max(most.min, min(most.max, chance.choice([*near, int(flat.max()) + 1])))
    return new


def _tensors(data: bytes, chance: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(data)
        try:
            tree: Any = checkpoint.load(path)
        except InputError:
            tree = dict(load_file(path))
            name = chance.choice(list(tree))
            if chance.random() < 0.15:
                del tree[name]
            else:
                tree[name] = _tensor(chance, tree[name]).contiguous()
            save_file(tree, path)
            return path.read_bytes()
        where = chance.choice(_leaves(tree))
        old = _got(tree, where)
        whole = isinstance(old, torch.Tensor) and chance.random() < 0.75
        new = _tensor(chance, old) if whole else _value(chance, old)
        _put(tree, where, new, chance.random() < 0.12)
        checkpoint.save(path, tree)
        return path.read_bytes()


def _array(chance: random.Random, old: np.ndarray) -> np.ndarray:
    way = chance.randrange(4)
    if way == 0:
        kinds = [
            ">f4",
            ">i8",
            "f2",
            "f8",
            "g",
            "c8",
            "u2",
            "u4",
            "u8",
            "i1",
            "?",
            "S3",
            "U3",
            "M8[s]",
        ]
        return old.astype(chance.choice(kinds))
    if way == 1:
        return np.array(chance.choice([2**62, 2**40, 2**31, -1, 10**7, 3, 0.5]))
    if way == 2 and old.dtype.kind in "iu":
        return np.full_like(old, chance.choice([2**62, 2**31, 0, 1, 5]))
    return _tensor(chance, torch.from_numpy(old.copy())).numpy()


def _npz(data: bytes, chance: random.Random) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = chance.choice(list(arrays))
    if chance.random() < 0.15:
        del arrays[name]
    else:
        arrays[name] = _array(chance, arrays[name])
    out = io.BytesIO()
    (np.savez if chance.random() < 0.5 else np.savez_compressed)(out, **arrays)
    return out.getvalue()


def _npy(data: bytes, chance: random.Random) -> bytes:
    out = io.BytesIO()
    np.save(out, _array(chance, np.load(io.BytesIO(data))))
    return out.getvalue()


def _pickle(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:  # instructions that make, name or call something
        code = [
            b"r\0\0\0 ", b"cnumpy\nndarray\n", b"cos\nsystem\n", b"J\0\0\0\x08\x85", b"R", b"b",
            b"cscipy.sparse.csr\ncsr_matrix\n", b"N}X\3\0\0\0csrK\1s\x86b", b"(",
            b"\x85" * 100_000, b"2s", b"e", b"h\xff",
            b"\x96\0\0\0\0\0\0\0\x7f", b"\x8b\xff\xff\xff\x7f",
            b"\x93", b"0",
        ]  # fmt: skip
        at = chance.choice([2, len(data) - 1, chance.randrange(len(data))])
        return data[:at] + chance.choice(code) + data[at:]
    found = pickle.loads(data, encoding="latin1")  # our own, written a moment ago
    if isinstance(found, np.ndarray):
        kinds: list[Any] = [found.astype(object), _array(chance, found), [1, 2], {"a": 1}, found.T]
        found = chance.choice(kinds)
    elif isinstance(found, dict):
        key = chance.choice(list(found))
        found[key] = chance.choice([[10**9], [-1], ["x"], 3, [[1]], [2**70], None])
    else:
        name = chance.choice(["data", "indices", "indptr", "_shape"])
        old = getattr(found, name)
        shapes = [
            (2**62, 2**62),
            (1, 1),
            (-1, 2),
            (3,),
            "x",
            (old[0], 1) if name == "_shape" else 0,
        ]
        found.__dict__[name] = chance.choice(shapes) if name == "_shape" else _array(chance, old)
    return pickle.dumps(found, protocol=2)


# -- sources ---------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """A way to read.

    Attributes:
        source: makes a valid source at a path.
        words: of the command; SOURCE and TEXTS stand for the changed source and a file of texts.
        keep: of the source's files, those that are changed by their names' beginnings; all if none.
    """

    source: Callable[[Path], Any]
    words: str
    keep: tuple[str, ...] = ()


_TRAIN = (
    "train labels DATA --dim 8 --batch-size 60 --cluster-size 6 --device cpu "
    "--steps 2 --valid 0.45 --keep-resume --out SOURCE"
)


def _labels_data(path: Path) -> Path:
    data = path.with_name("labels-data")
    if not data.exists():
        xc.write(planted_labels(n=600, n_labels=16, noise=0.3), data)
    return data


def _label_model(path: Path) -> None:
    places = {"DATA": str(_labels_data(path)), "SOURCE": str(path)}
    command([places.get(word, word) for word in _TRAIN.split()])


def _feature_model(path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(120, 9))
    parts: dict[str, Any] = {"encoder": shoal.BagEncoder(dim=8), "batches": shoal.Random(60)}
    model = shoal.LabelModel(**parts, combiner=shoal.NetworkCombiner(epochs=1), device="cpu")
    model.fit(x, [str(i % 6) for i in range(120)], out=path, steps=2, valid=0.45)


def _features(path: Path) -> None:
    """Files of features, one of which is changed at a time."""
    path.mkdir()
    x = np.random.default_rng(0).normal(size=(4, 9)) * (np.arange(36).reshape(4, 9) % 3 > 0)
    np.save(path / "a.npy", x)
    scipy.sparse.save_npz(path / "b.npz", scipy.sparse.csr_matrix(x))
    (path / "c.txt").write_text("3 9 6\n0,2 1:0.5 4:1\n1 2:1\n3 3:1\n")


def _transformer(path: Path) -> None:
    encoder = shoal.TransformerEncoder(str(FROZEN / "data" / "bert"), max_length=16)
    model = shoal.LabelModel(
        encoder=encoder, batches=shoal.Random(60), classifiers=None, device="cpu"
    )
    model.fit(str(_labels_data(path)), out=path, steps=2)


def _node_model(path: Path) -> None:
    graph = write_links(path.with_name("graph.npz"), n=80)
    shoal.NodeModel(hidden=4, fanouts=(3, 2), device="cpu").fit(str(graph), out=path, steps=2)


def _link_model(path: Path) -> None:
    graph = write_links(path.with_name("plain.npz"), features=False, n=80)
    shoal.LinkModel(hidden=4, fanouts=(3,), device="cpu").fit(str(graph), out=path, steps=2)


def _planetoid(path: Path) -> None:
    from scipy.sparse import csr_matrix

    path.mkdir()
    data, rng = planted_graph(n=60, classes=3, degree=4, dim=6), np.random.default_rng(0)
    y = np.eye(3, dtype=np.int32)[data.target.numpy()]
    x = csr_matrix(rng.random((60, 6), dtype=np.float32))
    ends = data.graph.indptr.tolist()
    neighbors = defaultdict(list)
    for i in range(60):
        neighbors[i] = data.graph.indices[ends[i] : ends[i + 1]].tolist()
    parts = {
        "y": y[:9], "x": x[:9], "allx": x[:50], "ally": y[:50], "tx": x[50:], "ty": y[50:],
        "graph": neighbors,
    }  # fmt: skip
    for name, part in parts.items():
        (path / f"ind.tiny.{name}").write_bytes(pickle.dumps(part, protocol=2))
    (path / "ind.tiny.test.index").write_text("".join(f"{i}\n" for i in range(50, 60)))


def _arrays(path: Path) -> None:
    write_links(path, n=60)


def _safetensors(path: Path) -> None:
    found = write_links(path.with_suffix(".npz"), n=60)
    with np.load(found) as file:
        save_file({name: torch.from_numpy(array) for name, array in file.items()}, path)


def _edges(path: Path) -> None:
    path.write_text("".join(f"{i} {(i * 7 + 3) % 50}\n" for i in range(50)))


def _csr(path: Path) -> None:
    planted_graph(n=60, classes=3, degree=4, dim=6).graph.save(path)


def _folders(path: Path) -> None:
    """A data set in every format of texts, one of which is changed at a time."""
    data = path.with_name("texts-data")
    xc.write(planted_labels(n=40, n_labels=6), data)
    path.mkdir()
    for name, form in FORMATS.items():
        if name not in ("xc", "bow"):
            write_as(str(data), path / f"{name}{form.suffix or ''}", name)
    shutil.copytree(data, path / "xc")
    (path / "bow.txt").write_text("3 10 4\n0,2 1:0.5 4:1\n1 2:1\n3 3:1\n")


def _first_layout(path: Path) -> None:
    shutil.copytree(FROZEN / "export", path)


def _texts(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_text(TEXTS)
    (path / "b.csv").write_text("text,labels\nw1 w2,a\nw3,b\n")
    (path / "c.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')
    (path / "d.json").write_text('{"uid": "1", "title": "w1", "content": "w2"}\n')


def _settings(path: Path) -> None:
    path.write_text('task = "labels"\nsource = "wordnet"\nepochs = 1\nbatch-size = 64\n')


_PLAN = "--width 16 --host-gib 1 --batch-size 4"
READERS = {
    "model": Reader(_label_model, "predict SOURCE TEXTS --k 3", ("model", "bag", "lab", "exa")),
    "resume": Reader(_label_model, f"{_TRAIN} --resume", ("last", "settings")),
    "log": Reader(_label_model, "report SOURCE", ("log", "settings")),
    "first layout": Reader(
        _first_layout,
        "predict SOURCE TEXTS --k 3",
        ("lex", "fused", "best", "sett", "export", "rec"),
    ),
    "transformer": Reader(_transformer, "predict SOURCE TEXTS --k 3"),
    "nodes": Reader(_node_model, "predict SOURCE IDS"),
    "links": Reader(_link_model, "predict SOURCE IDS"),
    "planetoid": Reader(_planetoid, "data SOURCE"),
    "graph.npz": Reader(_arrays, "data SOURCE"),
    "graph.safetensors": Reader(_safetensors, "data SOURCE"),
    "edges.txt": Reader(_edges, f"plan SOURCE {_PLAN}"),
    "csr": Reader(_csr, f"plan SOURCE {_PLAN}"),
    "formats": Reader(_folders, "data ONE"),
    "texts": Reader(_texts, "predict MODEL ONE --k 3"),
    "feature model": Reader(
        _feature_model, "predict SOURCE FEATURES --k 3", ("model", "bag", "lab")
    ),
    "features": Reader(_features, "predict FEATURE_MODEL ONE --k 3"),
    "run.toml": Reader(_settings, "train --config SOURCE --help"),
}


# -- reading ---------------------------------------------------------------------------------------


def forked(work: Callable[[], Any], out: Path | None = None, bound: bool = True) -> int:
    """Do the work in a child whose memory and time are bounded; return what ``wait`` says.

    Args:
        work: returns the exit status, or raises.
        out: a folder for standard output and error.
        bound: whether to bound it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if out is not None:
                for number, name in ((1, "out"), (2, "err")):
                    handle = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(handle, number)
            if bound:
                held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + 2 * _GIB, held + 2 * _GIB))
                resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            status = work() or 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    deadline = time.monotonic() + 8 * _SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGXCPU)
            os.waitpid(pid, 0)
            return signal.SIGXCPU
        time.sleep(0.002)


def command(words: list[str], modules: Path | None = None) -> None:
    """Run the command in this process; then write down, if asked, what it has imported."""
    sys.argv = ["shoal", *words]
    try:
        cli.main()
    finally:
        if modules is not None:
            modules.write_text("\n".join(sys.modules))


def outcome(status: int, err: str, names: list[str]) -> str:
    """How a command ended: ``read``, ``refused``, or what it should not have done."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "time" if number == signal.SIGXCPU else f"signal {signal.Signals(number).name}"
    code = os.WEXITSTATUS(status)
    if code == 0:
        return "read"
    lines = err.splitlines()
    if "Traceback" in err or code != 2:
        return "traceback"
    if len(lines) != 1:
        return "several lines"
    return "refused" if any(name in err for name in names) else "unnamed"


class World:
    """Valid sources, made once, and changed copies of them.

    Args:
        home: a folder for all of them.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "texts.txt").write_text(TEXTS)
        (home / "ids.txt").write_text("0\n5\n")
        np.save(home / "features.npy", np.eye(3, 9))
        self.made: dict[Any, Path] = {}

    def valid(self, make: Callable[[Path], Any], name: str) -> Path:
        """The source that a function makes."""
        if make not in self.made:
            suffix = Path(name).suffix
            path = self.home / f"{make.__name__.strip('_')}{suffix}"
            status = forked(lambda: make(path), self.home, bound=False)
            assert status == 0, (self.home / "err").read_text()
            self.made[make] = path
        return self.made[make]

    def prepare(self, name: str) -> None:
        """Read the valid source once, and import here what that took, so that no child does."""
        status, err = self._run(name, self.valid(READERS[name].source, name))
        assert status == 0, err
        for module in (self.home / "modules").read_text().split():
            try:
                importlib.import_module(module)
            except Exception:  # parts of packages that only their package imports
                continue

    def read(self, name: str, seed: int) -> tuple[str, str]:
        """Change and read one source; returns how that ended, and standard error."""
        reader, chance = READERS[name], random.Random(f"{name} {seed}")
        valid = self.valid(reader.source, name)
        source = self.home / f"evil{valid.suffix}"
        if source.is_dir():
            shutil.rmtree(source)
        if valid.is_dir():
            shutil.copytree(valid, source)
        else:
            shutil.copy(valid, source)
        files = sorted(x for x in [source, *source.rglob("*")] if x.is_file())
        kept = [x for x in files if x.relative_to(source).as_posix().startswith(reader.keep or "")]
        one = chance.choice(kept or files)
        change(one, chance)
        status, err = self._run(name, source, source.joinpath(*one.relative_to(source).parts[:1]))
        return outcome(status, err, [str(source)]), f"{one.relative_to(self.home)}: {err[-600:]}"

    def _run(self, name: str, source: Path, one: Path | None = None) -> tuple[int, str]:
        """Read a source, or one of its files: the status, and standard error."""
        reader, modules = READERS[name], self.home / "modules"
        places = {
            "SOURCE": source,
            "ONE": one or (min(source.iterdir()) if source.is_dir() else source),
            "TEXTS": self.home / "texts.txt",
            "IDS": self.home / "ids.txt",
            "FEATURES": self.home / "features.npy",
            "DATA": self.home / "labels-data",
        }
        for place, make in (("MODEL", _label_model), ("FEATURE_MODEL", _feature_model)):
            if place in reader.words.split():
                places[place] = self.valid(make, "model")
        words = [str(places.get(word, word)) for word in reader.words.split()]
        status = forked(lambda: command(words, None if one else modules), self.home)
        return status, (self.home / "err").read_text(errors="replace")


def main() -> None:
    """Try inputs and print how they ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; all by default")
    parser.add_argument("--inputs", type=int, default=400, help="inputs a reader")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as home:
        world = World(Path(home))
        for name in asked.readers or READERS:
            found[name] = Counter()
            world.prepare(name)
            begin = time.monotonic()
            for seed in range(asked.first, asked.first + asked.inputs):
                ended, err = world.read(name, seed)
                found[name][ended] += 1
                if ended not in ("read", "refused"):
                    print(f"{name} {seed}: {ended}: {err}", file=sys.stderr, flush=True)
            seconds = time.monotonic() - begin
            print(f"{name}: {dict(found[name])}, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
