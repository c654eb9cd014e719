"""The shipped WordNet: both views obey their rules on all of it; one equals its published twin."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data import wordnet
from shoal.data.formats import xc
from shoal.data.nodes import NodeData
from shoal.data.texts import LabelData
from shoal.data.wordnet import Synsets


@pytest.fixture(scope="module")
def synsets() -> Synsets:
    return wordnet.read()


@pytest.fixture(scope="module")
def data() -> LabelData:
    return wordnet.labels()


@pytest.fixture(scope="module")
def graph() -> NodeData:
    return wordnet.graph()


def in_test(uid: str) -> bool:
    return int(hashlib.md5(uid.encode()).hexdigest(), 16) % 5 == 0


# -- the labels ------------------------------------------------------------------------------------


def test_counts_are_those_of_the_published_twin(data: LabelData) -> None:
    """93,311 and 9,115 points, 103,827 labels; 13,016 test pairs, 29,272 filter pairs."""
    train, test = data.train, data.test
    assert (len(train), len(test), len(data.labels)) == (93_311, 9_115, 103_827)
    assert (train.labels.nnz, test.labels.nnz) == (289_546, 13_016)
    assert (train.drop.nnz, test.drop.nnz) == (83_107, 29_272)


def test_splits_follow_md5_and_are_disjoint(data: LabelData) -> None:
    """Test iff int(md5(uid), 16) % 5 == 0; uids and texts are distinct; no point is unlabeled."""
    assert all(in_test(uid) for uid in data.test.texts.uids)
    assert not any(in_test(uid) for uid in data.train.texts.uids)
    uids = data.train.texts.uids + data.test.texts.uids
    assert len(set(uids)) == len(uids)
    for points in (data.train, data.test):
        assert int(points.labels.degrees().min()) >= 1
        assert all(points.texts.titles) and all(points.texts.contents)


def test_truth_and_filter_never_meet(data: LabelData) -> None:
    """No filter pair is a truth pair; rows are sorted without doubles; every label is trained."""
    for points in (data.train, data.test):
        for csr in (points.labels, points.drop):
            key = csr.row_ids() * csr.n_cols + csr.indices
            assert bool((key.diff() > 0).all())
        assert not bool(points.labels.find(points.drop.row_ids(), points.drop.indices)[0].any())
    assert len(data.train.labels.indices.unique()) == len(data.labels)


def test_rows_equal_the_rule_in_plain_sets(data: LabelData, synsets: Synsets) -> None:
    """400 random points of each split against the rule written with Python sets."""
    uids, relations = synsets.texts.uids, synsets.relations
    ends, flat = relations.indptr.tolist(), relations.indices.tolist()
    points_to = {uid: {uids[j] for j in flat[ends[i] : ends[i + 1]]} for i, uid in enumerate(uids)}
    label_set = set(data.labels.uids)

    def names(csr: Csr, i: int) -> set[str]:
        return {
            data.labels.uids[j] for j in csr.indices[csr.indptr[i] : csr.indptr[i + 1]].tolist()
        }

    assert label_set == {x for u in uids if not in_test(u) for x in points_to[u]}
    moved = 0
    for points in (data.train, data.test):
        some = points.subset(torch.tensor(random.Random(0).sample(range(len(points)), 400)))
        for i, uid in enumerate(some.texts.uids):
            full = points_to[uid] & label_set
            known = {x for x in full if in_test(uid) and not in_test(x) and uid in points_to[x]}
            moved += len(known)
            assert names(some.labels, i) == full - known
            assert names(some.drop, i) == known | ({uid} & label_set)
    assert moved > 400


@pytest.mark.slow
def test_equal_to_wordnet_related_row_for_row(data: LabelData, outside_data: Path) -> None:
    """Texts, uids, order, labels, filter pairs and label order, to the last one."""
    twin = xc.read(outside_data / "wordnet-related")
    assert data.labels.__dict__ == twin.labels.__dict__
    for ours, theirs in ((data.train, twin.train), (data.test, twin.test)):
        assert ours.texts.__dict__ == theirs.texts.__dict__
        for mine, other in ((ours.labels, theirs.labels), (ours.drop, theirs.drop)):
            assert mine.values is None and other.values is None and mine.shape == other.shape
            assert torch.equal(mine.indptr, other.indptr)
            assert torch.equal(mine.indices, other.indices)


# -- the graph -------------------------------------------------------------------------------------


def test_graph_is_the_symmetric_relation_list(graph: NodeData, synsets: Synsets) -> None:
    """u reads v iff u points to v or v to u; nobody reads itself; counts as documented."""
    pairs, both = synsets.relations, graph.graph
    row, col = pairs.row_ids(), pairs.indices
    assert both.shape == (117_659, 117_659) and (pairs.nnz, both.nnz) == (361_638, 367_578)
    assert bool(both.find(row, col)[0].all()) and bool(both.find(col, row)[0].all())
    reverse = pairs.find(col, row)[0]
    assert int(reverse.sum()) == 355_698
    assert both.nnz == pairs.nnz + int((~reverse).sum())
    assert not bool((both.row_ids() == both.indices).any())
    assert int((both.degrees() == 0).sum()) == 1_009


def test_graph_splits_follow_the_same_rule(graph: NodeData, synsets: Synsets) -> None:
    """Test by md5, validation seeded from the rest, together every node; 60/20/20."""
    test = wordnet.is_test(synsets.texts.uids)
    assert torch.equal(graph.test, test.nonzero().flatten())
    parts = torch.cat([graph.train, graph.valid, graph.test])
    assert torch.equal(parts.sort().values, torch.arange(117_659))
    for part, share in ((graph.train, 0.6), (graph.valid, 0.2), (graph.test, 0.2)):
        assert abs(len(part) / 117_659 - share) < 0.003


def test_classes_are_the_lexicographer_files(graph: NodeData, synsets: Synsets) -> None:
    """45 files, all in use; the file's name begins with the uid's part of speech."""
    assert len(graph.class_names) == 45 == len(graph.target.unique())
    letters = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
    for uid, file in zip(synsets.texts.uids, graph.target.tolist(), strict=True):
        assert graph.class_names[file].startswith(letters[uid[0]] + ".")
    dog = next(i for i, t in enumerate(synsets.texts.titles) if t.startswith("dog, domestic dog"))
    assert graph.class_names[int(graph.target[dog])] == "noun.animal"


def test_features_are_finite_unit_rows(graph: NodeData) -> None:
    """Every synset has words that count, and its row has length one."""
    features = graph.features
    assert features.values is not None and bool(features.values.isfinite().all())
    squares = torch.zeros(features.n_rows).index_add_(
        0, features.row_ids(), features.values.square()
    )
    assert float(((squares - 1).abs() < 1e-4).double().mean()) > 0.999


# -- the file --------------------------------------------------------------------------------------


def test_shipped_files_are_small_and_carry_the_notice() -> None:
    """At most 8 MB with WordNet's licence beside it."""
    folder = Path(wordnet.__file__).parent
    assert sum(path.stat().st_size for path in folder.glob("*.gz")) < 6_000_000
    notice = (folder / "NOTICE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert "Permission to use, copy, modify and distribute" in notice


def test_damaged_file_names_its_line(tmp_path: Path) -> None:
    """A row with a missing column, and a row number that is none."""
    path = tmp_path / "s.tsv"
    for row in ("n2\t3\tb", "n2\t3\tb\tc\tx"):
        path.write_text(f"n1\t3\ta\tb\t1\n{row}\n")
        with pytest.raises(InputError, match=r"s\.tsv:2: expected uid, file, lemmas, gloss"):
            wordnet.read(path)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script that makes the shipped file."""
    path = Path(__file__).parents[2] / "tools" / "build_wordnet.py"
    spec = importlib.util.spec_from_file_location("build_wordnet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_script_reads_a_data_line(build: ModuleType) -> None:
    """Hexadecimal counts, markers dropped, satellites in data.adj, a bar in the gloss kept."""
    words = " ".join(f"w_{i}(ip) 0" for i in range(16))
    line = f'00000001 00 s 10 {words} 002 & 00000009 s 0000 + 00000007 n 0101 | so; "a | b"  \n'
    found = build.parse(line, "a")
    assert found.lemmas == ", ".join(f"w {i}" for i in range(16))
    assert (found.uid, found.file, found.gloss) == ("a00000001", 0, 'so; "a | b"')
    assert found.targets == ("a00000009", "n00000007")


def test_script_and_reader_agree(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary of two nouns: built, read back; itself and doubles dropped; same bytes twice."""
    for name in build.FILES.values():
        (tmp_path / name).write_text("  1 Licence  \n  2 text  \n")
    twice = "@ 00000002 n 0000 ~ 00000002 n 0000 @ 00000001 n 0000"
    with (tmp_path / "data.noun").open("a") as file:
        file.write(f"00000001 05 n 01 red_cat 0 003 {twice} | a cat\n")
        file.write("00000002 05 n 01 cat 0 000 | a pet\n")
    packed = []
    for out in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setattr("sys.argv", ["build", "--dict", str(tmp_path), "--out", str(out)])
        build.main()
        packed.append((out / "synsets.tsv.gz").read_bytes())
    assert packed[0] == packed[1]
    found = wordnet.read(tmp_path / "a" / "synsets.tsv.gz")
    assert found.texts.uids == ["n00000001", "n00000002"] and found.texts.titles[0] == "red cat"
    assert found.relations.to_dense().tolist() == [[0, 1], [0, 0]] and found.files.tolist() == [
        5,
        5,
    ]
    assert (tmp_path / "a" / "NOTICE").read_text().endswith("Licence\ntext\n")
