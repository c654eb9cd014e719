"""Messages that say what was expected, what came and what to do.

Everything a user can cause ends here: one :class:`InputError` of one line. The command prints that
line and exits with status 2; any other exception is a bug of shoal's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

_AT_A_TIME = 2**24  # numbers that are looked at together


class InputError(ValueError):
    """Bad input: the message holds expected, got and remedy in one line."""


def expect(ok: bool, name: str, expected: str, got: object, remedy: str) -> None:
    """Raise unless `ok`.

    Args:
        ok: the condition that must hold.
        name: the argument, or the file and line, that is being checked.
        expected: what a good value looks like.
        got: what came instead.
        remedy: what the user should do, as an imperative.

    Raises:
        InputError: if `ok` is false.

    Example:
        >>> expect(3 % 2 == 1, "size", "an odd number", 3, "add one")
        >>> expect(4 % 2 == 1, "size", "an odd number", 4, "add one")
        Traceback (most recent call last):
            ...
        shoal.core.errors.InputError: size: expected an odd number, got 4; add one
    """
    if not ok:
        fail(name, expected, got, remedy)


def fail(name: str, expected: str, got: object, remedy: str) -> NoReturn:
    """Raise what :func:`expect` raises, in a branch that only bad input reaches.

    Raises:
        InputError: always.
    """
    told = f"{name}: expected {expected}, got {got}; {remedy}"
    raise InputError(" ".join(told.splitlines()))  # a file's own words may be several lines


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Put a file's or folder's name before the errors of what is done with it.

    Yields:
        nothing.

    Raises:
        InputError: as it came, with the name.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        raise error if text.startswith(str(where)) else InputError(f"{where}: {text}") from None


def expect_positive(name: str, value: int) -> None:
    """Raise unless `value` is an integer of at least one.

    Raises:
        InputError: if it is not.
    """
    is_count = isinstance(value, int) and not isinstance(value, bool)
    expect(is_count and value >= 1, name, "a whole number of at least 1", value, "raise it")


def expect_index(name: str, ids: Tensor) -> None:
    """Raise unless `ids` is a 1-d int32 or int64 tensor; reads no value, so waits for no device.

    Raises:
        InputError: if it is not.
    """
    import torch

    if not isinstance(ids, torch.Tensor):
        fail(name, "a 1-d int32 or int64 tensor", type(ids).__name__, "pass torch.as_tensor(ids)")
    kind = f"{ids.dim()}-d {ids.dtype}"
    is_index = ids.dim() == 1 and ids.dtype in (torch.int32, torch.int64)
    expect(is_index, name, "a 1-d int32 or int64 tensor", kind, "convert it with .long()")


def expect_ids(name: str, ids: Tensor, n: int) -> None:
    """Raise unless `ids` is a 1-d integer tensor with entries in ``[0, n)``.

    Raises:
        InputError: if it is not; the first bad entry is named.
    """
    expect_index(name, ids)
    if ids.numel() == 0:
        return
    low, high = (int(x) for x in ids.aminmax())
    bad = low if low < 0 else high
    expect(low >= 0 and high < n, name, f"ids in [0, {n})", bad, "check what the ids index")


def expect_finite(name: str, rows: Tensor) -> None:
    """Raise if a row of `rows` holds NaN or infinity.

    Raises:
        InputError: naming the first such row.
    """
    each = max(_AT_A_TIME // max(rows[:1].numel(), 1), 1)
    for begin in range(0, len(rows), each):  # rows of a mapped file may be more than memory
        finite = rows[begin : begin + each].isfinite()
        if not bool(finite.all()):
            first = begin + int((~finite).nonzero()[0, 0])
            fail(name, "finite rows", f"NaN or infinity in row {first}", "clean or drop it")


def expect_numbered(name: str, what: str, n: int, entries: int, free: int = 1_000_000) -> None:
    """Raise if there are so many of what a file numbers that its entries cannot be a numbering.

    Memory is taken for each number, whether it occurs or not.

    Args:
        name: of the file or the array.
        what: is numbered, for the message.
        n: how many there are by the file's word.
        entries: how many of its entries name one.
        free: so many are always believed.

    Raises:
        InputError: if there are more than `free` and 128 an entry.
    """
    got = f"{n} {what}, {entries} entries"
    few = n <= 128 * entries + free
    expect(few, name, f"{what} numbered from 0", got, "number them anew")


def expect_device(name: str) -> None:
    """Raise unless torch can compute on the device here.

    Raises:
        InputError: if it cannot.
    """
    import torch

    try:
        torch.ones(1, device=name).item()  # a device without numbers, such as meta, fails here
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fail("device", "a device that torch can use here", f"{name} ({reason})", "use cpu")


def expect_file(path: str | Path, what: str) -> Path:
    """Return `path` if it is a readable file.

    Raises:
        InputError: if it is missing or a folder.
    """
    path = Path(path)
    expect(path.is_file(), str(path), f"a file with {what}", _kind(path), "check the path")
    return path


def expect_folder(path: str | Path, what: str) -> Path:
    """Return `path` if it is a folder.

    Raises:
        InputError: if it is missing or a file.
    """
    path = Path(path)
    expect(path.is_dir(), str(path), f"a folder with {what}", _kind(path), "check the path")
    return path


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a file" if path.exists() else "nothing there"
