"""Measuring changes nothing: what is set while curvature is measured, and put back afterwards.

Modes of modules, random states and the position of the stream are as before, whether the
measurement ends or an exception leaves it half-way. Gradients and buffers are never written to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoal.core.errors import expect
from shoal.curvature.problem import reseed

Mode = Literal["eval", "train"]
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
DROPOUTS = (nn.modules.dropout._DropoutNd,)


@contextmanager
def preserve_state(model: nn.Module, loader: Any, mode: Mode, seed: int) -> Iterator[None]:
    """Measure within: modes, random states and the stream's position come back at the end.

    Within, modules are in `mode` (batch normalization keeps no running statistics), gradients are
    on, autocast is off, and attention is computed by the math kernel, the one that has second
    derivatives and forward mode.

    Args:
        model: whose modules change mode.
        loader: whose ``state_dict`` is kept, and the states of its generators.
        mode: ``"eval"``: batch normalization by running statistics, no dropout. ``"train"``: by
            the batch's statistics, and dropout.
        seed: of the random numbers that the loader draws within.
    """
    expect(mode in ("eval", "train"), "mode", '"eval" or "train"', mode, "choose one")
    with ExitStack() as stack:
        stack.enter_context(nothing_drawn(model, loader))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.autocast("cuda", enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        reseed(seed)
        model.train(mode == "train")
        yield


@contextmanager
def nothing_drawn(model: nn.Module, loader: Any) -> Iterator[None]:
    """Random states, the stream's position and modules' modes come back at the end.

    Within, batch normalization keeps no running statistics.
    """
    with _random_kept(), _stream_kept(loader), _modes_kept(model):
        yield


@contextmanager
def _random_kept() -> Iterator[None]:
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002


@contextmanager
def _stream_kept(loader: Any) -> Iterator[None]:
    holders = (loader, *(getattr(loader, x, None) for x in ("sampler", "batch_sampler", "dataset")))
    drawn = {id(x): x for x in (getattr(holder, "generator", None) for holder in holders)}
    generators = [x for x in drawn.values() if isinstance(x, torch.Generator)]
    states = [x.get_state() for x in generators]
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    position = loader.state_dict() if stateful else None
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if stateful:
            loader.load_state_dict(position)


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    modes = [module.training for module in modules]
    norms = [module for module in modules if isinstance(module, BATCH_NORMS)]
    tracked = [norm.track_running_stats for norm in norms]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it has no derivatives
        for norm in norms:
            norm.track_running_stats = False  # in training mode: read the batch, write nothing
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for norm, value in zip(norms, tracked, strict=True):
            norm.track_running_stats = value


def notes_on_modes(model: nn.Module, mode: Mode) -> list[str]:
    """What `mode` does to the modules of a model that behave differently in training."""
    modules = list(model.modules())
    notes = []
    if any(isinstance(module, BATCH_NORMS) for module in modules):
        read = "running statistics" if mode == "eval" else "each batch's own statistics"
        notes.append(f"batch normalization read {read} (mode={mode!r}); none were changed")
    if any(isinstance(module, DROPOUTS) and module.p > 0 for module in modules):
        did = "was off" if mode == "eval" else "drew one mask a batch, the same in all products"
        notes.append(f"dropout {did} (mode={mode!r})")
    return notes
