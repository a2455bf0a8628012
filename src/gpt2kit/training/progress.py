"""What is told of a run while it trains: the figures that are logged, and the progress bar."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar
from tqdm import tqdm

from gpt2kit import hardware
from gpt2kit.model.config import flops_per_token
from gpt2kit.training.module import log_every
from gpt2kit.training.run_state import datamodule_of, epochs, gpt2_of

_WARM = 3
"""Steps from which a pace foretells something."""


class Measures(Callback):
    """Logs, beside the module's losses, at the optimizer step just done: lr, tokens_per_s, mfu, memory_gb, tokens_seen,
    epoch, hours, hours_left.

    tokens_per_s is over the time since the last log step, validations not counted. mfu is the share of the device's
    fastest matrix product that the model's own work needs (`config.flops_per_token`, `hardware.peak_flops`). memory_gb
    is the most so far, of the first device, in 10^9 bytes. hours is what the run has taken, validations included,
    pauses between a stop and its resume not; hours_left goes on at the pace of this start.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0
        self._losses: deque[float] = deque(maxlen=50)
        self._before = 0.0
        """Seconds that the run took before it was resumed."""
        self._pace = Pace(0)
        self._peak = 0.0
        self._flops = 0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._before + self._pace.seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = float(state_dict["seconds"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        dtype = hardware.compute_dtype(str(trainer.precision))
        first = _peak(trainer.strategy.root_device, dtype) if trainer.is_global_zero else 0.0
        self._peak = trainer.strategy.broadcast(first) * trainer.world_size
        self._flops = flops_per_token(gpt2_of(trainer).shape, gpt2_of(trainer).model)
        self._since, self._steps, self._pace = time.perf_counter(), 0, Pace(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        self._pace.step(trainer.global_step)
        if trainer.global_step % log_every(trainer):
            return
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None and trainer.is_global_zero:
            self._watch(trainer.global_step, loss.item())  # waits for a GPU, so that the time below is that of the work
        text = datamodule_of(trainer)
        tokens = text.global_batch(trainer) * text.block_size
        speed = self._steps * tokens / (time.perf_counter() - self._since)
        figures = {
            "lr": _lr_of_last_step(trainer),
            "tokens_per_s": speed,
            "mfu": speed * self._flops / self._peak,
            "tokens_seen": trainer.global_step * tokens,
        }
        if (memory := hardware.peak_memory(trainer.strategy.root_device)) is not None:
            figures["memory_gb"] = memory / 1e9
        if (total := max(trainer.max_steps, gpt2_of(trainer).about_steps)) > 0:
            figures["hours_left"] = self._pace.left(total) / 3600
        gpt2_of(trainer).add_metrics({**self._where(trainer), **figures})
        self._since, self._steps = time.perf_counter(), 0

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
        gpt2_of(trainer).add_metrics(self._where(trainer))

    def _where(self, trainer: pl.Trainer) -> dict[str, float]:
        """The x-axes."""
        return {"epoch": epochs(trainer), "hours": (self._before + self._pace.seconds()) / 3600}


class Pace:
    """How fast a start of a run goes. Its first step, which compiles and fills caches, foretells nothing.

    Args:
        step: the optimizer steps that were done before.
    """

    def __init__(self, step: int) -> None:
        self._start = time.monotonic()
        self._first: tuple[int, float] = (step, self._start)
        self._last = self._first
        self._warm = False

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def step(self, step: int) -> None:
        """An optimizer step is done."""
        self._last = (step, time.monotonic())
        if not self._warm:
            self._warm, self._begun = True, self._first
            self._first = self._last

    def left(self, total: int) -> float:
        """Seconds to the end, with all that comes between steps as often as it has come so far."""
        return self._each() * (total - self._last[0])

    def steps_in(self, seconds: float) -> int | None:
        """Steps that fit into a time; None: it is too early to say."""
        if not self._warm or self._last[0] - self._first[0] < _WARM:
            return None
        return max(int(seconds / self._each()), 0)

    def _each(self) -> float:
        """Seconds a step."""
        step, now = self._last
        since, begun = self._first if step > self._first[0] else self._begun
        return (now - begun) / (step - since)


class Bar(ProgressBar):
    """Step of steps, epoch, loss (smoothed), val_bpb, tokens/s, MFU, memory, time left; one line a log step where there
    is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._loss = Smoothed(0.9)

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, bar_format=_LAYOUT, dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not self._enabled:
            return
        step = trainer.global_step
        shown = self._shown(trainer) if step % log_every(trainer) == 0 else None
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if shown:  # the time left first: a narrow terminal cuts off the end
                self._bar.bar_format = _LAYOUT + "  ".join(shown[-1:] + shown[:-1])
                self._bar.refresh()
        elif shown:
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            print("  ".join([f"step {step}{total}", *shown]), file=sys.stderr)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _shown(self, trainer: pl.Trainer) -> list[str]:
        found = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if "train_loss" in found:
            found["train_loss"] = self._loss.of(found["train_loss"])
        return [form(found[name]) for name, form in _FORMS.items() if name in found]


_LAYOUT = "step {n_fmt}/{total_fmt} |{bar:10}| "
_FORMS: dict[str, Callable[[float], str]] = {
    "epoch": "epoch {:.2f}".format,
    "train_loss": "loss {:.3f}".format,
    "val_bpb": "val_bpb {:.3f}".format,
    "tokens_per_s": "tokens/s {:,.0f}".format,
    "mfu": "MFU {:.0%}".format,
    "memory_gb": "{:.2f} GB".format,
    "hours_left": lambda hours: f"{timedelta(seconds=round(hours * 3600))} left",
}


class Smoothed:
    """A mean in which older values count less and less; the first value is its own mean.

    Args:
        keep: what a value counts for, as a share, when the next one has come.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._sum = self._weight = 0.0

    def of(self, value: float) -> float:
        """The mean with one value more."""
        self._sum = self._keep * self._sum + value
        self._weight = self._keep * self._weight + 1
        return self._sum / self._weight


@lru_cache
def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measured once in a process."""
    return hardware.peak_flops(device, dtype)


def _lr_of_last_step(trainer: pl.Trainer) -> float:
    """The first group's rate in the step just done (the schedule has moved on already)."""
    schedules = trainer.lr_scheduler_configs
    group = trainer.optimizers[0].param_groups[0]
    if not schedules or not hasattr(schedules[0].scheduler, "lr_lambdas"):
        return float(group["lr"])
    return float(group["initial_lr"] * schedules[0].scheduler.lr_lambdas[0](trainer.global_step - 1))
