"""The step rule within the real trainers: transformers', Lightning's, and accelerate's loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from shoal import spectral_learner
from shoal.integrations import lightning, transformers

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]
OPTIONS: dict[str, Any] = {"warmup": 10}


class Words(Dataset[Any]):
    """Sequences whose class is one of their words."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 20, (6,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids[0] % 3}


def logits(model: Any, batch: Any) -> Tensor:
    return model(input_ids=batch["input_ids"]).logits


def loss_of(out: Tensor, batch: Any) -> Tensor:
    return cross_entropy(out, batch["labels"])


def with_transformers(
    folder: Path, learns: bool, steps: int = 90, resume: bool = False, **options: Any
) -> tuple[list[float], list[float], Any]:
    """Rates and losses, a step each, of a tiny BERT in ``transformers.Trainer``."""
    pytest.importorskip("accelerate")
    from transformers import (  # pyright: ignore[reportMissingImports]
        BertConfig,
        BertForSequenceClassification,
        Trainer,
        TrainingArguments,
    )

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=8, num_labels=3,
        )
    )  # fmt: skip
    callback = transformers.step_callback(loss_of, logits, **OPTIONS)
    arguments: dict[str, Any] = {
        "max_steps": 90, "per_device_train_batch_size": 32, "learning_rate": 1e-4,
        "warmup_steps": 20, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "logging_steps": 1, "save_steps": 45, **options,
    }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **arguments),
        train_dataset=Words(),
        callbacks=[callback] if learns else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    logs = [x for x in trainer.state.log_history if "learning_rate" in x]
    return [x["learning_rate"] for x in logs], [x["loss"] for x in logs], callback


def test_transformers_keep_warm_up_and_decay(tmp_path: Path) -> None:
    """AdamW in accelerate's wrapper, a warm-up from 0: the schedule, times the rule's factor."""
    alone, before, _ = with_transformers(tmp_path / "a", learns=False)
    rates, losses, callback = with_transformers(tmp_path / "b", learns=True)
    assert rates[0] == alone[0] == 0.0 and len(rates) == 90
    factors = [b / a for a, b in zip(alone, rates, strict=True) if a > 0]
    assert factors[:8] == pytest.approx([1.0] * 8)
    assert max(factors) > 10  # the range test, as fit has it
    assert sum(losses[-20:]) < sum(before[-20:])
    assert (tmp_path / "b" / "checkpoint-45" / transformers.STEPS).exists()
    assert callback is not None


def test_transformers_resume_with_the_rule(tmp_path: Path) -> None:
    """From the checkpoint in the middle of the range test: the rates of the uninterrupted run."""
    rates, _, _ = with_transformers(tmp_path, learns=True)
    for folder in tmp_path.glob("checkpoint-90"):
        folder.rename(tmp_path / "ended")
    resumed, _, _ = with_transformers(tmp_path, learns=True, resume=True)
    assert resumed[-45:] == pytest.approx(rates[-45:], rel=1e-4)


def test_transformers_accumulate(tmp_path: Path) -> None:
    """Four batches a step: the rule sees the loss of the step, and its noise."""
    _, losses, callback = with_transformers(
        tmp_path, True, gradient_accumulation_steps=4, per_device_train_batch_size=8
    )
    rule = callback.control.rule
    assert rule.losses["first"] == pytest.approx(losses[0], rel=1e-3)
    assert rule.reference is not None and rule.step == 90


def with_lightning(learns: bool, accumulate: int = 1) -> tuple[list[float], Any]:
    """Rates, a step each, of two layers in Lightning's trainer with AdamW and a schedule."""
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
            self.rates: list[float] = []
            self.losses: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss))
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 20))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    torch.manual_seed(1)
    x = torch.randn(1024, 8)
    data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long())
    callback = lightning.step_callback(cross_entropy, **OPTIONS)
    trainer = pl.Trainer(
        max_steps=90, accelerator="cpu", callbacks=[callback] if learns else [], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, DataLoader(data, 32, shuffle=True))
    return module.rates, (module, callback)


def test_lightning_keeps_its_schedule_and_climbs() -> None:
    alone, _ = with_lightning(False)
    rates, _ = with_lightning(True)
    factors = [b / a for a, b in zip(alone, rates, strict=True) if a > 0]
    assert factors[:8] == pytest.approx([1.0] * 8) and max(factors) > 10


def test_lightning_accumulates() -> None:
    """Of two batches a step the loss is their mean, not half of the last one's."""
    _, (module, callback) = with_lightning(True, accumulate=2)
    rule = callback.control.rule
    assert rule.step == 90 and rule.losses["first"] == pytest.approx(sum(module.losses[:2]) / 2)


def test_accelerate_in_a_loop_of_one_s_own() -> None:
    """What ``Accelerator.prepare`` returns goes in as it is."""
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(512, 8)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    model, optimizer, loader = Accelerator(cpu=True).prepare(
        net, torch.optim.AdamW(net.parameters(), lr=1e-4), DataLoader(data, 64)
    )
    learner = spectral_learner(model, cross_entropy, optimizer, **OPTIONS)
    for _ in range(8):
        for batch in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            learner.update(batch, loss)
    assert optimizer.param_groups[0]["lr"] > 3e-4
