"""What happens around the training step: exact saving and resuming, the numbers that are logged, the progress bar."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from gpt2kit import checkpoint, files, runs
from gpt2kit.data import TextDataModule
from gpt2kit.errors import MachineError
from gpt2kit.module import GPT2Module, exact, log_every

KEEP = 2
"""Newest checkpoints kept, besides the best."""
MISSES = 3
"""Saves that may fail, one after the other, before the run stops."""


class ExactResume(Checkpoint):
    """Saves between optimizer steps and makes a resumed run go on exactly.

    A batch is a function of (seed, step) and so is each random number: nothing of the generators needs saving. The
    moment to save is the start of the next step: then the last one is logged, and validated if that was due.

    Args:
        every: optimizer steps between checkpoints; there is one after each validation and at the end as well. None:
            no checkpoints.
        save_top_k: how many with the lowest validation loss are kept besides the two newest.
        max_time: stop, saved, at the first step's end after so long.
        override: on resume, take the optimizer's settings from the config and not from the checkpoint.
        settings: the resolved config as plain types, to be stored in each checkpoint.
    """

    def __init__(
        self,
        every: int | None,
        save_top_k: int = 1,
        max_time: timedelta | None = None,
        override: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.every, self.save_top_k, self.max_time, self.override = every, save_top_k, max_time, override
        self.settings = settings or {}
        self._signal = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._started = time.monotonic()
        self._validated = (-1, math.nan)  # the last validation's step and loss
        self._misses = 0
        self._begun = False
        self._run: Path | None = None
        """The run's folder, if anything is to be saved there."""
        self._lock: FileLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._started = time.monotonic()
        folder = trainer.log_dir  # the same on all ranks
        self._run = Path(folder) if self.every is not None and folder is not None else None
        if self._run is not None and trainer.is_global_zero:
            self._lock = runs.claim(self._run)
            runs.clean(self._run)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After Lightning has installed its own handlers, and restored the optimizer."""
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            self._handlers.setdefault(number, signal.signal(number, self._on_signal))
        if self.override:
            take_settings_from_config(trainer)
        self._begun = True
        self._tell(trainer, "running")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer)
        slot = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(_datamodule(trainer).seed + 1_000_003 * (slot + 1))
        # Lightning's own count is one short after some resumes, which would shift the steps that are logged.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batch_idx + 1  # the final weights are validated, whatever the interval

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not trainer.sanity_checking:
            self._validated = (trainer.global_step, loss.item())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._tell(trainer, "done")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # A start that was refused, such as in a folder that another process holds, leaves that run's status alone.
        if self._begun and not isinstance(exception, SystemExit):
            self._tell(trainer, "failed", f"{type(exception).__name__}: {exception}")
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        """Give back the signals and the folder."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())
        if self._lock is not None:
            self._lock.release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        text, gpt2 = _datamodule(trainer), _gpt2(trainer)
        facts = checkpoint.describe(gpt2, text, trainer.global_step, text.global_batch(trainer), self.settings)
        checkpoint_[checkpoint.KEY] = {**facts, "skipped": gpt2.skipped}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        """Before loaders and loops are restored: set the position, in the micro-batches of the present devices."""
        text, facts = _datamodule(trainer), checkpoint_[checkpoint.KEY]
        checkpoint.refuse_other_data(facts["data"], checkpoint.identity(text, text.global_batch(trainer)))
        checkpoint.refuse_other_shape(facts["shape"], _gpt2(trainer).shape)
        text.start_step = facts["step"]
        _gpt2(trainer).skipped = facts["skipped"]
        micro = facts["step"] * trainer.accumulate_grad_batches
        progress = checkpoint_["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("current", "total"):
            progress[part].update(ready=micro, started=micro, processed=micro, completed=micro)
        if self._run is not None and trainer.is_global_zero:
            runs.cut_back(self._run, facts["step"])

    def _between_steps(self, trainer: pl.Trainer) -> None:
        """Save if it is time, and leave if somebody has asked to."""
        step = trainer.global_step
        stop = self._agreed_signal(trainer)
        late = self.max_time is not None and time.monotonic() - self._started >= self.max_time.total_seconds()
        late = bool(trainer.strategy.broadcast(late)) if trainer.world_size > 1 else late
        due = self.every is not None and step % self.every == 0
        if step and (stop or late or due or self._validated[0] == step):
            self._save(trainer)
        if stop:
            self._tell(trainer, "stopped", signal.Signals(stop).name)
            if stop == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                requeue()
            raise SystemExit(128 + stop)
        if late:
            self._tell(trainer, "stopped", "max_time")
            raise SystemExit(0)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save under a new name, unless this step is saved; then delete what is neither new nor among the best.

        Rank 0 decides alone, and tells the others: each looking for itself could disagree, and wait forever.
        """
        run = self._run
        if run is None:
            return
        saved = checkpoint.checkpoints(run)
        step = trainer.global_step
        missing = runs.missing_space(run, self._bytes(trainer, saved)) if trainer.is_global_zero else ""
        present, missing = trainer.strategy.broadcast((any(checkpoint.step_of(p) == step for p in saved), missing))
        if present:
            return
        if not missing:
            loss = self._validated[1] if self._validated[0] == step else None
            path = run / "checkpoints" / checkpoint.file_name(int(epochs(trainer)), step, loss)
            trainer.save_checkpoint(path, weights_only=False)
            missing = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", ""))
        if missing:
            self._missed(missing)
        elif trainer.is_global_zero:
            self._misses = 0
            self._tell(trainer, "running")
            saved = checkpoint.checkpoints(run)
            for old in saved[KEEP:]:
                if old not in checkpoint.best_of(saved, self.save_top_k):
                    checkpoint.remove(old)

    def _missed(self, why: str) -> None:
        self._misses += 1
        if self._misses >= MISSES:
            raise MachineError(f"{why}; {MISSES} saves have failed. Make room and go on with --ckpt_path last")
        print(f"WARNING: NOT SAVED, training goes on: {why} ({self._misses} of {MISSES} misses)", file=sys.stderr)

    def _bytes(self, trainer: pl.Trainer, saved: list[Path]) -> int:
        """About what the next checkpoint takes: as much as the last one, or weights and two moments in float32."""
        weights = sum(p.numel() for p in trainer.lightning_module.parameters())
        return round(1.1 * (saved[0].stat().st_size if saved else 12 * weights))

    def _tell(self, trainer: pl.Trainer, state: str, reason: str = "") -> None:
        if self._run is not None and trainer.is_global_zero:
            with contextlib.suppress(OSError):  # on a full disk the old status stays
                runs.write_status(self._run, state, trainer.global_step, reason)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal == signal.SIGINT == number:
            os._exit(128 + number)  # asked twice: leave at once
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


def take_settings_from_config(trainer: pl.Trainer) -> None:
    """Put the config's learning rates, betas and decays in the place of those that the checkpoint has brought."""
    optimizer = trainer.optimizers[0]
    for group, fresh in zip(optimizer.param_groups, _gpt2(trainer).fresh_groups, strict=True):
        group.update({**fresh, "initial_lr": fresh["lr"]})
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


def requeue() -> None:
    """Under SLURM, put the job back into the queue; it will go on with `--ckpt_path last`."""
    if job := os.environ.get("SLURM_JOB_ID"):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"WARNING: scontrol requeue {job} failed: {done.stderr.strip()}", file=sys.stderr)


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


def _gpt2(trainer: pl.Trainer) -> GPT2Module:
    found = trainer.lightning_module
    assert isinstance(found, GPT2Module)
    return found


def _datamodule(trainer: pl.Trainer) -> TextDataModule:
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, TextDataModule)
    return found
