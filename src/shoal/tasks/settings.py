"""Settings that every training command has; those of a task are a subclass of :class:`Training`.

A task's file holds a small frozen dataclass and one function from it to a model. Fields become
flags, their docstrings the help. A field that is a dataclass itself becomes a group of the help,
and its fields are flags without a prefix, so that each name may occur once in all groups. Nothing
here imports torch, so that ``--help`` answers at once.

Example:
    >>> from dataclasses import dataclass, field
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Network:
    ...     hidden: int = 256
    ...     "Width of hidden layers."
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Nodes(Training):
    ...     network: Network = Network()
    >>> flat(Nodes(source="graph.npz", network=Network(hidden=8)))["hidden"]
    8
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeAlias

import tyro

from shoal.core.errors import expect, fail


def _optional(kind: Any, metavar: str, name: str | None = None) -> Any:
    """An option that is None by default, which the help neither lists nor repeats."""

    def hint(default: str) -> str:
        return "" if default == "None" else f"(default: {default})"

    option = tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=hint)
    # Optional, not |: for that tyro imports a type checker, which takes longer than all the rest
    return Annotated[Optional[kind], option]  # noqa: UP045


Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
if TYPE_CHECKING:
    Flag: TypeAlias = bool
    Int: TypeAlias = int | None
    Ints: TypeAlias = tuple[int, ...] | None
    Float: TypeAlias = float | None
    Text: TypeAlias = str | None
    File: TypeAlias = Path | None
    From: TypeAlias = Path | None
    Tracker: TypeAlias = Literal["tensorboard", "wandb", "mlflow"] | None
else:
    # no --no-json beside --json
    Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
    Tracker = _optional(Literal["tensorboard", "wandb", "mlflow"], "{tensorboard,wandb,mlflow}")
    Int, Float = _optional(int, "INT"), _optional(float, "FLOAT")
    Ints = _optional(tuple[int, ...], "INT [INT ...]")
    Text, File = _optional(str, "TEXT"), _optional(Path, "PATH")
    From = _optional(Path, "PATH", name="from")  # of a field from_: Python keeps the word


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every subcommand."""

    json: Flag = False
    """Print one JSON object on standard output; messages and progress go to standard error."""
    verbose: Flag = False
    """Also log what shoal does and how long it takes, on standard error."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a table of texts and labels is read: .csv, .tsv, .jsonl, .parquet."""

    text_column: Text = None
    """Column with the texts; "text" by default."""
    title_column: Text = None
    """Column with titles of the texts; none by default."""
    labels_column: Text = None
    """Column with the labels; "labels" by default."""
    separator: Text = None
    """What separates the labels of one row; "|" by default."""
    split: Text = None
    """Column that says which rows are for training and which for testing; "split" by default."""
    encoding: str = "utf-8"
    """Encoding of the files' text, such as utf-8 or latin-1."""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of :func:`shoal.load` that were given."""
        values = {x.name: getattr(self, x.name) for x in fields(self)}
        values["split_column"] = values.pop("split")
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Training(Common):
    """Options of every ``shoal train TASK``."""

    source: Source
    """The data: a name, a folder or a file that shoal.load reads."""
    config: File = None
    """Take settings from this TOML file, such as the run.toml of a run; flags overrule it."""
    out: File = None
    """Folder of the run; runs/<name of the data> by default."""
    resume: Flag = False
    """Continue the run in --out."""
    track: Tracker = None
    """Also log metrics to this tracker; needs the extra track-<its name>."""
    steps: Int = None
    """Stop after this many optimizer steps."""
    epochs: Int = None
    """Stop after this many passes over the training examples."""
    minutes: Float = None
    """Stop after this many minutes of training; where labels are trained, of the encoder."""
    patience: Int = None
    """Stop after this many validations in a row without an improvement."""
    seed: int = 0
    """Seed of all random numbers."""
    batch_size: Int = None
    """Examples per batch."""
    lr: Float = None
    """Peak learning rate."""
    step: str = "schedule"
    """Learning rate: schedule, spectral (corrected by curvature while training) or module:name."""
    valid_every: int = 5
    """Epochs between two validations."""
    keep_resume: Flag = False
    """Keep what only --resume needs once the run has ended: checkpoints with optimizer state."""
    device: str = "auto"
    """Where to compute: auto (the strongest that works), cpu, cuda, cuda:1, mps."""

    def load_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`shoal.load`: those of the group ``table``, if any."""
        table = getattr(self, "table", None)
        return table.arguments() if isinstance(table, Table) else {}

    def fit_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model's ``fit``; a task adds its own, such as ``valid``."""
        names = ("resume", "steps", "epochs", "minutes", "patience", "valid_every")
        names += ("keep_resume",)
        return {name: getattr(self, name) for name in names}


# Settings of one call of the command, not of what is trained: run.toml does not keep them.
OF_THE_CALL = frozenset({"json", "verbose", "config", "out", "resume"})


def flat(settings: Any) -> dict[str, Any]:
    """All settings by name, groups opened, as JSON and TOML hold them: tuples are lists.

    Example:
        >>> flat(Table(separator=";"))["separator"]
        ';'
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(settings):
        value = str(value) if isinstance(value, Path) else value
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _leaves(settings: Any) -> Iterator[tuple[str, Any]]:
    for one in fields(settings):
        value = getattr(settings, one.name)
        yield from _leaves(value) if is_dataclass(value) else [(one.name.strip("_"), value)]


def named(name: str, what: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` names, such as a user's loss or layer.

    The code is run: name only code that you would run.

    Args:
        name: a module on the path or in the working folder, or a file, a colon, and a name in it,
            dots allowed.
        what: it is meant for, as errors call it.

    Raises:
        InputError: if there is no such module, file or name.

    Example:
        >>> named("math:hypot", "loss")(3, 4)
        5.0
    """
    home, _, path = name.rpartition(":")
    want = "module:name or file.py:name of something that can be imported"
    expect(bool(home and path), what, want, name, "name it like mymodule:MyLoss")
    try:
        module = _module_of(Path(home)) if home.endswith(".py") else _imported(home)
        return attrgetter(path)(module)
    except (ImportError, AttributeError) as error:
        fail(what, want, f"{name} ({error})", "check its spelling, and PYTHONPATH for its folder")


def _imported(name: str) -> Any:
    """Import a module; a command does not have the working folder on its path, as python does."""
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)
    return import_module(name)


def _module_of(path: Path) -> Any:
    """Run a file as a module.

    Raises:
        ImportError: if there is none.
    """
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no file {path}")
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module
