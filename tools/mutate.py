"""Change a module in one place at a time and see whether its tests notice.

    python tools/mutate.py src/shoal/core/metrics.py tests/core/test_metrics.py --seconds 300

A change that no test notices is printed: a test is missing there, or the change means nothing. Each
change is tried in a fork of a process that has imported the libraries, so that it costs the time of
the tests alone; which ones are tried first is random, by --seed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import scipy.sparse
import torch

LOADED = scipy.sparse, torch  # before the forks, not in each
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """Each node, field and new value that changes what the code does; not annotations or words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "value", not node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield node, "value", node.value + 1
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node, "id", NAMES[node.id]
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, "attr", NAMES[node.attr]


def changes(source: str) -> list[tuple[int, str, str]]:
    """Line, words and whole source of each change."""
    found = []
    for i in range(sum(1 for _ in places(ast.parse(source)))):
        tree = ast.parse(source)
        node, field, value = next(x for j, x in enumerate(places(tree)) if j == i)
        before = ast.unparse(node)
        setattr(node, field, value)
        found.append((getattr(node, "lineno", 0), f"{before}  ->  {ast.unparse(node)}", tree))
    return [(line, words, ast.unparse(tree)) for line, words, tree in found]


def passes(path: Path, source: str, tests: list[str], limit: float) -> bool:
    """Whether the tests pass with another source in a module's place."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        read = SourceFileLoader.get_data

        def changed(loader: SourceFileLoader, name: str) -> bytes:
            if Path(name) == path:
                return source.encode()
            if name.endswith(".pyc") and path.stem in name:
                raise OSError
            return read(loader, name)

        SourceFileLoader.get_data = changed  # pyright: ignore[reportAttributeAccessIssue]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(pytest.main(["-qx", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False  # an endless loop is noticed, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--seconds", type=float, default=300.0, help="to try changes for")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = args.module.resolve()
    source, tests = path.read_text(), list(args.tests)
    begin = time.monotonic()
    if not passes(path, ast.unparse(ast.parse(source)), tests, 600):
        sys.exit(f"{args.module}: expected tests that pass, got a failure; mend it first")
    limit = 5 * (time.monotonic() - begin) + 10
    begin = time.monotonic()
    todo, tried, lived = changes(source), 0, 0
    random.Random(args.seed).shuffle(todo)
    for line, words, changed in todo:
        if time.monotonic() - begin > args.seconds:
            break
        tried += 1
        if passes(path, changed, tests, limit):
            lived += 1
            print(f"{args.module}:{line}: {words}", flush=True)
    print(f"{args.module}: {tried} of {len(todo)} changes tried, {lived} unnoticed")


if __name__ == "__main__":
    main()
