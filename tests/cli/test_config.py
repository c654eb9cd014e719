"""Settings from TOML: what a file says is what flags would say; mistakes are one line."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli import config
from shoal.core.errors import InputError
from shoal.tasks.settings import From, Source, Table, Training, flat


@dataclass(frozen=True, kw_only=True)
class Net:
    """A group."""

    model: Literal["sage", "gat"] = "sage"
    """The layer."""
    fanouts: tuple[int, ...] = (15, 10)
    """Neighbors."""
    fields: bool = True
    """Whether words of fields differ."""


@dataclass(frozen=True, kw_only=True)
class Asked(Training):
    """Settings of a task."""

    batch_size: int = 512
    """Examples per batch."""
    from_: From = None
    """A run to start with."""
    net: Net = field(default_factory=lambda: Net(fanouts=(5,)))
    table: Table = field(default_factory=Table)


def read(path: Path, text: str) -> Asked:
    path.write_text(text, encoding="utf-8")
    return config.settings_from(Asked, config.read(path), path)


def test_a_file_is_worth_its_flags(tmp_path: Path) -> None:
    """Keys in groups, lists, paths, whole numbers for others, underscores: the same settings."""
    path = tmp_path / "a.toml"
    found = read(
        path,
        'source = "a.csv"\nbatch-size = 8\nlr = 1\nfanouts = [3, 2]\nmodel = "gat"\n'
        'fields = false\ntext_column = "body"\nfrom = "runs/a"\n',
    )
    words = "a.csv --batch-size 8 --lr 1 --fanouts 3 2 --model gat --no-fields --text-column body"
    flags = config.parsed(Asked, "shoal", [*words.split(), "--from", "runs/a"])
    assert found == flags
    assert read(path, 'source = "b"').net.fanouts == (5,)  # a group's own default


def test_flags_overrule_a_file(tmp_path: Path) -> None:
    """What words do not say is the file's; a file without a source leaves it required."""
    file = read(tmp_path / "a.toml", "batch-size = 8\nlr = 0.5\nfields = false\n")
    assert file.source is tyro.MISSING
    found = config.parsed(Asked, "shoal", ["b.csv", "--lr", "0.25"], file)
    assert (found.source, found.batch_size, found.lr, found.net.fields) == ("b.csv", 8, 0.25, False)
    with pytest.raises(SystemExit):
        config.parsed(Asked, "shoal", ["--lr", "0.25"], file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bacth-size = 8", r"bacth-size: expected a setting of this task, .*mean batch-size\?"),
        ("zzz = 8", r"zzz: expected a setting of this task, got an unknown key; remove it"),
        ("batch-size = 8.5", r"batch-size: expected a whole number, got 8.5; correct the value"),
        ("batch-size = true", r"batch-size: expected a whole number, got True"),
        ('lr = "high"', r"lr: expected a number, got 'high'"),
        ("fanouts = 3", r"fanouts: expected a list of whole numbers, got 3"),
        ('model = "gcn"', r"model: expected sage or gat, got 'gcn'"),
        ("[net]\nmodel = 1", r"net: expected a setting of this task"),
        ("batch-size = ", r"a.toml: expected a TOML file of settings, got "),
        ("a = 1\na = 2", r"a.toml: expected a TOML file of settings, got "),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    """Each names the file, the key as it is spelled, and what to do."""
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "a.toml", text)
    assert "\n" not in str(caught.value) and "a.toml" in str(caught.value)


def test_no_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A missing file, a folder, and other encodings are told as such."""
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "b"):
        with pytest.raises(InputError, match="a TOML file of settings"):
            config.read(path)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,8}[a-z]", fullmatch=True), VALUES | st.lists(VALUES)
    )
)
def test_what_is_written_is_read(values: dict[str, object]) -> None:
    """TOML of any scalars and lists gives the same values, whatever characters a text has."""
    read = tomllib.loads(config.written(values))
    assert {key.replace("-", "_"): value for key, value in read.items()} == values


def test_settings_survive_a_file(tmp_path: Path) -> None:
    """What a run writes gives the settings again, all but those of the call."""
    words = "a.csv --fanouts 3 2 --no-fields --from x --split part --lr 1e-5 --device cpu"
    asked = config.parsed(Asked, "shoal", words.split())
    path = tmp_path / "run.toml"
    path.write_text(config.written(flat(asked)), encoding="utf-8")
    assert config.settings_from(Asked, config.read(path), path) == asked


def test_positional_arguments_have_names() -> None:
    """Usage says SOURCE, not STR."""
    assert Source.__metadata__
    with pytest.raises(SystemExit):
        config.parsed(Asked, "shoal", ["--help"])


def test_help_shows_groups_flat_flags_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """A group is a box, its flags have no prefix; a pair says both, and None is not shown."""
    with pytest.raises(SystemExit):
        config.parsed(Asked, "shoal train asked", ["--help"])
    said = capsys.readouterr().out
    assert re.search(r"usage: shoal train asked .*SOURCE", said)
    assert "net options" in said and "--fields, --no-fields" in said and "--net" not in said
    assert "None" not in said and "--no-json" not in said and "(default: 512)" in said
