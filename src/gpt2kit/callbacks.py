"""What is told of a run while it trains: the numbers that are logged, the log itself, the progress bar."""

from __future__ import annotations

import csv
import io
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor
from tqdm import tqdm

from gpt2kit import files
from gpt2kit.data import TextDataModule
from gpt2kit.module import GPT2Module, exact, log_every


class Measures(Callback):
    """Logs, beside the module's losses: lr, tokens_per_s, tokens_seen, epoch; all at the optimizer step just done.

    Throughput is over the time since the last log step, validations not counted.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0
        self._losses: deque[float] = deque(maxlen=50)

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
        text = datamodule_of(trainer)
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
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None and trainer.is_global_zero:
            self._watch(trainer.global_step, loss.item())

    def _watch(self, step: int, loss: float) -> None:
        """Warn of a loss far above those before it."""
        if len(self._losses) >= 10:
            mean, spread = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + max(6 * spread, 0.1 * mean):
                print(f"WARNING: step {step}: the loss jumped to {loss:.3f} from about {mean:.3f}", file=sys.stderr)
        self._losses.append(loss)

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
            layout = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"
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

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """A new column: the file is written anew, whole or not at all."""
        path = Path(self.metrics_file_path)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(path, text.getvalue())


def epochs(trainer: pl.Trainer) -> float:
    """Epochs done, from the position: optimizer steps over those of one epoch."""
    text = datamodule_of(trainer)
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


def gpt2_of(trainer: pl.Trainer) -> GPT2Module:
    """The model that the trainer trains."""
    found = trainer.lightning_module
    assert isinstance(found, GPT2Module)
    return found


def datamodule_of(trainer: pl.Trainer) -> TextDataModule:
    """The text that the trainer trains on."""
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, TextDataModule)
    return found
