"""Reading a Hugging Face model: its configuration, its tokenizer, its weights.

Only JSON and safetensors are read. A folder whose weights are a pickle, or a model that would bring
code of its own, is refused by name: opening a model runs nothing of its maker's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import (
    InputError,
    expect,
    expect_finite,
    expect_folder,
    expect_positive,
    fail,
)
from shoal.core.files import expect_inside, sync
from shoal.core.mapped import tensors_of
from shoal.core.progress import progress
from shoal.data.texts import plain_texts

ENCODERS = (
    "albert", "bert", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "eurobert", "fnet", "ibert", "mobilebert", "modernbert", "mpnet",
    "nomic_bert", "nystromformer", "roberta", "roberta-prelayernorm", "roformer", "squeezebert",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Types of models that are read: encoders of text whose configuration names nothing to fetch."""
_SHARD = re.compile(r"[\w.-]+\.safetensors")
# texts handed to the tokenizer at a time: its answers are objects, and a million of them is memory
_TEXTS = 16384


@dataclass(frozen=True, eq=False)
class TransformerVocabulary:
    """What a transformer brings besides its weights: configuration and tokenizer.

    Attributes:
        config: transformers' configuration of the model.
        tokenizer: transformers' fast tokenizer.
        max_length: token ids a text, special ones included; what is beyond is cut off.
    """

    config: Any
    tokenizer: Any
    max_length: int

    def __post_init__(self) -> None:
        """Check that model and tokenizer fit one another and the length.

        Raises:
            InputError: if not.
        """
        config, tokenizer = self.config, self.tokenizer
        name = str(config.name_or_path or config.model_type)
        expect_positive("max_length", self.max_length)
        limit = min(getattr(config, "max_position_embeddings", 10**9), tokenizer.model_max_length)
        want = f"at most {limit} tokens, as {name} reads"
        expect(self.max_length <= limit, "max_length", want, self.max_length, "lower it")
        good = not config.is_encoder_decoder
        expect(good, name, "an encoder", "an encoder with a decoder", "name another model")
        expect(tokenizer.is_fast, name, "a fast tokenizer", "a slow one", "convert the model's")
        want = f"at most {config.vocab_size} tokens, as the model has rows"
        expect(len(tokenizer) <= config.vocab_size, name, want, len(tokenizer), "repair the folder")

    def __len__(self) -> int:
        return self.config.vocab_size

    @cached_property
    def _cutting(self) -> Tokenizer:
        # the library's own: unlike transformers' wrapper it keeps no state between calls, so that
        # several threads may use it
        tokenizer = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        tokenizer.enable_truncation(self.max_length)
        tokenizer.no_padding()
        return tokenizer

    def bags(self, texts: Sequence[str]) -> Csr:
        """Token ids of each text in order, special tokens included: int32 ``[n, V]``."""
        return self._csr(texts, special=True, drop=None)

    def tokens(self, texts: Sequence[str]) -> Csr:
        """Known tokens of each text in order, without special ones: int32 ``[n, V]``."""
        return self._csr(texts, special=False, drop=self.tokenizer.unk_token_id)

    def _csr(self, texts: Sequence[str], special: bool, drop: int | None) -> Csr:
        parts, lengths = [torch.zeros(0, dtype=torch.int32)], [0]
        texts = plain_texts(texts)
        for start in progress(range(0, len(texts), _TEXTS), "tokenize"):
            found = self._encoded(texts[start : start + _TEXTS], special)
            ids = [[i for i in encoding.ids if i != drop] for encoding in found]
            lengths.extend(len(row) for row in ids)
            parts.append(torch.tensor([i for row in ids for i in row], dtype=torch.int32))
        return Csr(torch.tensor(lengths).cumsum(0), torch.cat(parts), len(self))

    def _encoded(self, texts: list[str], special: bool) -> list[Any]:
        """What the library makes of texts; its panics are no ``Exception``.

        Raises:
            InputError: if the tokenizer cannot read a text.
        """
        try:
            return self._cutting.encode_batch_fast(texts, add_special_tokens=special)
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise  # an interrupt
            name = str(self.config.name_or_path or self.config.model_type)
            reason = " ".join(str(error).split())[:200]
            fail(
                name, "a tokenizer that reads texts", reason, "use a model whose tokenizer is whole"
            )

    def mapped(self, texts: Sequence[str], folder: Path) -> Csr:
        """:meth:`bags` in a file, mapped; made only where `folder` does not hold them yet.

        Raises:
            InputError: if the folder cannot be written to.
        """
        digest = hashlib.blake2b(self._cutting.to_str().encode())
        for text in plain_texts(texts):
            digest.update(text.encode() + b"\0")
        mark = folder / "digest.txt"
        try:
            if not mark.exists() or mark.read_text() != digest.hexdigest():
                mark.unlink(missing_ok=True)
                self.bags(texts).save(folder)
                for path in folder.iterdir():
                    sync(path)  # the mark must not outlive what it vouches for
                mark.write_text(digest.hexdigest())
        except OSError as error:
            fail(str(folder), "a folder to write to", error.strerror, "free space on the disk")
        return Csr.open(folder)

    def save(self, folder: Path) -> None:
        """Write ``config.json``, ``tokenizer.json`` and ``tokenizer_config.json``."""
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def backbone(self) -> nn.Module:
        """A model of this configuration, its weights random."""
        with _reading(str(self.config.name_or_path)):
            return _frozen_pooler(_transformers().AutoModel.from_config(self.config))


def open_vocabulary(name: str, max_length: int | None = None) -> TransformerVocabulary:
    """Read configuration and tokenizer of a model, a folder or a name on the Hugging Face hub.

    Args:
        name: of the model.
        max_length: token ids a text; None for as many as the tokenizer was saved with.

    Raises:
        InputError: if transformers is not installed, or there is no such model, or it is none that
            shoal can use.
    """
    config, given = _opened(name)
    library = _transformers()
    with _reading(name):
        tokenizer = library.AutoTokenizer.from_pretrained(name, config=config, **given)
    vocabulary = TransformerVocabulary(config, tokenizer, max_length or tokenizer.model_max_length)
    tokenizer.model_max_length = vocabulary.max_length  # is saved with it
    return vocabulary


def open_backbone(name: str) -> nn.Module:
    """Read a model with its weights; a pooler, which no vector is read from, does not learn.

    Raises:
        InputError: as :func:`open_vocabulary`, or if weights are missing.
    """
    config, given = _opened(name)
    load = _transformers().AutoModel.from_pretrained
    with _reading(name):
        model, info = load(
            name, config=config, use_safetensors=True, output_loading_info=True, **given
        )
    for where, part in (*model.named_parameters(), *model.named_buffers()):
        if part.is_floating_point() and part.numel():
            expect_finite(f"{name}: {where}", torch.atleast_1d(part.detach()))
        part.data = part.data.clone()  # transformers maps them: who cuts the file kills the process
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    expect(not missing, name, "weights of every layer", f"none of {missing[:1]}", "use another one")
    return _frozen_pooler(model)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up: pyo3's class for it is no ``Exception``."""
    return type(error).__name__ == "PanicException"


def add_lora(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone and give each of its linear layers an adapter that learns, in place.

    Low-rank adapters (Hu et al., ICLR 2022, equation 3) with α = rank: ``W x + B A x``, B from 0.

    Raises:
        InputError: if the rank is not positive or peft is not installed.
    """
    expect_positive("lora", rank)
    peft = require("peft", "lora", "lora")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
    peft.inject_adapter_in_model(config, backbone)
    _frozen_pooler(backbone)


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them, in place.

    Raises:
        InputError: if the model has no such mode.
    """
    model: Any = backbone
    # renamed in transformers 5, whose later releases warn about the older name
    renamed = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable"
    try:
        getattr(model, name)({"use_reentrant": False})
    except ValueError as error:
        fail("gradient_checkpointing", "a model that can", error, "leave it out")


def _frozen_pooler(model: Any) -> nn.Module:
    pooler = getattr(model, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def _transformers() -> ModuleType:
    return require("transformers", "encoder", "text")


def _opened(name: str) -> tuple[Any, dict[str, Any]]:
    """The configuration of a model, and how its other parts are read.

    A folder is read without the network, whatever its configuration names; and what is not known
    to be a plain encoder is not built at all, since others fetch parts of theirs.

    Raises:
        InputError: if the model is none that may be read.
    """
    folder = Path(name)
    remote = not folder.exists() and name.count("/") <= 1
    remote = remote and not name.startswith((".", "/", "~"))
    if not remote:
        _expect_safe(folder, name)
    given = {"trust_remote_code": False, "local_files_only": not remote}
    with _reading(name):
        config = _transformers().AutoConfig.from_pretrained(name, **given)
    known = config.model_type in ENCODERS
    remedy = "name a model of one of these types"
    expect(known, name, f"an encoder ({', '.join(ENCODERS)})", config.model_type, remedy)
    if not remote:
        _expect_sizes(folder, config)
    return config, given


def _expect_sizes(folder: Path, config: Any) -> None:
    """Raise unless the weights of a folder are as many as its configuration says.

    Only headers are read, and the model is built without memory for its weights.

    Raises:
        InputError: naming a weight.
    """
    found = {
        name: layout.shape
        for path in sorted(folder.glob("*.safetensors"))
        for name, layout in tensors_of(path).items()
    }
    if not found:  # a tokenizer and its configuration alone
        return
    remedy = "put back the config.json that belongs to the weights"
    layers = getattr(config, "num_hidden_layers", 0)
    few = isinstance(layers, int) and layers <= len(found)
    expect(few, str(folder), f"at most {len(found)} layers", layers, remedy)
    with _reading(str(folder)), torch.device("meta"):
        own = _transformers().AutoModel.from_config(config)
    ends = {name.rpartition(f"{own.base_model_prefix}.")[2]: x for name, x in found.items()}
    for name, value in own.state_dict().items():
        got = ends.get(name, tuple(value.shape))  # what is missing is said when it is read
        want = f"{name} of shape {tuple(value.shape)}"
        expect(got == tuple(value.shape), str(folder), want, got, remedy)


def _expect_safe(folder: Path, name: str) -> None:
    """Refuse what is no folder with a model, and weights that are a pickle or elsewhere.

    Raises:
        InputError: naming the folder or the file.
    """
    expect_folder(folder, "a Hugging Face model")
    expect_inside(folder)
    has_config = (folder / "config.json").is_file()
    expect(has_config, name, "a folder with config.json", "one without", "name a model's folder")
    pickles = sorted(x for x in folder.iterdir() if x.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and not any(folder.glob("*.safetensors")):
        remedy = "convert it, since reading a pickle runs code"
        fail(str(pickles[0]), "weights as model.safetensors", "a pickle", remedy)
    for index in sorted(folder.glob("*.index.json")):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            fail(str(index), "which file holds which weight", repr(error)[:80], "save it again")
        bad = [x for x in parts if not isinstance(x, str) or _SHARD.fullmatch(x) is None]
        want = "names of .safetensors files in the folder"
        expect(not bad, str(index), want, bad[:1], "save the model again")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Read quietly, and turn what transformers raises into one line.

    Raises:
        InputError: if the model cannot be read.
    """
    log = _transformers().utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise  # an interrupt
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fail(name, "a Hugging Face encoder, a folder or a name", reason, "check the name")
    finally:
        log.set_verbosity(level)
        log.enable_progress_bar() if bar else None
