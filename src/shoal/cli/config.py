"""Settings from words and from TOML files, and the TOML file that a run leaves behind.

A file holds flat keys, spelled like the flags: ``batch-size = 1024``; ``task`` names the task.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from shoal.core.errors import expect, fail

FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parsed(settings: Any, prog: str, words: list[str], default: Any = None) -> Any:
    """The settings that words stand for.

    Args:
        settings: a dataclass.
        prog: the command, for usage and errors.
        words: flags and positional arguments; for ``--help`` and for mistakes tyro exits by itself.
        default: settings that hold where the words say nothing.
    """
    given = {} if default is None else {"default": default}
    return tyro.cli(settings, prog=prog, args=words, config=FLAGS, **given)


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file, keys spelled as attributes.

    Raises:
        InputError: if it is no such file.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        fail(str(path), "a TOML file of settings", got, "name the run.toml of a run, or mend it")
    return {key.replace("-", "_").strip("_"): value for key, value in found.items()}


def settings_from(settings: Any, values: dict[str, Any], path: Path) -> Any:
    """Settings of a file; what it leaves out has its default, or is still required as a word.

    Args:
        settings: a dataclass whose fields, and those of the dataclasses in it, are the keys.
        values: of :func:`read`.
        path: of the file, for errors.

    Raises:
        InputError: naming the first key that is unknown, with the nearest known one, or whose value
            is of another type.
    """
    known = sorted(name for name, _ in _kinds(settings))
    for key in values:
        if key not in known:
            near = [_flag(name) for name in get_close_matches(key, known, n=1)]
            remedy = f"did you mean {near[0]}?" if near else "remove it"
            fail(f"{path}: {_flag(key)}", "a setting of this task", "an unknown key", remedy)
    for name, kind in _kinds(settings):
        good = name not in values or _is_a(values[name], kind)
        got = repr(values.get(name))
        expect(good, f"{path}: {_flag(name)}", _spelled(kind), got, "correct the value")
    return _filled(settings, None, values)


def settings_of_run(settings: Any, values: dict[str, Any]) -> Any:
    """Settings as a run wrote them down; what today's do not have, or have otherwise, is left out.

    Args:
        settings: a dataclass.
        values: of ``settings.json``, of any version.
    """
    known = {
        name: values[name]
        for name, kind in _kinds(settings)
        if name in values and _is_a(values[name], kind)
    }
    return _filled(settings, None, known)


def _filled(settings: Any, default: Any, values: dict[str, Any]) -> Any:
    """A dataclass with values by name, groups inside it filled as well."""
    given, hints = {}, get_type_hints(settings)
    for one in fields(settings):
        kind, name = hints[one.name], one.name.strip("_")
        required = one.default is MISSING and one.default_factory is MISSING
        if is_dataclass(kind):
            factory: Any = kind if one.default_factory is MISSING else one.default_factory
            group = factory() if one.default is MISSING else one.default
            given[one.name] = _filled(kind, getattr(default, one.name, group), values)
        elif name in values:
            given[one.name] = _converted(values[name], kind)
        elif default is None and required:
            given[one.name] = tyro.MISSING
    return settings(**given) if default is None else replace(default, **given)


def _kinds(settings: Any) -> Iterator[tuple[str, Any]]:
    """Names and types of all fields, those of groups in their place.

    Yields:
        one pair per field.
    """
    for name, kind in get_type_hints(settings).items():
        yield from _kinds(kind) if is_dataclass(kind) else [(name.strip("_"), kind)]


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    as_path = isinstance(value, str) and Path in (kind, *get_args(kind))
    return Path(value) if as_path else value


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value of TOML is what an annotation says: a class, a choice, a union, a tuple."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts and not isinstance(value, bool)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list) and all(_is_a(x, parts[0]) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else str if kind is Path else kind)


def _spelled(kind: Any) -> str:
    """What an annotation asks for, in words.

    Example:
        >>> _spelled(int | None), _spelled(tuple[int, ...]), _spelled(Literal["sage", "gat"])
        ('a whole number', 'a list of whole numbers', 'sage or gat')
    """
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    parts = [part for part in get_args(kind) if part not in (type(None), Ellipsis)]
    if get_origin(kind) is Literal:
        return " or ".join(map(str, parts))
    if get_origin(kind) is tuple:
        return f"a list of {_spelled(parts[0]).removeprefix('a ')}s"
    return " or ".join(map(_spelled, parts)) if parts else words.get(kind, "the path of a file")


def written(values: dict[str, Any]) -> str:
    r"""TOML with a line per value; None, which it cannot hold, is left out.

    Example:
        >>> print(written({"batch_size": 8, "fanouts": [15, 10], "lr": None, "fields": True}))
        batch-size = 8
        fanouts = [15, 10]
        fields = true
        >>> tomllib.loads(written({"a": 'C:\\x "y" \x7f 😀'}))["a"] == 'C:\\x "y" \x7f 😀'
        True
    """
    kept = {key: value for key, value in values.items() if value is not None}
    return "\n".join(f"{_flag(key)} = {_literal(value)}" for key, value in kept.items())


def _literal(value: Any) -> str:
    """One value: JSON's spelling but for what TOML writes otherwise."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
    return str(value).lower()


def _flag(name: str) -> str:
    return name.replace("_", "-")
