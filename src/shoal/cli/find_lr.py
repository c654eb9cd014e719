"""``shoal find-lr``: the learning rate of a run's model, or of a user's own objects, by trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoal.cli.objects import objects_of
from shoal.cli.parts import FindLr as Asked
from shoal.cli.spectrum import round_
from shoal.core.columns import Columns
from shoal.core.errors import InputError, expect, fail
from shoal.core.objectives import Objective
from shoal.step.find_lr import find_lr
from shoal.step.picture import picture


def search(asked: Asked) -> dict[str, Any]:
    """Run ``shoal find-lr``: try, print and draw.

    Returns:
        what the command prints.

    Raises:
        InputError: if the source is neither a run nor objects, or cannot be tried.
    """
    mine = objects_of(asked.source, asked.device)
    model, loss_fn, forward = mine.model, mine.loss_fn, mine.forward
    if isinstance(model, Objective):
        learns = getattr(mine.loader.table, "trainable", False)
        remedy = "shoal train --step spectral sets the rate of a run whose rows are trained"
        expect(not learns, asked.source, "a run with frozen rows", "trainable rows", remedy)
        loss_fn, model, forward = model.criterion, model.model, _called
    remedy = "return it beside model and loader"
    if mine.optimizer is None:
        fail("optimizer", "one of torch's", "none", remedy)
    if loss_fn is None:
        fail("loss_fn", "(outputs, targets) -> mean loss", "none", remedy)
    found = find_lr(
        model,
        loss_fn,
        mine.loader,
        mine.optimizer,
        asked.batch_sizes,
        steps=asked.steps,
        forward=forward,
        seed=asked.seed,
    )
    rows = [
        {
            "batch": x.batch_size,
            "take": round_(x.lr),
            "edge": None if x.edge is None else round_(x.edge),
            "loss_before": round_(x.best.before),
            "loss_after": round_(x.best.after),
            "runs": len(x.trials),
        }
        for x in found.found
    ]
    known = {"batch": found.known[0], "lr": found.known[1]}
    result: dict[str, Any] = {
        "now": known, "rates": Columns(rows), "gradients": found.gradients, "notes": [*found.notes]
    }  # fmt: skip
    home = Path(asked.source) if Path(asked.source).is_dir() else Path(asked.source).parent
    try:
        result["picture"] = str(picture((asked.out or home) / "rates.png", found))
    except InputError as error:
        result["notes"].append(f"no picture: {error}")
    return {key: value for key, value in result.items() if value != []}


def _called(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.blocks, batch.src)
