"""A run that begins with weights is validated before its first step, so that one sees what training has changed."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.training.run_state import datamodule_of, gpt2_of


class Baseline(Callback):
    """Logs the figures of step 0 and tells bits per byte before and after training; nothing for a run from scratch.

    What they were before is part of the run's state (`GPT2Module.start`), so a resumed run tells it, too.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = gpt2_of(trainer).start
        if start is None or trainer.global_step or not datamodule_of(trainer).files["valid"]:
            return
        validate(trainer)
        before = trainer.callback_metrics.get("val_bpb")
        if before is not None:
            start["val_bpb"] = before.item()
            if trainer.is_global_zero:
                print(f"before training: {before.item():.4f} bits per byte of the validation text", file=sys.stderr)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start, after = gpt2_of(trainer).start, trainer.callback_metrics.get("val_bpb")
        if start is not None and start["val_bpb"] is not None and after is not None and trainer.is_global_zero:
            print(
                f"bits per byte of the validation text: {start['val_bpb']:.4f} before training, {after.item():.4f} now",
                file=sys.stderr,
            )


def validate(trainer: pl.Trainer) -> None:
    """One validation in the midst of a fit, as Lightning does it between two steps."""
    first = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first
