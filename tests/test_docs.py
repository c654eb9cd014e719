"""The documents keep their word: what they link, name and run exists, and the checker can fail."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import shoal

ROOT = Path(__file__).parents[1]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_docs = _tool("check_docs")


@pytest.mark.usefixtures("few_folds")  # tools/check_docs.py runs them as they stand
@pytest.mark.parametrize(
    "path", check_docs.documents(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
@pytest.mark.whole
def test_a_document_keeps_its_word(path: Path) -> None:
    """Links, commands, names and code of every document exist and run."""
    assert list(check_docs.check(path)) == []


def test_the_documents_are_found() -> None:
    """The law above is not empty: root and docs/ are read, and flow.md has sessions that run."""
    names = {path.relative_to(ROOT).as_posix() for path in check_docs.documents()}
    assert names >= {"CONTRIBUTING.md", "docs/concepts/flow.md", "docs/results/README.md"}
    blocks = check_docs.read(ROOT / "docs" / "concepts" / "flow.md").blocks
    assert sum(block.language == "pycon" for block in blocks) > 5


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return _tool("site")


def test_every_public_name_has_its_page(site: ModuleType) -> None:
    """The pages of the API hold each name of shoal once, and none is empty."""
    sections = [line for page in site.api_pages().values() for line in page.splitlines()]
    shown = [line.removeprefix("::: ") for line in sections if line.startswith("::: ")]
    of_shoal = [name.rpartition(".")[2] for name in shown if check_docs.exists(name)]
    assert len(shown) == len(of_shoal) > 100
    assert set(shoal.__all__) | {"open", "load"} <= set(of_shoal)
    assert len(set(shown)) == len(shown)


def test_links_lead_to_where_files_stand_on_the_site(site: ModuleType) -> None:
    """Within docs/ as they are; files of the repository become pages; anchors stay."""
    text = "[a](../LOG.md#x) [b](../../src/shoal/tasks/labels.py) [c](https://x.org) [d](#y)"
    assert site.relinked(text, "docs/how-to/choose.md") == (
        "[a](../LOG.md#x) [b](../code/src/shoal/tasks/labels.py.md) [c](https://x.org) [d](#y)"
    )
    assert site.targets(text, "docs/how-to/choose.md") == ["src/shoal/tasks/labels.py"]
    assert site.relinked("[a](docs/LOG.md)", "CONTRIBUTING.md") == "[a](LOG.md)"


def test_notebooks_are_what_the_tutorials_say() -> None:
    """Each tutorial has its notebook, made from it: same code, in order."""
    notebooks = _tool("notebooks")
    sources = sorted(notebooks.TUTORIALS.glob("*.md"))
    assert len(sources) == 3
    for source in sources:
        made = notebooks.notebook(source.read_text(encoding="utf-8"))
        assert source.with_suffix(".ipynb").read_text(encoding="utf-8") == made
        code = [cell for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
        blocks = [block for block in check_docs.read(source).blocks if block.language == "python"]
        assert ["".join(cell["source"]) + "\n" for cell in code] == [block.text for block in blocks]


GOOD = """
# What is, good?
[here](#what-is-good) [there](made.md#what-is-good) [web](https://example.org/absent)
`make test`, `shoal train labels wordnet --batch-size 8`, `shoal train links`,
`--quick`, `shoal.Csr.from_coo(row)`, `shoal`
```sh
$ OMP_NUM_THREADS=1 .venv/bin/shoal query "a --strange text" --k=3 | head --lines 3
shoal train labels wordnet \\
  --resume && shoal --version  # [no](link.md) and no --flag
python benchmarks/search.py --quick
```
```python
a = 1
```
- a list
  ```pycon
  >>> a + 1
  2
  ```
"""


def test_what_exists_is_no_problem(tmp_path: Path) -> None:
    """Every form of link, command, name and code that is right passes."""
    path = tmp_path / "made.md"
    path.write_text(GOOD)
    assert list(check_docs.check(path)) == []
    assert [block.language for block in check_docs.read(path).blocks] == ["sh", "python", "pycon"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("see [that](absent.md)", "no file absent.md"),
        ("see [that](#absent)", "no heading #absent"),
        ("`shoal fly wordnet`", "shoal has no command fly"),
        ("`shoal train wordnet`", "shoal has no command train wordnet"),
        ("`shoal train labels wordnet --wings 2`", "shoal train labels has no --wings"),
        ("`shoal train nodes --source x.npz`", "shoal train nodes has no --source"),
        ("```\nshoal --wings\n```", "shoal has no --wings"),
        ("```sh\ncd x && shoal data wordnet\nmake all\n```", "make has no target all"),
        ("```sh\nmake test && make fly\n```", "make has no target fly"),
        ("`python benchmarks/absent.py`", "no script benchmarks/absent.py"),
        ("`python benchmarks/search.py --wings`", "benchmarks/search.py has no --wings"),
        ("`--wings 2`", "no command has --wings"),
        ("`test_that_is_absent`", "no test test_that_is_absent"),
        ("`shoal.absent`, `shoal.Csr`", "no shoal.absent"),
        ("`shoal.Csr.absent()`", "no shoal.Csr.absent"),
        ("```python\na = 1\n```\n```python\nassert a == 2\n```", "AssertionError"),
        ("```python\nimport absent_module\n```", "ModuleNotFoundError"),
        ("```pycon\n>>> 1 + 1\n3\n```", "Expected: 3 Got: 2"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |", "a row of a table without a head"),
        ("| a | b |\n|---|---|\n| 1 |", "a row of 1 cells below 2"),
        ("30<!-- shoal.tasks.labels.EPOCHS --> epochs", "shoal.tasks.labels.EPOCHS is"),
    ],
)
def test_what_does_not_exist_is_one_problem(tmp_path: Path, text: str, what: str) -> None:
    """Every kind of wrong word is found, once, with file and line."""
    path = tmp_path / "made.md"
    path.write_text(f"# Made\n{text}\n")
    (problem,) = check_docs.check(path)
    assert problem.startswith(f"{path}:") and what in problem


def test_names_of_verbs_and_flags_are_the_commands_own() -> None:
    """Flags are read from the settings: underscores are dashes, positional ones are no flags."""
    verbs = check_docs.verbs()
    assert set(verbs) == {
        "data",
        "convert",
        "cluster",
        "train labels",
        "train links",
        "train nodes",
        "evaluate",
        "export",
        "add",
        "predict",
        "report",
        "query",
        "serve",
        "plan",
        "plan labels",
        "plan links",
        "plan nodes",
        "gather",
        "spectrum",
        "find-lr",
        "info",
        "completion",
    }
    assert {"--json", "--device", "--batch-size"} <= verbs["train labels"]
    assert "--source" not in verbs["train nodes"] and "--source" in verbs["evaluate"]
