"""Builds the Lightning Trainer of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, Strategy

from gpt2kit.model.backends import Precision
from gpt2kit.training.distributed import FSDP

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fsdp": FSDP,
    "ddp": lambda: DDPStrategy(gradient_as_bucket_view=True),  # else DDP holds each gradient twice
}
"""What `trainer.strategy` means here, where Lightning means something else by it (FSDP1), or something larger."""


def make_trainer(
    precision: Precision = "auto",
    max_epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
    max_time: str | None = None,
    val_check_interval: int | float = 1.0,
    **kwargs: Any,
) -> pl.Trainer:
    """A Lightning Trainer that sees one endless epoch, which is what makes a resume exact.

    Args:
        precision: auto: bf16-mixed where the device computes it fast, 16-mixed on older GPUs, else 32-true.
        max_epochs: stop after so many passes over the text. Of several limits the first one reached holds; with none
            of them, one epoch.
        max_steps: stop after so many optimizer steps.
        max_tokens: stop after so many tokens.
        max_time: stop, saved, after DD:HH:MM:SS. With another limit, each start of the run takes so long at most, and
            the schedule's end is that of the other. Alone: the run takes so long in all, and its schedule ends with it.
        val_check_interval: a whole number: optimizer steps between validations; a fraction: epochs between them. The
            last step is always validated.
        **kwargs: Lightning's own.
    """
    fast = kwargs.get("fast_dev_run")
    endless: dict[str, Any] = (
        {} if fast else {"max_epochs": -1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    )
    kwargs.update(endless)
    if kwargs["strategy"] in STRATEGIES:
        kwargs["strategy"] = STRATEGIES[kwargs["strategy"]]()
    return pl.Trainer(precision=precision if precision != "auto" else None, **kwargs)
