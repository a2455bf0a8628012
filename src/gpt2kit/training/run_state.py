"""Where a run stands: its model, its text, its epoch. Typed views of what the trainer holds."""

from __future__ import annotations

import pytorch_lightning as pl

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.training.module import GPT2Module


def epochs(trainer: pl.Trainer) -> float:
    """Epochs done, from the position: optimizer steps over those of one epoch."""
    text = datamodule_of(trainer)
    return trainer.global_step / text.order(text.global_batch(trainer)).steps_per_epoch


def gpt2_of(trainer: pl.Trainer) -> GPT2Module:
    """The model that the trainer trains."""
    found = trainer.lightning_module
    assert isinstance(found, GPT2Module)
    return found


def datamodule_of(trainer: pl.Trainer) -> TextDataModule:
    """The text that the trainer trains on."""
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, TextDataModule)
    return found
