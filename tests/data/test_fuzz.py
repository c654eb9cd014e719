"""Readers under damaged bytes: a data set or an InputError of one line comes back, nothing else.

Valid files of every format are cut, overwritten, inserted into and doubled at random places, in
packed files (gzip, npz) also inside, where checksums do not help.
"""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.data import load
from shoal.data.describe import describe
from shoal.data.formats import FORMATS
from shoal.data.texts import Examples, LabelData, Texts, no_pairs
from tests.data.made import SUFFIX, make_data

# what breaks parsers: signs of every format, numbers out of range, halves of characters, no text
BYTES = [b"", b"\n", b"\t", b" ", b":", b"::", b",", b'"', b"{", b"]", b"\\ud800", b"\xff", b"\x00"]
BYTES += [b"-1", b"9" * 20, b"1e999", b"nan", b"null", b"\r", b"<", b"\xef\xbb\xbf", b"_", b"0"]


@dataclass(frozen=True)
class Damage:
    """Replace `length` bytes at a share `at` of the way by `by`; inside a packed file or not."""

    at: float
    length: int
    by: bytes
    inside: bool

    def of(self, raw: bytes) -> bytes:
        """The damaged bytes."""
        start = int(self.at * len(raw))
        return raw[:start] + self.by + raw[start + self.length :]

    def do(self, path: Path) -> None:
        """Damage a file."""
        raw = path.read_bytes()
        if self.inside and path.suffix == ".gz":
            path.write_bytes(gzip.compress(self.of(gzip.decompress(raw))))
        elif self.inside and path.suffix == ".npz":
            path.write_bytes(inside_zip(raw, self.of))
        else:
            path.write_bytes(self.of(raw))


def inside_zip(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the longest member of an archive and pack it again, checksums and all."""
    with zipfile.ZipFile(io.BytesIO(raw)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    longest = max(members, key=lambda name: len(members[name]))
    members[longest] = change(members[longest])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for name, body in members.items():
            new.writestr(name, body)
    return out.getvalue()


damages = st.builds(
    Damage,
    at=st.floats(0, 1),
    length=st.sampled_from([0, 1, 2, 1000]),
    by=st.one_of(st.sampled_from(BYTES), st.binary(max_size=4)),
    inside=st.booleans(),
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid file or folder of every format; those that can, with features and without."""
    folder = tmp_path_factory.mktemp("valid")
    for featured in (False, True):
        data = make_data(relevance=True, featured=featured)
        for name, form in FORMATS.items():
            if featured or name != "bow":
                form.write(data, folder / f"{name}-{featured}{SUFFIX[name]}")
    return folder


def survive(source: Path, chosen: int, harm: list[Damage]) -> bool:
    """Whether a damaged copy of `source` still reads; anything but InputError passes through."""
    with TemporaryDirectory() as folder:
        copy = Path(folder, source.name)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file()) or [copy]
        for one in sorted(harm, key=lambda one: not one.inside):  # while it still unpacks
            one.do(files[chosen % len(files)])
        try:
            data = load(copy)
        except InputError as error:
            assert "\n" not in str(error) and "expected" in str(error)
            return False
    assert isinstance(data, LabelData)
    for texts in (data.train.texts, data.test.texts, data.labels):
        "".join(texts.all()).encode()  # what a tokenizer is given is text
    data.train.labels.validate(), data.test.labels.validate(), data.train.drop.validate()
    describe(data)
    return True


@pytest.mark.parametrize("featured", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=4)
@given(chosen=st.integers(0, 20), harm=st.lists(damages, min_size=1, max_size=3))
def test_damaged_files(
    valid: Path, name: str, featured: bool, chosen: int, harm: list[Damage]
) -> None:
    """Whatever the damage: a whole data set, or one line that says what is wrong."""
    source = valid / f"{name}-{featured}{SUFFIX[name]}"
    if source.exists():
        survive(source, chosen, harm)


def test_the_fuzzer_bites(valid: Path) -> None:
    """No damage reads, a cut does not: the test above is able to fail."""
    for source in valid.iterdir():
        assert survive(source, 0, [])
    cut = Damage(at=0.5, length=1000, by=b"", inside=False)
    assert not survive(valid / "npz-False", 0, [cut])
    assert not survive(valid / "parquet-False.parquet", 0, [cut])


def test_nothing_at_all(tmp_path: Path) -> None:
    """Every file emptied at once: an empty data set or an error."""
    nothing = Examples(Texts([], [], []), no_pairs(0, 0), no_pairs(0, 0))
    for name, form in FORMATS.items():
        if not SUFFIX[name] and name not in ("bow", "fasttext"):  # known by their first line
            form.write(LabelData("x", nothing, nothing, Texts([], [], [])), tmp_path / name)
            assert len(load(tmp_path / name).labels) == 0
            for path in (tmp_path / name).rglob("*.*"):
                path.write_bytes(b"")
            survive(tmp_path / name, 0, [])
