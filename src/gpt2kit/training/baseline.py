"""Validates a run that starts from pretrained weights before its first step, to show what training changes."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.training.lightning_patches import run_validation
from gpt2kit.training.run_state import datamodule_of, gpt2_of

logger = logging.getLogger(__name__)


class Baseline(Callback):
    """Prints bits per byte before and after training. Does nothing if a run starts from random weights.

    The first value is part of the run's state (`GPT2Module.start`), so a resumed run prints it, too.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = gpt2_of(trainer).start
        if start is None or trainer.global_step or not datamodule_of(trainer).files["valid"]:
            return
        run_validation(trainer)
        bits = trainer.callback_metrics.get("val_bpb")
        if bits is not None:
            start["val_bpb"] = bits.item()
            logger.info(f"before training: {bits.item():.4f} bits per byte of the validation text")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start, bits = gpt2_of(trainer).start, trainer.callback_metrics.get("val_bpb")
        if start is not None and start["val_bpb"] is not None and bits is not None:
            change = f"{start['val_bpb']:.4f} before training, {bits.item():.4f} now"
            logger.info(f"bits per byte of the validation text: {change}")
