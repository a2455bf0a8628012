"""The figures of one optimizer step, on their way to callbacks and loggers."""

from __future__ import annotations

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor


class Row:
    """What is known of the step or validation in progress: callbacks see it at once, loggers get it in one row.

    LightningModule.log would do, and takes half a millisecond for each figure; this takes some microseconds.
    """

    def __init__(self) -> None:
        self._figures: dict[str, Tensor] = {}

    def add(self, trainer: pl.Trainer, figures: Mapping[str, Tensor | float]) -> None:
        """Put figures in the row; those of Lightning's sanity check are none."""
        if trainer.sanity_checking:
            return
        added = {name: exact(value) for name, value in figures.items()}
        trainer.callback_metrics.update(added)
        self._figures |= added

    def write(self, gpt2: pl.LightningModule) -> None:
        """Give the row, if there is one, to the loggers, and begin a new one."""
        if not self._figures:
            return
        trainer, figures = gpt2.trainer, {name: value.item() for name, value in self._figures.items()}
        self._figures.clear()
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
            logger.save()
        if trainer.logged_metrics:  # a user's callback logs: its row, which Lightning writes, gets the place of ours
            where = {"step": float(trainer.global_step), **{n: x for n, x in figures.items() if n == "epoch"}}
            gpt2.log_dict({name: exact(value) for name, value in where.items()})


def exact(value: Tensor | float) -> Tensor:
    """A number for the log that keeps all its digits (Lightning makes float32 of a plain one)."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def is_log_step(trainer: pl.Trainer) -> bool:
    """Whether the optimizer step in progress is one that the loggers write down."""
    return (trainer.global_step + 1) % log_every(trainer) == 0


def log_every(trainer: pl.Trainer) -> int:
    """Optimizer steps between log entries (an attribute that Lightning sets, but does not declare)."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
