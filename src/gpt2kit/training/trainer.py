"""Builds the Lightning Trainer, and turns epochs, tokens and time into optimizer steps; refuses what cannot work."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.strategies import DDPStrategy, Strategy

from gpt2kit.errors import problems_of
from gpt2kit.model.backends import Precision
from gpt2kit.training import samples
from gpt2kit.training.distributed import FSDP
from gpt2kit.training.samples import TextSamples

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


_NEEDS_EPOCHS = (StochasticWeightAveraging, BaseFinetuning, GradientAccumulationScheduler, Timer)


def total_steps(
    max_epochs: int | None, max_steps: int | None, max_tokens: int | None, steps_per_epoch: int, tokens_per_step: int
) -> int:
    """Optimizer steps of the run: the limit that is reached first; without any, one epoch."""
    limits = [
        max_epochs * steps_per_epoch if max_epochs is not None and max_epochs >= 0 else None,
        max_steps if max_steps is not None and max_steps >= 0 else None,
        -(-max_tokens // tokens_per_step) if max_tokens is not None else None,
    ]
    return min((limit for limit in limits if limit is not None), default=steps_per_epoch)


def set_max_steps(trainer: pl.Trainer, steps: int) -> None:
    """Set the last optimizer step of a trainer that is already built; -1: not known yet."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def only_time(trainer: Mapping[str, Any]) -> bool:
    """Whether `max_time` is the only limit."""
    limits = (trainer[name] for name in ("max_epochs", "max_steps", "max_tokens"))
    return bool(trainer["max_time"]) and not trainer["fast_dev_run"] and all(n is None or n < 0 for n in limits)


def needs_steps(schedule: str) -> str:
    """What is said of a schedule that cannot do with a time alone."""
    return (
        f"trainer.max_time alone: the rate of model.schedule {schedule} falls from the first step on, so the last one "
        "must be known. Give trainer.max_epochs or max_steps, too, or take WarmupStableDecay"
    )


def interval_steps(interval: int | float, steps_per_epoch: int) -> int:
    """Optimizer steps between validations: a whole number means steps, a fraction (1.0) epochs."""
    return interval if isinstance(interval, int) else max(round(interval * steps_per_epoch), 1)


def config_problems(trainer: dict[str, Any], save_every: int, save_top_k: int, global_batch: int | None) -> list[str]:
    """Everything wrong with the trainer's options, in the user's words."""
    on_cpu = trainer["accelerator"] == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    rules = {
        f"save_every {save_every}: must be at least 1": save_every < 1,
        f"save_top_k {save_top_k}: must be at least 1": save_top_k < 1,
        f"trainer.max_time {trainer['max_time']}: must be DD:HH:MM:SS, such as 00:01:30:00": trainer["max_time"]
        and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer["max_time"]),
        "trainer.val_check_interval: must be above 0": trainer["val_check_interval"] <= 0,
        "trainer.log_every_n_steps: must be at least 1": trainer["log_every_n_steps"] < 1,
        "data.global_batch: decides trainer.accumulate_grad_batches. Give one of them": global_batch is not None
        and trainer["accumulate_grad_batches"] not in (None, 1),
        "trainer.accumulate_grad_batches: must be at least 1": (trainer["accumulate_grad_batches"] or 1) < 1,
        f"trainer.precision {trainer['precision']}: a thousand times slower on a CPU. Use auto": on_cpu
        and trainer["precision"] in ("16-mixed", "16-true"),
        f"trainer.precision {trainer['precision']}: not with trainer.strategy fsdp, whose scaled gradients nobody has "
        "tried. Use bf16-mixed or 32-true": trainer["strategy"] == "fsdp"
        and trainer["precision"] in ("16-mixed", "16-true"),
        "trainer.max_epochs, max_steps and max_tokens: must not be 0, nothing would be trained": 0
        in (trainer["max_epochs"], trainer["max_steps"], trainer["max_tokens"]),
        "trainer.limit_train_batches: would end the one endless epoch. Use max_steps": trainer["limit_train_batches"]
        is not None,
        "trainer.overfit_batches: would end the one endless epoch. Use a small text": trainer["overfit_batches"] != 0,
        "trainer.reload_dataloaders_every_n_epochs: there is one endless epoch. Leave it out": trainer[
            "reload_dataloaders_every_n_epochs"
        ]
        != 0,
        "trainer.check_val_every_n_epoch: use val_check_interval, a fraction means epochs": trainer[
            "check_val_every_n_epoch"
        ]
        not in (None, 1),
    }
    return problems_of(rules)


def callback_problems(callbacks: Sequence[Any], strategy: object) -> list[str]:
    """What is wrong with `trainer.callbacks`, by their class paths: Lightning's epochs do not pass here, and callbacks
    that wait for them would do nothing, silently; samples cannot be written while weights lie in shares."""
    shared = strategy == "fsdp" or issubclass(_class(strategy), FSDP)
    found = []
    for spec in callbacks:
        kind = _class(spec)
        if issubclass(kind, _NEEDS_EPOCHS):
            found.append(
                f"trainer.callbacks {kind.__name__}: needs Lightning's epochs, and there is one endless epoch. Leave "
                "it out (for time, use trainer.max_time)"
            )
        if issubclass(kind, TextSamples) and shared:
            found.append(samples.IN_SHARES)
        if kind is TextSamples:
            found += samples.option_problems(spec.init_args.as_dict())
    return found


def _class(spec: Any) -> type:
    """The class that a config names."""
    path = getattr(spec, "class_path", None)
    kind = pkgutil.resolve_name(path) if path else object
    return kind if isinstance(kind, type) else object
