"""Kernels: whether they run is asked once, and they pass the compiler for devices that exist."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from shoal.core.kernels import usable

CPU = torch.device("cpu")


@pytest.mark.parametrize("reason", ["Failed to find C compiler", "its answer differs"])
def test_kernels_that_do_not_run_cost_one_warning(reason: str) -> None:
    """Whatever keeps Triton from running is said once and not tried again; nothing is raised."""
    calls = []

    def probe(device: torch.device) -> bool:
        calls.append(device)
        if "compiler" in reason:
            raise RuntimeError(f"{reason}. Please specify via CC\nand a second line")
        return False

    with pytest.warns(UserWarning, match=f"does not run on cpu, so torch's own .*: {reason}"):
        assert not usable(probe, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not usable(probe, CPU)
    assert calls == [CPU]


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shoal.fetch import _triton as fetch
from shoal.sample import _triton as sample

def build(kernel, capability, types, **constants):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"], kernel
    assert "fma" not in built.asm["ptx"], kernel

whole = dict.fromkeys(["count", "width", "stride", "phase", "lines", "tiles", "blocks"], "i32")
ids = dict(ids="*i32", slots="*i64", offsets="*i64", fault="*i64", n="i32", **whole)
ids |= dict(keys="*i32", hits="*i64")
one = dict(table="*u8", held="*u8", out="*u8", ids="*i64", slots="*i64", fault="*i64", n="i64")
one |= dict(keys="*i64", hits="*i64", offsets="*i32", weights="*fp32")
one |= dict(count="i32", phase="i32", tiles="i32")
for capability in (80, 90):
    # numbers that are 1 are built in: a row of one byte
    rows = dict(LANES=1, ROWS=64, ALIGN=False, SORTED=False, PER=1)
    for held in (False, True):
        types = dict(KIND=0, width=1, stride=1, lines=1, HELD=held)
        build(fetch._rows, capability, one, **types, **rows)
    bags = dict(LANES=1, BAGS=64, UNROLL=4, PER=1, KIND=1, width=1, stride=1, blocks=1)
    build(fetch._bags, capability, one | dict(table="*i32", out="*fp32"), **bags)
    places = dict.fromkeys(("start", "degrees", "offsets", "positions"), "*i64")
    types = places | dict(count="i32", first="i32")
    build(sample._subsets, capability, types, LANES=1, ROWS=512, fanout=1)
    rows = dict(LANES=32, ROWS=8, ALIGN=True, SORTED=True)
    for held in (False, True):
        types = dict(table="*i64", held="*i64", out="*i64", **ids)
        build(fetch._rows, capability, types, PER=1, KIND=0, HELD=held, **rows)
    for table, per, kind in (("*i32", 4, 2), ("*u8", 1, 2), ("*i32", 2, 3), ("*i16", 1, 4)):
        types = dict(table=table, held=table, weights="*fp32", out="*fp32", **ids)
        build(fetch._rows, capability, types, PER=per, KIND=kind, HELD=False, **rows)
        build(fetch._bags, capability, types, LANES=32, BAGS=2, UNROLL=4, PER=per, KIND=kind)
    types = dict(table="*i64", weights="*fp64", out="*fp64", **ids)
    build(fetch._bags, capability, types, LANES=16, BAGS=8, UNROLL=4, PER=1, KIND=1)
    types = places | dict(count="i32", fanout="i32", first="i64")
    build(sample._subsets, capability, types, LANES=16, ROWS=32)
"""


@pytest.mark.slow
def test_kernels_compile_for_devices_that_are_not_here() -> None:
    """Triton compiles every kernel for an A100 and an H100, without fused multiply-adds.

    The interpreter takes code that the compiler refuses, so passing there says little about it.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
