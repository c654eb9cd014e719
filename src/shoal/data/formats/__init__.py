"""Text formats, one file each: which of them a source is in, and conversion between them.

Each module of this package registers its formats as it is imported (:mod:`.registry`), and all are
imported with the package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from shoal.core.errors import InputError, expect, fail
from shoal.core.files import scratch, settle
from shoal.data.cells import TABLES
from shoal.data.formats.registry import FORMATS, Format

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

# files that are not read, and what to do with them
_ELSEWHERE = {
    (".xlsx", ".xls", ".ods"): "save it as CSV in the program that wrote it",
    (".pkl", ".pickle", ".gpickle"): "a pickle can run anything: save it as .parquet or .jsonl",
    (".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz", ".zst"): "unpack it, or pack it with gzip",
    (".arrow", ".feather"): "save it as Parquet: pyarrow.parquet.write_table",
    (".ttl", ".rdf", ".nt"): "write its labels as subjects.tsv, <URI><TAB>label a line",
    (".mtx", ".mat"): "save its matrix with scipy.sparse.save_npz",
}
_OF_A_MODEL = ("model.json", "export.json", "settings.json")


def format_of(path: Path) -> Format:
    """The format that a file or folder is in, by its names and its first line.

    Raises:
        InputError: if it is in none that is known; of a trained model it says what opens it.
    """
    forms = sorted(FORMATS.values(), key=lambda form: form.order)
    try:
        there, found = path.exists(), "no such file or folder"
    except OSError as error:  # a name that no file system takes
        there, found = False, str(error.strerror)
    if there:
        for form in forms:
            if form.fits(path):
                return form
        found = "another kind of file"
        if any((path / name).is_file() for name in _OF_A_MODEL):
            fail(str(path), "data", "a trained model", "open it with shoal.open")
        if path.is_dir():
            names = sorted(file.name for file in path.iterdir())[:8]
            found = f"a folder of {', '.join(names) or 'no files'}"
    endings = ", ".join(sorted({suffix for form in forms for suffix in form.suffixes}))
    want = f'"wordnet", a file ending in {endings}, or a folder of a known format'
    named = "name its files as docs/reference/formats.md has them"
    remedy = "convert it to one of these" if there and path.is_file() else named
    remedy = remedy if there else "check the path"
    if there and path.is_file():
        suffix = path.suffix.lower()
        remedy = next((said for known, said in _ELSEWHERE.items() if suffix in known), remedy)
    elif str(path).startswith(("http:/", "https:/", "s3:/", "hf:/")):
        found, remedy = "an address", "download it and pass the file"
    fail(str(path), want, found, remedy)


def convert(source: str, out: Path, to: str, encoding: str = "utf-8", **columns: Any) -> dict:
    r"""Write a data set in another format; what that cannot hold is said on standard error.

    Everything is written to the side and then renamed: `out` is there whole or not at all.

    Args:
        source: what :func:`shoal.data.load_labels` takes.
        out: a file or folder that is not there yet.
        to: a name of `FORMATS`.
        encoding: of the source's texts.
        columns: of the source, as :func:`shoal.data.load` names them.

    Returns:
        what was written, and what was lost.

    Raises:
        InputError: if the source cannot be read, the format is none or cannot hold it at all, `out`
            is taken or its suffix is another format's.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     mugs, out = Path(folder, "mugs.csv"), Path(folder, "mugs")
        ...     _ = mugs.write_text("text,labels\nred mug,cup\ntea,drink\n")
        ...     done = convert(str(mugs), out, "beir")
        ...     sorted(path.name for path in out.iterdir()), done["labels"], done["lost"]
        (['corpus.jsonl', 'qrels', 'queries.jsonl'], 2, [])
    """
    from shoal.data import load_labels

    if to not in FORMATS:
        fail("to", f"one of {', '.join(sorted(FORMATS))}", to, "choose one")
    suffix = FORMATS[to].suffix
    good = out.suffix == suffix if suffix else out.suffix not in TABLES
    want = f"a name that ends in {suffix}" if suffix else "the name of a folder"
    expect(good, "out", want, out, "rename it or change --to")
    expect(not out.exists(), str(out), "nothing there yet", "a file or folder", "remove it first")
    data, made = load_labels(source, encoding=encoding, **columns), Path()
    try:
        with scratch(out) as side:
            made = side / out.name
            lost = FORMATS[to].write(data, made)
            settle(made)
            made.rename(out)
    except InputError as error:
        raise InputError(str(error).replace(str(made), str(out))) from None
    except OSError as error:
        fail(str(out), "a place that can be written", error, "name another or free space")
    for what in lost:
        print(f"shoal: {to} cannot hold {what}", file=sys.stderr)
    counts = {"train": len(data.train), "test": len(data.test), "labels": len(data.labels)}
    return {"source": source, "out": str(out), "format": to, **counts, "lost": lost}
