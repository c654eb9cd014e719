"""Refreshing callbacks in transformers' and Lightning's trainers: epochs, clusters, resume."""

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


def _sampler(name: str = "ngame") -> NgameBatchSampler:
    seed = len(name)
    rows = torch.randn(N, 4, generator=torch.Generator().manual_seed(ord(name[0])))
    return NgameBatchSampler(ClusterBatchSampler(N, 8, 4, seed=seed), lambda: rows, name=name)


def _state(step: int, epoch: float) -> Any:
    return SimpleNamespace(global_step=step, epoch=epoch, is_world_process_zero=True)


class Watching(torch.nn.Module):
    """Writes down the rows of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def forward(self, rows: torch.Tensor, which: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append((int(which[0]), rows.tolist()))
        return {"loss": self.layer(rows.float().unsqueeze(1)).mean()}


def hugging_face(
    samplers: list[NgameBatchSampler], folder: Path, epochs: int, resume: str | None = None
) -> list[Any]:
    """Rows of the batches in Hugging Face's Trainer; several samplers take turns."""
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    class Turns:
        """One batch of each."""

        def __len__(self) -> int:
            return sum(map(len, samplers))

        def __iter__(self) -> Any:
            for batches in zip(*samplers, strict=True):
                for which, rows in enumerate(batches):
                    yield [(which, row) for row in rows]

    class Both:
        def __len__(self) -> int:
            return N

        def __getitem__(self, at: tuple[int, int]) -> dict[str, int]:
            return {"which": at[0], "rows": at[1]}

    class NgameTrainer(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            turns: Any = Turns()
            loader = DataLoader(
                self.train_dataset, batch_sampler=turns, collate_fn=self.data_collator
            )  # pyright: ignore
            return self.accelerator.prepare(loader)

    args = TrainingArguments(
        str(folder), num_train_epochs=epochs, save_steps=5, report_to="none", disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False, learning_rate=1e-3,
    )  # fmt: skip
    model = Watching()
    callbacks = [transformers.refresh_callback(sampler) for sampler in samplers]
    trainer = NgameTrainer(model, args, train_dataset=Both(), callbacks=callbacks)  # pyright: ignore
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.parametrize("count", [1, 2])
def test_transformers_resume_in_the_middle_of_an_epoch(tmp_path: Path, count: int) -> None:
    """The trainer sees the samplers' own streams, and goes on with them from any checkpoint."""
    names = ["one", "two"][:count]
    alone = [_sampler(name) for name in names]
    stream = [
        (which, rows)
        for _ in range(4)
        for batches in zip(*alone, strict=True)
        for which, rows in enumerate(batches)
    ]
    assert hugging_face([_sampler(name) for name in names], tmp_path, 4) == stream
    for step in (5, 10):
        folder = str(tmp_path / f"checkpoint-{step}")
        found = hugging_face([_sampler(name) for name in names], tmp_path, 4, folder)
        assert found == stream[step:]


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_samplers_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    """Before the first step; the remedy is the test above."""
    with pytest.raises(InputError, match=r"callbacks: expected one that writes ngame.safetensors"):
        hugging_face([_sampler(), _sampler()], tmp_path, 1)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_elsewhere_is_named(tmp_path: Path) -> None:
    """Resumed from a folder outside output_dir, the sampler's state cannot be found: it says so."""
    hugging_face([_sampler()], tmp_path / "a", 2)
    with pytest.raises(InputError, match=r"checkpoint-5: expected the checkpoint"):
        hugging_face([_sampler()], tmp_path / "b", 2, str(tmp_path / "a" / "checkpoint-5"))


def lightnings(
    samplers: list[NgameBatchSampler], epochs: int, folder: Path, resume: Path | None = None
) -> list[list[Any]]:
    """Rows of each sampler's batches in Lightning's Trainer, which iterates them side by side."""
    import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 1), [[] for _ in samplers]

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            for seen, rows in zip(self.seen, batch, strict=True):
                seen.append(rows.tolist())
            return self.layer(batch[0].float().unsqueeze(1)).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        callbacks=[lightning.refresh_callback(sampler) for sampler in samplers],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loaders = [DataLoader(range(N), batch_sampler=x) for x in samplers]  # pyright: ignore
    trainer.fit(module, loaders, ckpt_path=None if resume is None else str(resume))
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module.seen


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [["ngame"], ["one", "four"]])
def test_lightning_trains_and_resumes(tmp_path: Path, names: list[str]) -> None:
    """Its trainer sees the samplers' own streams, and a resumed run goes on with them."""
    streams = [[batch for _ in range(4) for batch in sampler] for sampler in map(_sampler, names)]
    begun = lightnings([*map(_sampler, names)], 2, tmp_path)
    assert begun == [stream[:6] for stream in streams]
    resumed = lightnings([*map(_sampler, names)], 4, tmp_path, tmp_path / "2.ckpt")
    assert resumed == [stream[6:] for stream in streams]
