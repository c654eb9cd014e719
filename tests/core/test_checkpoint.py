"""Checkpoints: what is loaded is what was saved, and a file that is not whole says so."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core import checkpoint
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.fetch.unified import unified

STATE = {"step": 3, "model": {"w": torch.arange(6.0).view(2, 3)}, "moments": {0: [torch.ones(2)]}}

dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(
    lambda dtype, shape: torch.arange(27).to(dtype)[: _count(shape)].view(shape), dtypes, shapes
)
numbers = st.integers(-(2**70), 2**70) | st.floats()
leaves = st.none() | st.booleans() | numbers | st.text(max_size=4) | tensors
keys = st.integers(-9, 9) | st.text("ab~/#$.01", max_size=4) | st.text(max_size=2)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


def _count(shape: list[int]) -> int:
    return int(torch.tensor(shape).prod()) if shape else 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one checkpoint after the other."""
    return tmp_path_factory.mktemp("checkpoint") / "state.safetensors"


@given(tree=trees)
def test_round_trip(path: Path, tree: object) -> None:
    """Any tree comes back bit for bit: odd keys, None, NaN, 0-d and empty tensors."""
    checkpoint.save(path, {"tree": tree})
    assert same_tensors(checkpoint.load(path)["tree"], tree)


def test_keys_that_look_alike_stay_apart(path: Path) -> None:
    """3 and "#3", a path and a key with a slash, and the mark of a tensor do not meet."""
    one, two = torch.zeros(1), torch.ones(1)
    tree = {3: one, "#3": two, "a/b": one, "a": {"b": two}, "/": "/tree/a", "~1": None}
    checkpoint.save(path, {"tree": tree})
    assert same_tensors(checkpoint.load(path)["tree"], tree)


def test_memory_that_tensors_share_is_written_for_each(path: Path) -> None:
    """Views, ties, transposes, shared memory and a unified tensor come back with their values."""
    rows = torch.arange(12.0).view(3, 4)
    table = unified(rows)
    state = {
        "all": rows,
        "tied": rows,
        "part": rows[1:],
        "columns": rows.T,
        "expanded": torch.ones(1, 3).expand(2, 3),
        "shared": torch.arange(4.0).share_memory_(),
        "table": table,
        "leaf": torch.ones(2, requires_grad=True),
    }
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    for name, tensor in state.items():
        assert type(loaded[name]) is Tensor and not loaded[name].requires_grad
        assert torch.equal(loaded[name], tensor.detach())
    loaded["all"].zero_()
    assert loaded["tied"].sum() > 0


def test_same_tensors_sees_every_bit() -> None:
    """Values, dtypes, shapes, signs of zero, kinds of numbers and lengths all count; NaN is NaN."""
    nan = torch.tensor([float("nan")])
    assert same_tensors({"a": (nan, float("nan"))}, {"a": [nan.clone(), float("nan")]})
    pairs = [
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(2).double()),
        (torch.zeros(2), torch.zeros(1, 2)),
        (1, 1.0),
        ([1], [1, 1]),
        ({"a": 1}, {1: 1}),
        (torch.zeros(()), 0.0),
    ]
    assert not any(same_tensors(one, two) for one, two in pairs)


@pytest.mark.parametrize("kind", ["empty", "truncated", "pickle", "text"])
def test_damaged_file_is_one_line(path: Path, kind: str) -> None:
    """What is no whole safetensors file is refused by name; a pickle is never run."""
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[:-4],
        "pickle": pickle.dumps(STATE),
        "text": b"no checkpoint at all",
    }
    path.write_bytes(contents[kind])
    with pytest.raises(InputError, match="expected a whole checkpoint, got") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@given(data=st.data())
def test_no_flipped_bit_passes(path: Path, data: st.DataObject) -> None:
    """A bit flipped anywhere, in header or numbers, is noticed."""
    checkpoint.save(path, STATE)
    damaged = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises(InputError):
        checkpoint.load(path)


def test_foreign_and_missing_files(path: Path, tmp_path: Path) -> None:
    """Another program's tensors, no file, a folder: each one line."""
    safetensors.torch.save_file({"w": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"of format shoal\.checkpoint/1, got None"):
        checkpoint.load(path)
    with pytest.raises(InputError, match="a file with a checkpoint, got nothing there"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(InputError, match="a file with a checkpoint, got a folder"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "state", [{"a": {1.5: 0}}, {"a": {True: 0}}, {"a": [{1, 2}]}, {"a": print}]
)
def test_state_that_cannot_be_written_is_refused(path: Path, state: dict) -> None:
    """Keys and leaves of other kinds are refused before anything is touched."""
    checkpoint.save(path, STATE)
    with pytest.raises(InputError, match=r"state.*: expected"):
        checkpoint.save(path, state)
    assert same_tensors(checkpoint.load(path), STATE)


def test_failed_write_leaves_the_old_file_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in mid-write costs the new checkpoint, not the old one."""
    checkpoint.save(path, STATE)

    def full_disk(tensors: dict, name: Path, metadata: dict) -> None:
        name.write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(InputError, match="No space left on device; free space"):
        checkpoint.save(path, STATE | {"step": 4})
    assert same_tensors(checkpoint.load(path), STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_place_below_a_file_is_refused(tmp_path: Path) -> None:
    """A folder that cannot be made is one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a place to write a checkpoint"):
        checkpoint.save(tmp_path / "file" / "sub" / "c", STATE)
