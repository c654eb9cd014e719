"""The callbacks of transformers' Trainer and of Lightning: epochs, clusters, resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.core.errors import InputError
from shoal.integrations import lightning, transformers
from shoal.integrations.batches import NgameBatchSampler
from shoal.sample.seeds import ClusterBatchSampler

N = 24


def _sampler() -> NgameBatchSampler:
    rows = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    return NgameBatchSampler(ClusterBatchSampler(N, 8, 4, seed=0), lambda: rows)


def _state(step: int, epoch: float) -> Any:
    return SimpleNamespace(global_step=step, epoch=epoch, is_world_process_zero=True)


def test_transformers_resume_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The events of a resumed run, in the trainer's order, give the uninterrupted run's batches."""
    pytest.importorskip("transformers", reason="needs the extra text")
    args = SimpleNamespace(output_dir=str(tmp_path))
    whole = _sampler()
    callback = transformers.refresh_callback(whole)
    callback.on_train_begin(args, _state(0, 0), None, model=None)
    stream: list[list[list[int]]] = []
    for epoch in range(3):
        callback.on_epoch_begin(args, _state(3 * epoch, epoch), None, model=None)
        stream.append(list(whole))
        if epoch == 1:  # saved after step 5, two thirds into the clustered epoch 1
            (tmp_path / "checkpoint-5").mkdir()
            callback.on_save(args, _state(5, 5 / 3), None, model=None)
    assert whole.clusters.size == 4
    resumed = _sampler()
    callback = transformers.refresh_callback(resumed)
    callback.on_train_begin(args, _state(5, 5 / 3), None, model=None)
    resumed.embed = lambda: torch.zeros(N, 4)  # epoch 1 has begun: it must not cluster again
    callback.on_epoch_begin(args, _state(5, 5 / 3), None, model=None)
    assert list(resumed) == stream[1]
    resumed.embed = whole.embed
    callback.on_epoch_begin(args, _state(6, 2.0), None, model=None)
    assert list(resumed) == stream[2]


def test_a_checkpoint_elsewhere_is_named(tmp_path: Path) -> None:
    """Resumed from a folder outside output_dir, the sampler's state cannot be found: it says so."""
    pytest.importorskip("transformers", reason="needs the extra text")
    callback = transformers.refresh_callback(_sampler())
    args = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"checkpoint-7: expected the checkpoint"):
        callback.on_train_begin(args, _state(7, 1.5), None, model=None)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_resumes(tmp_path: Path) -> None:
    """Its trainer sees the sampler's own stream, and a resumed run goes on with it."""
    pytest.importorskip("lightning", reason="needs lightning")
    import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader

    class Watching(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.seen.append(batch.tolist())
            return self.layer(batch.float().unsqueeze(1)).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train(epochs: int, resume: Path | None = None) -> Watching:
        sampler, module = _sampler(), Watching()
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[lightning.refresh_callback(sampler)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(range(N), batch_sampler=sampler)  # pyright: ignore[reportArgumentType]
        trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume))
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    alone = _sampler()
    stream = [batch for _ in range(4) for batch in alone]
    assert train(2).seen == stream[:6]
    assert train(4, tmp_path / "2.ckpt").seen == stream[6:]


@pytest.mark.filterwarnings("ignore")
def test_lightning_learns_its_step() -> None:
    """SGD on a quadratic of curvature 2 and no noise goes to 1.5 times its rate at the look."""
    pytest.importorskip("lightning", reason="needs lightning")
    import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import mse_loss
    from torch.utils.data import DataLoader, TensorDataset

    class Quadratic(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = lightning.step_callback(mse_loss, warmup=2, share=1.0)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = TensorDataset(torch.ones(96, 1), torch.zeros(96, 1))
    trainer.fit(Quadratic(), DataLoader(data, batch_size=8))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1.0)
    assert callback.state_dict()["lr"] == pytest.approx(1.0)
