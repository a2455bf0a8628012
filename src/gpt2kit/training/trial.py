"""A few real steps, to know how long a run will take: on a trainer that writes nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from gpt2kit import hardware
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.model.config import flops_per_token
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_info import Facts
from gpt2kit.training.trainer import make_trainer

_STEPS, _BATCHES, _SECONDS = 6, 4, 30.0
"""Optimizer steps and validation batches, and seconds after which no other step is begun."""

_MANY = 1_000_000

OPTIONS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": _BATCHES,
    "profiler": None,
}
"""Of the trial's trainer, in the place of the run's own."""


class Stopwatch(Callback):
    """Times the first optimizer steps and validation batches, then ends the trial."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.batches: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.steps.append(self._lap(trainer))
        if len(self.steps) >= _STEPS or self._since - self._begun > _SECONDS:
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step  # as far as it has come

    def on_validation_batch_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.append(self._lap(trainer))

    def _lap(self, trainer: pl.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        before, self._since = self._since, time.perf_counter()
        return self._since - before


def measure(
    options: dict[str, Any], data: TextDataModule, gpt2: GPT2Module, facts: Facts, limit: int | float | None
) -> Facts:
    """Times, speed and memory of the trial, and what the whole run will take at this pace. The weights are changed.

    `options`: of the trial's trainer; `limit`: of the batches in a validation, by number or share, as the user has set
    it.
    """
    room, run = facts["memory"], facts["run"]
    if room["free"] is not None and room["total"] > room["free"]:
        return {"why_not": "it would not fit into memory"}
    watch = Stopwatch()
    trainer = make_trainer(**options | {"callbacks": [watch]})
    most = run["steps"] or _MANY
    trainer.fit_loop.epoch_loop.max_steps = most
    trainer.val_check_interval = most * trainer.accumulate_grad_batches + 1
    trainer.fit(gpt2, data)
    used = hardware.peak_memory(trainer.strategy.root_device)
    step = float(np.median(watch.steps[1:] or watch.steps))  # the first one sets up and compiles
    validation, validations = 0.0, 0
    if run["validation_every"]:
        trainer.validate(gpt2, data, verbose=False)
        whole = len(data.val_dataloader())
        batches = whole if limit is None else min(limit, whole) if isinstance(limit, int) else int(limit * whole)
        validation = float(np.median(watch.batches)) * batches
    left = max(most - run["done"], 1)
    if run["steps"] is None:  # as many as fit into the time
        between = validation / run["validation_every"] if run["validation_every"] else 0.0
        left = max(round(run["max_time"] / (step + between)), 1)
    if run["validation_every"]:
        validations = math.ceil(left / run["validation_every"])
    speed = run["global_batch"] * run["block_size"] / step
    peak = hardware.peak(trainer.strategy.root_device, hardware.compute_dtype(str(trainer.precision)))
    return {
        "steps": max(len(watch.steps) - 1, 1),
        "step": step,
        "tokens_per_s": speed,
        "mfu": speed * flops_per_token(gpt2.shape, gpt2.model) / peak.flops / trainer.world_size,
        "memory": used,
        "validation": validation,
        "validations": validations,
        "left": left,
        "seconds": watch.steps[0] + (left - 1) * step + validations * validation,
    }
