"""Each epoch's weights as a Hugging Face folder, written while the run goes on."""

from __future__ import annotations

import math
import shutil
import sys
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

FOLDER = "exports"
"""Where in the run's folder they lie."""


class EpochExports(Callback):
    """At the end of each epoch, writes the weights as `exports/epoch_N` of the run's folder: what export.py writes, and
    as it does, under a temporary name until a fresh process has loaded it and agreed. The training goes on as if it
    were not there, to the last bit; where a folder cannot be written (a full disk), it says so and goes on, too.

    Args:
        every: epochs from one folder to the next.
        dtype: what the weights are rounded to.
    """

    def __init__(self, every: int = 1, dtype: Dtype = "float32") -> None:
        if every < 1:
            raise UserError(f"EpochExports.every {every}: must be at least 1")
        self.every, self.dtype = every, dtype
        self._folder: Path | None = None
        self._steps = 0
        """Optimizer steps of an epoch."""
        self._begun = self._seen = -1
        """The step that this process began with, and the last one that was looked at."""
        self._validated = (-1, math.nan)  # the last validation's step and bits per byte

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # asks all ranks
        self._folder = None if folder is None or getattr(trainer, "fast_dev_run", False) else Path(folder) / FOLDER

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        text = datamodule_of(trainer)
        self._steps = text.order(text.global_batch(trainer)).steps_per_epoch
        self._begun = trainer.global_step
        if self._folder is not None and trainer.is_global_zero:
            for left in self._folder.glob(".*"):  # by a killed process; this one holds the run's lock
                shutil.rmtree(left, ignore_errors=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bits = trainer.callback_metrics.get("val_bpb")
        if bits is not None and not trainer.sanity_checking:
            self._validated = (trainer.global_step, bits.item())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Between two optimizer steps: the last one is validated then, and not yet saved."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._between_steps(trainer)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        epoch, rest = divmod(step, self._steps)
        if self._folder is None or rest or not epoch or epoch % self.every or step == self._seen:
            return
        self._seen = step
        target = self._folder / f"epoch_{epoch}"
        # A run that goes on from an epoch's end may have been killed before the folder was there. A folder of a step
        # that was trained just now is of other weights, if its run went on from before and took another way.
        if step == self._begun and trainer.strategy.broadcast(target.is_dir()):
            return
        state = whole_state(trainer)
        if trainer.is_global_zero:
            self._write(trainer, target, state)

    def _write(self, trainer: pl.Trainer, target: Path, state: dict[str, Tensor]) -> None:
        gpt2, text, step = gpt2_of(trainer), datamodule_of(trainer), trainer.global_step
        try:
            with isolate_rng():
                facts = run_state.describe(gpt2, text, step, text.global_batch(trainer), {})
                facts["val_bpb"] = self._validated[1] if self._validated[0] == step else None
                opened = LoadedCheckpoint(target, gpt2.shape, plain_state(state), text.tokenizer, facts)
                with huggingface.replacing_folder(target) as folder:
                    huggingface.write(opened, folder, target.name, self.dtype)
                    huggingface.check(opened, folder, self.dtype)
        except (OSError, RuntimeError, UserError) as error:  # torch says a full disk as RuntimeError
            print(
                f"WARNING: NOT EXPORTED, training goes on: {target}: {first_line(error).rstrip('.')}. "
                "export.py --ckpt_path writes one of any checkpoint",
                file=sys.stderr,
            )


def whole_state(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The module's state on the CPU; of rank 0, empty on the others. All ranks must ask: they may hold shares."""
    found = {}
    for name, tensor in gpt2_of(trainer).state_dict().items():
        whole = dtensor.full_tensor(tensor)
        if trainer.is_global_zero:
            found[name] = whole.detach().cpu()
    return found
