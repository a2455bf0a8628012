"""What happens around the training step: exact saving and resuming, the numbers that are logged, the progress bar."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor
from tqdm import tqdm

from gpt2kit import checkpoint
from gpt2kit.data import TextDataModule
from gpt2kit.module import exact, log_every

KEEP = 2
"""Newest checkpoints kept, besides the best."""


class ExactResume(Checkpoint):
    """Saves at optimizer-step boundaries, after a validation that is due there, and makes a resumed run go on exactly.

    A batch is a function of (seed, step) and so is each random number: nothing of the generators needs saving.

    Args:
        every: optimizer steps between checkpoints; there is one after each validation and at the end as well. None:
            no checkpoints.
        max_time: stop, saved, at the first boundary after so long.
    """

    def __init__(self, every: int | None, max_time: timedelta | None = None) -> None:
        self.every = every
        self.max_time = max_time
        self._signal = 0
        self._started = time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            self._handlers.setdefault(number, signal.signal(number, self._on_signal))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        slot = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(_datamodule(trainer).seed + 1_000_003 * (slot + 1))
        # Lightning's own count is one short after some resumes, which would shift the steps that are logged.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batch_idx + 1  # the final weights are validated, whatever the interval

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        if loop._should_accumulate() or loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            return  # inside a step, or a validation is due: save after it
        self._boundary(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.fit_loop.epoch_loop.global_step:
            self._boundary(trainer, validated=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, validated=False)
        self._restore_handlers()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        text = _datamodule(trainer)
        checkpoint_[checkpoint.KEY] = checkpoint.describe(
            pl_module,  # type: ignore[arg-type]
            text,
            trainer.global_step,
            text.global_batch(trainer),
        )

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        """Before loaders and loops are restored: set the position, in the micro-batches of the present devices."""
        text, facts = _datamodule(trainer), checkpoint_[checkpoint.KEY]
        checkpoint.refuse_other_data(facts["data"], checkpoint.identity(text, text.global_batch(trainer)))
        text.start_step = facts["step"]
        micro = facts["step"] * trainer.accumulate_grad_batches
        progress = checkpoint_["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("current", "total"):
            unfinished = (
                progress[part]["processed"] - progress[part]["completed"]
            )  # 1: saved before Lightning counted it
            progress[part].update(ready=micro, started=micro, processed=micro, completed=micro - unfinished)

    def _boundary(self, trainer: pl.Trainer, validated: bool = False) -> None:
        stop = self._agreed_signal(trainer)
        out_of_time = self.max_time and time.monotonic() - self._started >= self.max_time.total_seconds()
        if trainer.world_size > 1:
            out_of_time = trainer.strategy.broadcast(out_of_time)
        if stop or validated or out_of_time or (self.every and trainer.global_step % self.every == 0):
            self._save(trainer, validated)
        if stop:
            raise SystemExit(128 + stop)
        if out_of_time:
            trainer.should_stop = True

    def _save(self, trainer: pl.Trainer, validated: bool) -> None:
        """Save under a new name, unless this step is saved; then delete what is neither new nor best."""
        if self.every is None or trainer.log_dir is None:
            return
        run = Path(trainer.log_dir)
        step = trainer.global_step
        if trainer.strategy.broadcast(any(checkpoint.step_of(p) == step for p in checkpoint.checkpoints(run))):
            return
        loss = trainer.callback_metrics.get("val_loss") if validated else None
        name = checkpoint.file_name(int(epochs(trainer)), step, None if loss is None else loss.item())
        trainer.save_checkpoint(run / "checkpoints" / name, weights_only=False)
        if trainer.is_global_zero:
            saved = checkpoint.checkpoints(run)
            for path in saved[KEEP:]:
                if path != checkpoint.best_of(saved):
                    checkpoint.remove(path)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal == signal.SIGINT == number:
            os._exit(130)  # asked twice: leave at once
        self._signal = number
        if number == signal.SIGINT:
            print("\nstopping after this step, saved (Ctrl-C again: at once)", file=sys.stderr)

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has got; all stop at the same step."""
        if trainer.world_size == 1:
            return self._signal
        got = torch.tensor([self._signal], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(got, op=torch.distributed.ReduceOp.MAX)
        return int(got)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


class Measures(Callback):
    """Logs, beside the module's losses: lr, tokens_per_s, tokens_seen, epoch; all at the optimizer step just done.

    Throughput is over the time since the last log step, validations not counted.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._steps = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if trainer.global_step % log_every(trainer):
            return
        text = _datamodule(trainer)
        tokens = text.global_batch(trainer) * text.block_size
        elapsed = time.perf_counter() - self._since
        pl_module.log_dict(
            {
                **_where(trainer),
                "lr": exact(_lr_of_last_step(trainer)),
                "tokens_per_s": exact(self._steps * tokens / elapsed),
                "tokens_seen": exact(trainer.global_step * tokens),
            }
        )
        self._since, self._steps = time.perf_counter(), 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log_dict(_where(trainer))


class Bar(ProgressBar):
    """Step of steps, loss, tokens/s, time left; one line a log step where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self._first = time.monotonic(), trainer.global_step
        if self._enabled and sys.stderr.isatty():
            layout = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining} {postfix}"
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(desc="step", total=total, initial=self._first, bar_format=layout, dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not self._enabled:
            return
        step = trainer.global_step
        shown = self._shown(trainer) if step % log_every(trainer) == 0 else None
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if shown:
                self._bar.set_postfix_str(shown)
        elif shown and trainer.max_steps > 0:
            seconds = (time.monotonic() - self._started) / (step - self._first) * (trainer.max_steps - step)
            print(
                f"step {step}/{trainer.max_steps}  {shown}  {timedelta(seconds=round(seconds))} left", file=sys.stderr
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _shown(self, trainer: pl.Trainer) -> str:
        found = trainer.callback_metrics
        forms: dict[str, tuple[str, Callable[[float], str]]] = {
            "epoch": ("epoch", "{:.2f}".format),
            "train_loss": ("loss", "{:.3f}".format),
            "val_bpb": ("val_bpb", "{:.3f}".format),
            "tokens_per_s": ("tokens/s", "{:,.0f}".format),
        }
        return "  ".join(f"{word} {form(found[name].item())}" for name, (word, form) in forms.items() if name in found)


class RunCSV(CSVLogger):
    """Lightning's CSVLogger that shares the run's folder with TensorBoard and keeps the rows that are there."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return self._experiment


class _KeepingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                self.metrics_keys = file.readline().strip().split(",")


def epochs(trainer: pl.Trainer) -> float:
    """Epochs done, from the position: optimizer steps over those of one epoch."""
    text = _datamodule(trainer)
    return trainer.global_step / text.order(text.global_batch(trainer)).steps_per_epoch


def _where(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The x-axes; Lightning takes `step` for the step of the row, instead of its own count, which is one short."""
    return {"step": exact(trainer.global_step), "epoch": exact(epochs(trainer))}


def _lr_of_last_step(trainer: pl.Trainer) -> float:
    """The first group's rate in the step just done (the schedule has moved on already)."""
    schedules = trainer.lr_scheduler_configs
    group = trainer.optimizers[0].param_groups[0]
    if not schedules or not hasattr(schedules[0].scheduler, "lr_lambdas"):
        return float(group["lr"])
    return float(group["initial_lr"] * schedules[0].scheduler.lr_lambdas[0](trainer.global_step - 1))


def _datamodule(trainer: pl.Trainer) -> TextDataModule:
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, TextDataModule)
    return found
