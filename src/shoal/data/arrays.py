"""Graphs as named arrays: in one ``.npz`` or ``.safetensors``, or out of a PyG ``Data``.

Two layouts are understood. shoal's has ``indptr`` and ``indices`` (row v lists the nodes that v
reads) and sparse features in ``x_indptr``, ``x_indices``, ``x_data``, ``x_shape``; PyG's has
``edge_index`` (sources above targets, so v reads the sources of its edges) and dense features
``x``. Either may hold ``y`` and the split: ``train_mask``, ``val_mask``, ``test_mask``. Nothing
here is a pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_file, expect_finite, expect_ids
from shoal.core.mapped import map_array, tensors_of
from shoal.data.matrix import read_arrays
from shoal.data.splits import random_split

Arrays = Mapping[str, Tensor]
Splits = tuple[Int[Tensor, " n_train"], Int[Tensor, " n_valid"], Int[Tensor, " n_test"]]

SUFFIXES = (".npz", ".safetensors")
CLASSES = 2**20
"""The most classes: each has a row of weights, and a score for each node."""
_MASKS = ("train_mask", "val_mask", "test_mask")


def read(path: str | Path) -> dict[str, Tensor]:
    """All arrays of a file; large ones are mapped, and read when they are touched.

    Raises:
        InputError: naming the file, if it is missing, damaged or holds anything but numbers.
    """
    path = expect_file(path, "arrays (.npz or .safetensors)")
    if path.suffix == ".safetensors":
        return {name: map_array(found) for name, found in tensors_of(path).items()}
    arrays = read_arrays(path, _names(path))
    bad = [key for key, array in arrays.items() if array.dtype.kind not in "biuf"]
    expect(not bad, str(path), "arrays of numbers", f"others as {bad}", "leave them out")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _names(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return tuple(file.files)
    except Exception:  # read_arrays says what is wrong with it
        return ("indptr",)


def graph_of(arrays: Arrays) -> Csr:
    """The graph in either layout, ``[n, n]``.

    Raises:
        InputError: if there is none, or an id is out of range.

    Example:
        >>> graph_of({"edge_index": torch.tensor([[0, 2], [1, 1]])}).take(torch.arange(3))
        (tensor([0, 2]), tensor([0, 0, 2, 2]))
    """
    if "indptr" in arrays and "indices" in arrays:
        indptr, indices = _ints(arrays, "indptr"), _ints(arrays, "indices")
        return Csr(indptr, indices, max(len(indptr) - 1, 0)).validate()
    expect(
        "edge_index" in arrays,
        "graph",
        "indptr and indices, or edge_index",
        list(arrays),
        "add them",
    )
    edge_index = arrays["edge_index"]
    good = edge_index.dim() == 2 and len(edge_index) == 2 and not edge_index.is_floating_point()
    shape = f"{edge_index.dtype} {tuple(edge_index.shape)}"
    expect(good, "edge_index", "whole numbers, [2, edges]", shape, "transpose or convert it")
    ids = edge_index.long()
    known = [len(arrays[key]) for key in ("x", "y") if key in arrays and arrays[key].dim()]
    told = [int(arrays["x_shape"][0])] if "x_shape" in arrays else []
    told += [int(arrays["num_nodes"])] if "num_nodes" in arrays else []
    told += [int(ids.max()) + 1 if ids.numel() else 0]
    n = [*known, *told][0]
    if not known:
        expect_numbered("edge_index", n, ids.shape[1])
    expect_ids("edge_index", ids.flatten(), n)
    return Csr.from_edge_index(ids, n)


def expect_numbered(name: str, n: int, edges: int) -> None:
    """Raise if there are so many nodes for the edges that these cannot be numbered from 0.

    Raises:
        InputError: if there are.
    """
    few = n <= 128 * edges + 1_000_000
    expect(few, name, "nodes numbered from 0", f"{n} nodes, {edges} edges", "number them anew")


def _ints(arrays: Arrays, key: str) -> Int[Tensor, " k"]:
    array = arrays[key]
    good = array.dim() == 1 and not array.is_floating_point()
    expect(good, key, "1-d whole numbers", f"{array.dtype} {tuple(array.shape)}", "convert it")
    return array.long()


def features_of(arrays: Arrays, n: int) -> Csr | Float[Tensor, "n f"] | None:
    """Sparse or dense features, one row for each of `n` nodes; None where there are none.

    Raises:
        InputError: if they are not finite numbers, or have another number of rows.
    """
    sparse = [key for key in ("x_indptr", "x_indices", "x_data", "x_shape") if key in arrays]
    if len(sparse) == 4:
        shape, values = arrays["x_shape"], arrays["x_data"].float()
        expect(shape.numel() == 2, "x_shape", "two counts", tuple(shape.shape), "save [n, width]")
        indptr, indices = _ints(arrays, "x_indptr"), _ints(arrays, "x_indices")
        expect_finite("x_data", values)
        features = Csr(indptr, indices, int(shape[1]), values).validate()
        expect(features.n_rows == n, "features", f"{n} rows, one a node", features.n_rows, "align")
        return features
    expect(not sparse, "features", "x_indptr, x_indices, x_data, x_shape", sparse, "add the others")
    if "x" not in arrays:
        return None
    rows = arrays["x"].float()
    good = rows.dim() == 2 and len(rows) == n and rows.shape[1] > 0
    expect(good, "x", f"numbers [{n}, features], a row a node", tuple(rows.shape), "reshape it")
    expect_finite("x", rows)
    return rows


def target_of(y: Tensor) -> Int[Tensor, " n"] | Bool[Tensor, "n c"]:
    """The classes of nodes: ids with -1 for unknown, or one truth value a node and class.

    NaN, as OGB has it, is unknown. A matrix of one column is a vector.

    Raises:
        InputError: if there is a number that is neither a class nor a truth value.

    Example:
        >>> target_of(torch.tensor([[2.0], [float("nan")]]))
        tensor([ 2, -1])
        >>> target_of(torch.tensor([[0, 1], [1, 1]]))
        tensor([[False,  True],
                [ True,  True]])
    """
    good = y.dim() in (1, 2) and len(y) > 0
    expect(good, "y", "[nodes] or [nodes, classes]", tuple(y.shape), "reshape it")
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.dim() == 2:
        truth = bool(((y == 0) | (y == 1)).all())
        expect(truth, "y", "0 and 1 in a matrix of classes", "other numbers", "threshold it")
        return y.bool()
    known = torch.where(y.isnan(), -1, y) if y.is_floating_point() else y
    whole = bool((known == known.long()).all())
    expect(whole, "y", "whole numbers, or one column a class", "fractions", "number the classes")
    return known.long()


def class_names_of(target: Int[Tensor, " n"] | Bool[Tensor, "n c"]) -> tuple[str, ...]:
    """The classes by number: one a column, or all up to the largest.

    Raises:
        InputError: if there are more than :data:`CLASSES`: their numbers are no numbering.

    Example:
        >>> class_names_of(torch.tensor([2, -1]))
        ('0', '1', '2')
    """
    classes = target.shape[1] if target.dim() == 2 else int(target.max()) + 1
    few = classes <= CLASSES
    expect(few, "y", f"classes counted from 0, below {CLASSES}", classes - 1, "number them anew")
    return tuple(map(str, range(classes)))


def splits_of(
    arrays: Arrays, known: Bool[Tensor, " n"], valid: float, test: float, seed: int
) -> Splits:
    """Ids to learn from, to choose by and to be judged on: as masks say, or at random.

    Args:
        arrays: may hold all three masks.
        known: the nodes that have a class, among which a random split draws.
        valid: share to choose by, in (0, 1).
        test: share to be judged on, in (0, 1).
        seed: of the random split.

    Raises:
        InputError: if a mask is missing or no mask of the nodes, or a share is out of range.
    """
    found = [name for name in _MASKS if name in arrays]
    if not found:
        ids = known.nonzero().squeeze(1)
        expect(0 < test < 1 and 0 < valid < 1 - test, "valid, test", "shares", (valid, test), "try")
        rest, held = random_split(len(ids), test, seed)
        kept, chosen = random_split(len(rest), valid / (1 - test), seed + 1)
        return ids[rest[kept]], ids[rest[chosen]], ids[held]
    expect(len(found) == 3, "masks", ", ".join(_MASKS), found, "add the others, or leave all out")
    parts = []
    for name in _MASKS:
        mask = arrays[name]
        good = mask.shape == known.shape
        remedy = "pick one split, such as mask[:, 0]" if mask.dim() == 2 else "align it"
        expect(good, name, f"a mask [{len(known)}]", tuple(mask.shape), remedy)
        parts.append(mask.bool().nonzero().squeeze(1))
    return parts[0], parts[1], parts[2]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
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
        raise error if text.startswith(str(path)) else InputError(f"{path}: {text}") from None
