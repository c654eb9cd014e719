"""``shoal report``: one file that stands alone, shows what was logged, and says what was not."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.report import compare, report
from shoal.training.run import Run

VOID = {"meta"}
FROZEN = Path(__file__).parents[1] / "frozen"


class Reader(HTMLParser):
    """Elements, in order, with a check that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(folder: Path) -> tuple[str, Reader]:
    """Report on a run; the page as text and read."""
    text = report(folder).read_text(encoding="utf-8")
    return text, Reader(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of the first layout, of each task: their logs and settings."""
    folder = tmp_path_factory.mktemp("runs")
    for task, name in (("labels", "run"), ("nodes", "nodes-run"), ("links", "links-run")):
        shutil.copytree(FROZEN / name, folder / task)
    return folder


def test_a_whole_run_misses_nothing(runs: Path) -> None:
    """Every picture of a run on labels is there, and its numbers are those of the record."""
    text, read = shown(runs / "labels")
    said = " ".join(read.words)
    assert "Not recorded" not in said and "There is none" not in said
    for title in ("Loss", "Validation", "Rare and frequent labels", "Hardness of in-batch"):
        assert title in said
    test = [x for x in Run.open(runs / "labels").log() if x["event"] == "test"][-1]
    for name in ("P@1", "R@5"):
        assert f"{test[name]:.2f}" in said
    assert sum(tag == "svg" and about.get("role") == "img" for tag, about in read.tags) == 6
    assert text.count('class="mark"') >= 1  # clusters made anew


def test_the_page_stands_alone(runs: Path) -> None:
    """Nothing is fetched and nothing runs: no script, no link, no address but namespaces."""
    for name in ("labels", "nodes"):
        text, read = shown(runs / name)
        assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object"}
        names = {name for _, about in read.tags for name in about}
        assert not names & {"src", "href", "srcset", "action"}
        assert not any(name.startswith("on") for name in names)
        assert not re.search(r"https?://|url\(|@import", text)


def test_a_run_on_a_graph(runs: Path) -> None:
    """Loss, validation and test are shown; pictures of labels are not, and the page says so."""
    said = " ".join(shown(runs / "nodes")[1].words)
    assert "accuracy" in said and "Rare and frequent" not in said and "Not recorded" not in said
    assert "A run on a graph has no clusters" in said


def test_the_same_run_gives_the_same_page(runs: Path, tmp_path: Path) -> None:
    """Nothing of the clock or of chance is in it; --out names another file."""
    assert report(runs / "labels", tmp_path / "a.html") == tmp_path / "a.html"
    assert (tmp_path / "a.html").read_text() == shown(runs / "labels")[0]


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" 'single' </style>"


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """Names of data, labels, texts and settings cannot become elements or attributes."""
    run = Run.create(tmp_path / "<b>run", {"source": HOSTILE, HOSTILE: HOSTILE})
    run.write("start", {"data": HOSTILE, "prepare_seconds": 1.0})
    run.write("step", {"step": 10, "seconds": 1.0, "loss": 1.0})
    run.write("validate", {"step": 10, "valid_" + HOSTILE: 1.0})
    run.write("deciles", {"R@" + HOSTILE: [1.0, 2.0]})
    guess = {"title": HOSTILE, "uid": HOSTILE, "score": 0.5, "true": False}
    point = {"text": HOSTILE, "labels": [HOSTILE], "labels_left_out": 2, "predicted": [guess]}
    run.write("examples", {"right": [point], "wrong": [point]})
    run.write("test", {"step": 10, "P@1": 1.0, HOSTILE + "@1": 2.0})
    text, read = shown(run.folder)
    assert not {tag for tag, _ in read.tags} & {"script", "img", "b>run"}
    assert all("onerror" not in about for _, about in read.tags)
    assert "".join(read.words).count(HOSTILE) > 10 and HOSTILE not in text


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    """A run killed at once, and one by a version that noted less, have pages without numbers."""
    run = Run.create(tmp_path, {"source": "wordnet"})
    run.write("start", {"data": "wordnet", "prepare_seconds": 1.0})
    said = " ".join(shown(tmp_path)[1].words)
    assert said.count("Not recorded") >= 6 and "not ended, or killed" in said
    run.write("step", {"step": 1, "loss": float("nan")})
    assert "Loss Not recorded" in " ".join(" ".join(shown(tmp_path)[1].words).split())


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """No folder, no record, a record of another kind, a place that cannot be written to."""
    with pytest.raises(InputError, match="a folder with a run, got nothing there"):
        report(tmp_path / "absent")
    run = Run.create(tmp_path, {})
    with pytest.raises(InputError, match="expected a run with a log, got none"):
        report(tmp_path)
    run.write("start", {})
    with pytest.raises(InputError, match="a place that can be written"):
        report(tmp_path, tmp_path / "settings.json" / "x.html")
    for line in (
        '{"event": "step", "step": "a"}',
        '{"no": 1}',
        '{"event": "examples", "right": [1]}',
    ):
        (tmp_path / "log.jsonl").write_text(line + "\n")
        with pytest.raises(
            InputError, match=r"a log as shoal train writes it|a run with a log, got none"
        ):
            report(tmp_path)
        assert not (tmp_path / "report.html").exists()


def test_the_lead_says_what_came_of_it(tmp_path: Path) -> None:
    """One sentence with units first; then each ranker beside the ensemble, and the most of P@k."""
    run = Run.create(tmp_path, {"encoder": {"class": "a:Bag", "dim": 16}})
    run.write("start", {"data": "mugs"})
    run.write("alone", {"tested": 40, "P@1": {"encoder": 40.0, "ensemble": 50.0}})
    run.write("possible", {"tested": 40, "most": {"P@1": 100.0, "P@3": 50.0}})
    run.write("calibration", {"said": [10.0, 80.0], "true": [20.0, 70.0], "of": [3, 4]})
    run.write("test", {"step": 1, "P@1": 50.0, "P@3": 25.0, "R@3": 75.0})
    said = " ".join(" ".join(shown(tmp_path)[1].words).split())
    assert "The first label is right for 50.0 % of 40 test examples" in said
    assert said.index("encoder 40.0 %") < said.index("ensemble 50.0 %") < said.index("How it went")
    assert "P at most 100.00 50.00" in said and "encoder.dim 16" in said
    assert "probability, per cent" in said


def logged(folder: Path, score: float, dim: int, tested: int = 40) -> Path:
    run = Run.create(folder, {"dim": dim, "seed": 0})
    run.write("start", {"data": "mugs"})
    run.write("step", {"step": 1, "seconds": 1.0, "loss": 1.0})
    run.write("possible", {"tested": tested, "most": {}})
    run.write("test", {"step": 1, "P@1": score})
    return folder


def test_two_runs_are_compared(tmp_path: Path) -> None:
    """Which is ahead, by how much, and in what they differ; other test data are said."""
    a, b = logged(tmp_path / "a", 40.0, 16), logged(tmp_path / "b", 42.5, 32)
    text = compare([a, b]).read_text(encoding="utf-8")
    said = " ".join(" ".join(Reader(text).words).split())
    assert "P@1 is highest in b: 42.5 %, against 40.0 % in a." in said
    assert "P@1 40.00 42.50 +2.50" in said and "dim 16 32" in said and "seed" not in said
    other = logged(tmp_path / "c", 42.5, 32, tested=7)
    assert "not the same" in compare([b, other], tmp_path / "x.html").read_text()
    with pytest.raises(InputError, match="two or three different ones"):
        compare([a, a])
