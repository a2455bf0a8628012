"""Exports the weights at the end of each epoch as a Hugging Face folder, while the run continues."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from gpt2kit import dtensor
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import UserError, first_line
from gpt2kit.export import huggingface
from gpt2kit.model.config import Dtype
from gpt2kit.training import run_state
from gpt2kit.training.run_state import datamodule_of, gpt2_of
from gpt2kit.training.samples import plain_state

logger = logging.getLogger(__name__)

# The subfolder of the run's folder.
FOLDER = "exports"


class EpochExports(Callback):
    """Writes `exports/epoch_N` in the run's folder at the end of each epoch, in the way export.py does: under a
    temporary name until a fresh process has loaded it and its logits agree. Training is not affected: the weights are
    bit-identical with and without it. If a folder cannot be written, a warning is printed and training continues.

    Args:
        every: epochs between exports.
        dtype: the type of the exported weights.
    """

    def __init__(self, every: int = 1, dtype: Dtype = "float32") -> None:
        if every < 1:
            raise UserError(f"EpochExports.every {every}: must be at least 1")
        self.every, self.dtype = every, dtype
        self._folder: Path | None = None
        self._steps_per_epoch = 0
        self._first_step = -1  # of this start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # a collective call
        self._folder = None if folder is None or getattr(trainer, "fast_dev_run", False) else Path(folder) / FOLDER

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        text = datamodule_of(trainer)
        self._steps_per_epoch = text.order(text.global_batch(trainer)).steps_per_epoch
        self._first_step = trainer.global_step
        if self._folder is not None and trainer.is_global_zero:
            for leftover in self._folder.glob(".*"):  # of a killed process: this one holds the run's lock
                shutil.rmtree(leftover, ignore_errors=True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # the last step is validated by now, and not yet saved
            self._between_steps(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._between_steps(trainer)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        epoch, steps = divmod(step, self._steps_per_epoch)
        if self._folder is None or steps or not epoch or epoch % self.every:
            return
        target = self._folder / f"epoch_{epoch}"
        # A run that resumes at the end of an epoch writes the folder only if a kill has prevented that. After a step
        # that was just trained, an existing folder is replaced: the run was resumed from before, so weights may differ.
        if step == self._first_step and trainer.strategy.broadcast(target.is_dir()):
            return
        state = gather_state(trainer)
        if trainer.is_global_zero:
            self._export(trainer, target, state)

    def _export(self, trainer: pl.Trainer, target: Path, state: dict[str, Tensor]) -> None:
        shape, tokenizer = gpt2_of(trainer).shape, datamodule_of(trainer).tokenizer
        try:
            with isolate_rng():
                metadata = run_state.describe(trainer, settings={})
                state = plain_state(gpt2_of(trainer), state)
                source = LoadedCheckpoint(target, shape, tokenizer, metadata, state=state)
                with huggingface.replacing_folder(target) as folder:
                    huggingface.write(source, folder, target.name, self.dtype)
                    huggingface.check(source, folder, self.dtype)
        except (OSError, RuntimeError, UserError) as error:  # torch reports a full disk as RuntimeError
            logger.warning(
                f"NOT EXPORTED, training continues: {target}: {first_line(error).rstrip('.')}. "
                "Export a checkpoint later with export.py --ckpt_path"
            )


def gather_state(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the state on the CPU of rank 0, nothing on the others. All ranks must call this: it may be sharded."""
    state = {}
    for name, tensor in gpt2_of(trainer).state_dict().items():
        full = dtensor.full_tensor(tensor)
        if trainer.is_global_zero:
            state[name] = full.detach().cpu()
    return state
