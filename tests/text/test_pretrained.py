"""Reading Hugging Face folders: the same token ids, mapped once; what is unsafe is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import InputError
from shoal.text.pretrained import add_lora, open_backbone, open_vocabulary
from tests.tiny import save_tiny_bert

TEXTS = ["Red cups, old hat", "", "zzz w1", "w2 " * 50]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_bert(tmp_path / "bert")


def test_token_ids_are_the_tokenizers_own(folder: Path) -> None:
    """Ids, special tokens and truncation are those of transformers' tokenizer; known words alone
    have neither special tokens nor unknown ones."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    vocabulary = open_vocabulary(str(folder), max_length=9)
    bags = vocabulary.bags(TEXTS)
    expected = tokenizer(TEXTS, truncation=True, max_length=9)["input_ids"]
    assert bags.indices.dtype == torch.int32 and bags.n_cols == len(vocabulary) == 130
    assert [bags.take(torch.tensor([i]))[0].tolist() for i in range(4)] == expected
    assert vocabulary.tokens(TEXTS).degrees().tolist() == [5, 0, 1, 9]


def test_chunks_of_texts_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More texts than are tokenized at a time come out as all at once."""
    vocabulary = open_vocabulary(str(folder), max_length=9)
    whole = vocabulary.bags(TEXTS)
    monkeypatch.setattr("shoal.text.pretrained._TEXTS", 3)
    again = vocabulary.bags(TEXTS)
    assert torch.equal(again.indices, whole.indices) and torch.equal(again.indptr, whole.indptr)


def test_token_ids_are_made_once(folder: Path, tmp_path: Path) -> None:
    """The same texts are mapped again; other texts, another length, a cut file: made anew."""
    short, long = (open_vocabulary(str(folder), max_length=n) for n in (5, 9))
    place = tmp_path / "tokens"
    first = long.mapped(TEXTS, place)
    assert torch.equal(first.indices, long.bags(TEXTS).indices)
    made = (place / "indices.npy").stat().st_mtime_ns
    assert torch.equal(long.mapped(TEXTS, place).indices, first.indices)
    assert (place / "indices.npy").stat().st_mtime_ns == made
    assert long.mapped(TEXTS[:2], place).n_rows == 2
    assert short.mapped(TEXTS[:2], place).degrees().tolist() == [5, 2]
    (place / "digest.txt").unlink()
    (place / "indices.npy").write_bytes(b"")
    assert short.mapped(TEXTS[:2], place).degrees().tolist() == [5, 2]


def test_a_saved_vocabulary_is_the_same(folder: Path, tmp_path: Path) -> None:
    """What save() wrote, open_vocabulary() reads, length included; a model of it can be made."""
    vocabulary = open_vocabulary(str(folder), max_length=9)
    vocabulary.save(tmp_path / "saved")
    again = open_vocabulary(str(tmp_path / "saved"))
    assert again.max_length == 9
    assert torch.equal(again.bags(TEXTS).indices, vocabulary.bags(TEXTS).indices)
    weights = open_backbone(str(folder)).state_dict()
    assert again.backbone().load_state_dict(weights)


def test_opening_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No bar and no report of transformers' on either stream; its own settings stay."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    open_vocabulary(str(folder), max_length=9)
    open_backbone(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_pickled_weights_are_refused(folder: Path) -> None:
    """A pickle in place of safetensors is named and never read; beside them it is ignored."""
    torch.save({}, folder / "pytorch_model.bin")
    open_backbone(str(folder))
    (folder / "model.safetensors").unlink()
    for reader in (open_vocabulary, open_backbone):
        with pytest.raises(InputError, match=r"pytorch_model\.bin: expected weights as model\.saf"):
            reader(str(folder))


def test_foreign_code_is_refused(folder: Path) -> None:
    """A configuration that names code of its own is not asked about, it is refused."""
    reference = "code--Model"
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": reference})
    with pytest.raises(InputError, match="expected a Hugging Face encoder, a folder or a name"):
        open_vocabulary(str(folder), max_length=9)


def test_folders_that_hold_no_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """Absent, a file, empty, without weights, without some, damaged: each one line, named."""
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[str, str]] = [
        ("./absent", "expected a folder with a Hugging Face model, got nothing there"),
        ("no/such/model", "expected a folder with a Hugging Face model, got nothing there"),
        (str(folder / "config.json"), "expected a folder with a Hugging Face model, got a file"),
        (str(empty), r"expected a folder with config\.json"),
    ]
    for name, message in cases:
        for reader in (open_vocabulary, open_backbone):
            with pytest.raises(InputError, match=message):
                reader(name)
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"expected weights of every layer, got none of \['enc"):
        open_backbone(str(folder))
    (folder / "model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(InputError, match=r"expected a whole \.safetensors file"):
        open_backbone(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected a Hugging Face encoder"):
        open_backbone(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="expected a Hugging Face encoder") as caught:
        open_vocabulary(str(folder), max_length=9)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_models_that_do_not_fit_are_refused(folder: Path) -> None:
    """Texts longer than the model reads, no length, fewer rows than tokens, a decoder."""
    for length in (41, -3):
        with pytest.raises(InputError, match="max_length: expected"):
            open_vocabulary(str(folder), max_length=length)
    change(folder / "config.json", vocab_size=100)
    with pytest.raises(InputError, match=r"expected embeddings\.word\S+ of shape \(100, 32\)"):
        open_vocabulary(str(folder), max_length=9)
    change(folder / "config.json", vocab_size=130, is_encoder_decoder=True)
    with pytest.raises(InputError, match="expected an encoder, got an encoder with a decoder"):
        open_vocabulary(str(folder), max_length=9)


def test_a_missing_library_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers or peft the error says which extra brings it."""
    backbone = open_backbone(str(folder))
    for module in ("transformers", "peft"):
        monkeypatch.setitem(sys.modules, module, None)
    for reader in (open_vocabulary, open_backbone):
        with pytest.raises(InputError, match=r"pip install 'torch-shoal\[text\]'"):
            reader(str(folder))
    with pytest.raises(InputError, match=r"pip install 'torch-shoal\[lora\]'"):
        add_lora(backbone, 2)
