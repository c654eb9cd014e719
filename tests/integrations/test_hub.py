"""Models pushed to a stand-in for the hub by the real huggingface_hub, and opened from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import shoal
from shoal.core.errors import InputError
from shoal.models.hub import SUFFIXES
from tests.integrations.hub_server import TOKEN, Hub, serving
from tests.tiny import save_tiny_bert

# huggingface_hub 2.4 sends files so itself
pytestmark = [
    pytest.mark.whole,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
TEXTS = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("mug", "hat", "lamp")]
LABELS = [text.split()[1:] for text in TEXTS]


@pytest.fixture
def hub(monkeypatch: Any, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub that huggingface_hub of this process asks, and an empty cache."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    from huggingface_hub import constants

    with serving() as server:
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": files,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_DISABLE_XET": True,  # its transfer needs a server of its own
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture(scope="module")
def labels() -> shoal.LabelModel:
    """A small model of labels."""
    model = shoal.LabelModel(encoder=shoal.BagEncoder(dim=8), device="cpu")
    model.fit(TEXTS * 2, LABELS * 2, steps=3)
    return model


def graph() -> Any:
    """Two groups of nodes, each linked among themselves, told by one feature."""
    n = torch.arange(40)
    edges = torch.cat([torch.stack([n, (n + step) % 40]) for step in (2, 4)], dim=1)
    return SimpleNamespace(edge_index=edges, x=torch.eye(2)[n % 2], y=n % 2, num_nodes=40)


def test_a_model_of_labels_comes_back_bit_for_bit(hub: Hub, labels: Any) -> None:
    """What is pulled predicts the same bits; weights went as LFS files, checked by their hash."""
    address = labels.push_to_hub("me/mugs", token=TOKEN)
    assert address.startswith(f"{hub.url}/me/mugs/commit/")
    assert {"create", "validate", "preupload", "batch", "put", "commit"} <= set(hub.calls)
    files = hub.files("me/mugs")
    assert {"model.json", "model.safetensors", "README.md", "labels.json.gz"} <= set(files)
    assert all(path.endswith(SUFFIXES) for path in files)
    back = shoal.from_pretrained("me/mugs", device="cpu")
    assert back.predict(TEXTS, k=3) == labels.predict(TEXTS, k=3)
    assert torch.equal(back.encode(TEXTS), labels.encode(TEXTS))


def test_a_transformer_comes_back_bit_for_bit(hub: Hub, tmp_path: Path) -> None:
    """Tokenizer and weights are among the files that are fetched."""
    pytest.importorskip("transformers", reason="needs the extra text")
    encoder = shoal.TransformerEncoder(str(save_tiny_bert(tmp_path / "bert")), max_length=16)
    model = shoal.LabelModel(encoder=encoder, device="cpu")
    model.fit(TEXTS * 2, LABELS * 2, steps=1)
    model.push_to_hub("me/bert", token=TOKEN)
    assert all(path.endswith(SUFFIXES) for path in hub.files("me/bert"))
    back = shoal.from_pretrained("me/bert", device="cpu")
    assert back.predict(TEXTS, k=3) == model.predict(TEXTS, k=3)


@pytest.mark.parametrize("kind", [shoal.NodeModel, shoal.LinkModel])
def test_a_model_on_a_graph_comes_back_bit_for_bit(hub: Hub, kind: Any, tmp_path: Path) -> None:
    """With a card; the path of its graph stays here."""
    model = kind(hidden=4, fanouts=(2,), device="cpu")
    model.fit(graph(), steps=3)
    model._about["source"] = str(tmp_path)
    model.push_to_hub("me/graph", token=TOKEN)
    files = hub.files("me/graph")
    assert b"library_name: shoal" in files["README.md"]
    assert not any(str(tmp_path).encode() in data for data in files.values())
    back = shoal.from_pretrained("me/graph", device="cpu")
    # of a graph without a split no class is known, whoever is asked
    assert back.predict([0, 1], data=graph()) == model.predict([0, 1], data=graph())


class Mean(torch.nn.Module):
    """A layer of one's own."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.line = torch.nn.Linear(in_dim, out_dim)

    def forward(self, block: Any, rows: torch.Tensor) -> torch.Tensor:
        """Each node by itself."""
        return self.line(rows[: len(block.dst)])


def test_objects_of_ones_own_are_given_again(hub: Hub) -> None:
    """A repository holds no code: the layer is passed to from_pretrained, and the card says so."""
    model = shoal.NodeModel(layer=Mean, hidden=4, fanouts=(2,), device="cpu")
    model.fit(graph(), steps=3)
    model.push_to_hub("me/own", token=TOKEN)
    assert b"layer=" in hub.files("me/own")["README.md"]
    with pytest.raises(InputError, match=r"pass layer= to shoal.open"):
        shoal.from_pretrained("me/own")
    back = shoal.from_pretrained("me/own", layer=Mean)
    assert back.predict([0, 1], data=graph()) == model.predict([0, 1], data=graph())


def test_revisions_are_branches(hub: Hub, labels: Any) -> None:
    """One is made by a push, main stays; a branch and a commit both open."""
    address = labels.push_to_hub("me/mugs", token=TOKEN, revision="v1")
    assert hub.files("me/mugs") == {} and "model.json" in hub.files("me/mugs", "v1")
    for revision in ("v1", address.rsplit("/", 1)[1]):
        back = shoal.from_pretrained("me/mugs", revision=revision)
        assert back.predict(TEXTS, k=3) == labels.predict(TEXTS, k=3)
    labels.push_to_hub("me/mugs", token=TOKEN, revision="v1")
    with pytest.raises(InputError, match=r"me/mugs: expected a revision that is there"):
        shoal.from_pretrained("me/mugs", revision="v2")


def test_a_private_repository_needs_the_token(hub: Hub, labels: Any) -> None:
    """Without one it is as if it were not there."""
    labels.push_to_hub("me/secret", token=TOKEN, private=True)
    with pytest.raises(InputError, match=r"me/secret: expected a repository .* pass token="):
        shoal.from_pretrained("me/secret")
    back = shoal.from_pretrained("me/secret", token=TOKEN)
    assert back.predict("red mug") == labels.predict("red mug")


def test_what_is_on_disk_opens_without_the_hub(hub: Hub, labels: Any, monkeypatch: Any) -> None:
    """A second time nothing is asked for, if there is no network."""
    from huggingface_hub import constants

    labels.push_to_hub("me/mugs", token=TOKEN)
    shoal.from_pretrained("me/mugs")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    back = shoal.from_pretrained("me/mugs")
    assert back.predict("red mug") == labels.predict("red mug")


def test_pickles_are_not_fetched(hub: Hub, labels: Any, tmp_path: Path) -> None:
    """Nor scripts: only the kinds of files that models write."""
    labels.push_to_hub("me/mugs", token=TOKEN)
    hub.files("me/mugs").update({"pytorch_model.bin": b"\x80", "a/setup.py": b"", "x.pkl": b""})
    shoal.from_pretrained("me/mugs")
    found = [
        path.suffix for path in (tmp_path / "cache").rglob("snapshots/*/**/*") if path.is_file()
    ]
    assert found and set(found) <= set(SUFFIXES)


def test_another_librarys_model_is_refused(hub: Hub, labels: Any) -> None:
    """One line, whether it has files that are fetched or none."""
    labels.push_to_hub("me/mugs", token=TOKEN)
    for files in ({"config.json": b"{}", "model.safetensors": b""}, {"pytorch_model.bin": b""}):
        hub.repositories["me/mugs"].commit("main", files)
        with pytest.raises(InputError, match="me/mugs: expected a model by shoal, with"):
            shoal.from_pretrained("me/mugs")


def test_errors_are_one_line_with_a_remedy(hub: Hub, labels: Any, monkeypatch: Any) -> None:
    """Unknown repository, wrong or no token, a bad name, no network."""
    from huggingface_hub import constants

    def line(call: Any, *args: Any, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            call(*args, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    push = labels.push_to_hub
    assert line(shoal.from_pretrained, "me/absent").startswith("me/absent: expected a repository")
    assert "log in with `hf auth login`, or pass token=" in line(push, "me/a", token="hf_wrong")
    assert "pass token=" in line(push, "me/a")
    push("me/mugs", token=TOKEN)
    assert "pass token=" in line(shoal.from_pretrained, "me/mugs", token="hf_wrong")
    assert line(shoal.from_pretrained, "a/b/c").startswith("repo_id: expected user/name")
    assert line(push, "a b", token=TOKEN).startswith("repo_id: expected user/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "check the network" in line(push, "me/mugs", token=TOKEN)
    assert "check the network" in line(shoal.from_pretrained, "me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in line(shoal.from_pretrained, "me/other")


def test_before_a_fit_nothing_is_pushed(hub: Hub) -> None:
    """The model's own error, before the hub is asked."""
    with pytest.raises(InputError, match="call fit"):
        shoal.NodeModel().push_to_hub("me/none", token=TOKEN)
    with pytest.raises(InputError, match="call fit"):
        shoal.LabelModel(device="cpu").push_to_hub("me/none", token=TOKEN)
    assert hub.calls == []


PULL = """
import json, sys
import shoal
model = shoal.from_pretrained("me/mugs", device="cpu")
print(json.dumps([[one.label, one.score] for one in model.predict("a red mug", k=3)]))
"""


def test_another_process_opens_it_by_the_environment(hub: Hub, labels: Any, tmp_path: Path) -> None:
    """As users set it: HF_ENDPOINT, HF_HOME, HF_TOKEN; the same bits."""
    labels.push_to_hub("me/mugs", token=TOKEN, private=True)
    unset = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PULL], env=environment, capture_output=True, text=True, check=True
    )
    found = [[one.label, one.score] for one in labels.predict("a red mug", k=3)]
    assert json.loads(run.stdout) == found


def test_without_the_package_the_error_names_the_extra(labels: Any, monkeypatch: Any) -> None:
    """Both ways."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (labels.push_to_hub, shoal.from_pretrained):
        with pytest.raises(InputError, match=r"pip install '.*shoal\[hub\]'"):
            call("me/mugs")
