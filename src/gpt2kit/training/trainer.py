"""Builds the Lightning Trainer and checks its options."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.strategies import DDPStrategy, Strategy

from gpt2kit.errors import Problems, problems_of
from gpt2kit.model.backends import Precision, full_precision_name, is_cpu
from gpt2kit.model.config import Auto
from gpt2kit.training.callbacks import SHARDED_PROBLEM, TextSamples
from gpt2kit.training.distributed import FSDP
from gpt2kit.training.durations import parse_duration
from gpt2kit.training.loggers import METRICS

# Names of `trainer.strategy` that in Lightning mean a different strategy (FSDP1) or one that needs more memory.
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fsdp": FSDP,
    "ddp": lambda: DDPStrategy(gradient_as_bucket_view=True),  # without it DDP holds each gradient twice
}
# Parts of the names of Lightning's strategies that fork or pickle the running program.
_NOTEBOOK_STRATEGIES = ("spawn", "fork", "notebook")
# Training is one endless epoch for Lightning, so its callbacks and options for epochs would have no effect or end the
# run. Each option has its allowed values, and advice for the others.
_EPOCH_CALLBACKS = (StochasticWeightAveraging, BaseFinetuning, GradientAccumulationScheduler, Timer)
# Callbacks of other packages may log metrics that a callback can monitor.
_LIBRARIES = ("gpt2kit.", "pytorch_lightning.")
# Callbacks that train some steps and then restore Lightning's own state.
_FINDERS: dict[type, str] = {LearningRateFinder: "--tune lr", BatchSizeFinder: "--tune batch_size"}
_EPOCH_OPTIONS = {
    "limit_train_batches": ((None,), "use trainer.max_steps instead"),
    "overfit_batches": ((0,), "use a small training text instead"),
    "reload_dataloaders_every_n_epochs": ((0,), "has no effect here. Omit it"),
    "check_val_every_n_epoch": ((None, 1), "use trainer.val_check_interval, where a fraction means epochs"),
}

# Texts for the options of Lightning's Trainer that `--help` and docs/cli.md describe.
LIGHTNING_OPTIONS = {
    "accelerator": "Kind of device: `cpu`, `gpu` or `mps`. `auto`: the best one available.",
    "strategy": "`ddp` replicates the model on all devices, `fsdp` shards it. See docs/distributed.md.",
    "devices": "Number of devices, or which ones. Under torchrun and srun it follows from the launcher.",
    "num_nodes": "Number of machines. Under torchrun and srun it follows from the launcher.",
    "accumulate_grad_batches": "Forward passes per optimizer step. `data.global_batch_size` sets it, if given.",
    "gradient_clip_val": "Maximum gradient norm. `null`: no clipping.",
    "gradient_clip_algorithm": "`norm`, or `value`: clip each element by itself. Default: norm.",
    "log_every_n_steps": "Optimizer steps between two rows of the log.",
    "default_root_dir": "Folder that contains `lightning_logs`. Default: the working directory.",
    "callbacks": "Callbacks of gpt2kit, of Lightning or your own. Those that need Lightning's epochs are refused: "
    "BaseFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging and Timer.",
    "logger": "Loggers besides TensorBoard and CSV: see configs/logger. `false`: no log, and no folder.",
    "enable_checkpointing": "`false`: save no checkpoints.",
    "enable_progress_bar": "`false`: no progress bar and no progress lines.",
    "deterministic": "Use deterministic operations on a GPU, at some cost. Those of a CPU are always deterministic.",
    "limit_val_batches": "Validate on the first batches only: a number, or a fraction of them.",
    "fast_dev_run": "Run one step, or this many, as a smoke test. Nothing is written.",
    "num_sanity_val_steps": "Validation batches before the first step.",
    "profiler": "Measure where the time is spent: `simple`, `advanced` or `pytorch`.",
    "detect_anomaly": "Name the operation that produced a NaN. Slow.",
} | {name: f"Refused: {advice}." for name, (_, advice) in _EPOCH_OPTIONS.items()}


def make_trainer(
    precision: Precision = "auto",
    max_epochs: int | Auto | None = "auto",
    max_steps: int | None = None,
    max_tokens: int | None = None,
    max_time: str | None = None,
    val_check_interval: int | float = 1.0,
    **kwargs: Any,
) -> pl.Trainer:
    """Return a Lightning Trainer that sees one endless epoch, which is what makes a resume exact.

    Args:
        precision: Precision of the arithmetic. auto: bf16-mixed where the device computes it fast, 16-mixed on older
            GPUs, else 32-true. 16 means 16-mixed, bf16 means bf16-mixed, 32 means 32-true.
        max_epochs: Number of passes over the training text. If several limits are set, the first one reached ends
            training. auto: from 12 for a small text to 1 for a large one (docs/training.md); no limit if another one is
            set. null: no limit; without any limit, 1.
        max_steps: Number of optimizer steps.
        max_tokens: Number of training tokens.
        max_time: Time limit, such as 20m, 1h30m, 2d or 00:00:20:00 (DD:HH:MM:SS). Alone, it is the time of the whole
            run, and the schedule ends with it. With another limit, each start of the run stops and saves after it, and
            the schedule ends with the other limit.
        val_check_interval: Validate every N steps (a whole number) or epochs (a fraction). The last step is always
            validated.
        **kwargs: Lightning's own options.
    """
    if not kwargs.get("fast_dev_run"):
        kwargs |= {"max_epochs": -1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    if kwargs["strategy"] in STRATEGIES:
        kwargs["strategy"] = STRATEGIES[kwargs["strategy"]]()
    return pl.Trainer(precision=None if precision == "auto" else full_precision_name(precision), **kwargs)  # type: ignore[arg-type]


def trainer_problems(trainer: dict[str, Any], global_batch: int | None) -> list[str]:
    """List what is invalid in the trainer's options."""
    limit = trainer["max_time"]
    problems = Problems(problems_of(parse_duration, limit) if limit is not None else [])
    problems.check(
        global_batch is None or trainer["accumulate_grad_batches"] in (None, 1),
        "data.global_batch_size: decides trainer.accumulate_grad_batches. Leave out one of the two",
    )
    strategy, root = trainer["strategy"], Path(trainer["default_root_dir"] or ".")
    problems.check(
        not any(part in str(strategy) for part in _NOTEBOOK_STRATEGIES),
        f"trainer.strategy {strategy}: cannot start processes from this command. Use ddp",
    )
    parent = next(folder for folder in (root, *root.absolute().parents) if os.path.exists(folder))
    problems.check(
        os.path.isdir(parent), f"trainer.default_root_dir {root}: {parent} is a file, not a folder. Name another one"
    )
    precision = full_precision_name(trainer["precision"])
    problems.check(
        not (precision == "16-true" and is_cpu(trainer["accelerator"])),
        f"trainer.precision {precision}: about a thousand times slower on a CPU. Use auto",
    )
    problems.check(
        not (precision in ("16-mixed", "16-true") and trainer["strategy"] == "fsdp"),
        f"trainer.precision {precision}: loss scaling is not tested with trainer.strategy fsdp. Use bf16-mixed or "
        "32-true",
    )
    for name, (values, advice) in _EPOCH_OPTIONS.items():
        problems.check(trainer[name] in values, f"trainer.{name}: {advice}")
    return problems.messages


def callback_problems(callbacks: Sequence[Any], strategy: object) -> list[str]:
    """List callbacks in `trainer.callbacks` that would do nothing, silently, or cannot work with the strategy."""
    is_sharded = strategy == "fsdp" or issubclass(_class_of(strategy), FSDP)
    problems = []
    kinds = [_class_of(spec) for spec in callbacks]
    has_own_metrics = any(not kind.__module__.startswith(_LIBRARIES) for kind in kinds)
    for spec, kind in zip(callbacks, kinds, strict=True):
        if issubclass(kind, _EPOCH_CALLBACKS):
            problems.append(
                f"trainer.callbacks {kind.__name__}: waits for Lightning's epochs, and training is one endless epoch. "
                "Omit it (for a time limit, use trainer.max_time)"
            )
        if advice := next((advice for finder, advice in _FINDERS.items() if issubclass(kind, finder)), ""):
            problems.append(f"trainer.callbacks {kind.__name__}: does not work here. Use {advice} instead")
        if issubclass(kind, TextSamples) and is_sharded:
            problems.append(SHARDED_PROBLEM)
        monitor = getattr(getattr(spec, "init_args", None), "monitor", None)
        if isinstance(monitor, str) and monitor not in METRICS and not has_own_metrics:
            problems.append(
                f"trainer.callbacks {kind.__name__}: monitor {monitor}: no such metric. Use one of {', '.join(METRICS)}"
            )
        if kind is TextSamples:
            problems += problems_of(TextSamples, **spec.init_args.as_dict())
    return problems


def _class_of(spec: Any) -> type:
    """Return the class that a config names."""
    path = getattr(spec, "class_path", None)
    kind = pkgutil.resolve_name(path) if path else object
    return kind if isinstance(kind, type) else object
