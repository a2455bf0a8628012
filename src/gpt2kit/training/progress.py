"""Progress of a run: metrics for the loggers, the progress bar, and the gain over the initial weights."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks
from tqdm import tqdm

from gpt2kit import hardware
from gpt2kit.model.config import flops_per_token
from gpt2kit.training.lightning_patches import run_validation
from gpt2kit.training.loggers import log_every
from gpt2kit.training.run_state import datamodule_of, epochs_done, gpt2_of, passes_done, schedule_of, tokens_seen

logger = logging.getLogger(__name__)

# Steps that do not count in an estimate, since they compile and fill caches, and steps that it needs after them.
_FIRST_STEPS, _MIN_STEPS = 2, 3


class ThroughputMetrics(callbacks.Callback):
    """Logs lr, tokens_per_s, mfu, memory_gb, tokens_seen, epoch, hours and hours_left.

    tokens_per_s is over the time since the last log step, without validations. mfu is the fraction of the peak FLOP/s
    (`hardware.peak_flops`) that the model's own work needs (`config.flops_per_token`); it is logged only where the peak
    is known, so not on a CPU. memory_gb is the peak of the first device so far, in 10^9 bytes. hours is the time of the
    run, with validations, without pauses between a stop and a resume. hours_left is estimated from the speed of this
    start.
    """

    def __init__(self) -> None:
        self._steps = 0  # since the last log step
        self._since = 0.0  # the time of the last log step, plus the time of validations since then
        self._validation_start = 0.0
        self._losses: deque[float] = deque(maxlen=50)
        self._earlier_seconds = 0.0  # of earlier starts
        self._timer = StepTimer(0)
        self._peak = 0.0  # of all ranks; 0: unknown
        self._flops = 0

    @property
    def state_key(self) -> str:
        return "Measures"  # the name in checkpoints

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._earlier_seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gpt2 = gpt2_of(trainer)
        peak = hardware.peak_flops(trainer.strategy.root_device, hardware.compute_dtype(str(trainer.precision)))
        self._peak = (peak or 0.0) * trainer.world_size
        self._flops = flops_per_token(gpt2.shape, gpt2.model)
        self._since, self._steps, self._timer = time.perf_counter(), 0, StepTimer(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        gpt2, text, step = gpt2_of(trainer), datamodule_of(trainer), trainer.global_step
        schedule = schedule_of(trainer)
        self._steps += 1
        self._timer.step(step)
        if step % log_every(trainer):
            return
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None and trainer.is_global_zero:
            self.warn_of_jump(step, loss.item())  # waits for a GPU, so the time below is that of finished work
        tokens_per_step = text.global_batch(trainer) * text.block_size
        speed = self._steps * tokens_per_step / (time.perf_counter() - self._since)
        metrics = {
            **self._position(trainer),
            "lr": schedule.base_lrs[0] * schedule.lr_lambdas[0](step - 1),  # the optimizer has that of the next step
            "tokens_per_s": speed,
            "tokens_seen": tokens_seen(trainer),
        }
        if self._peak:
            metrics["mfu"] = speed * self._flops / self._peak
        memory = hardware.peak_memory(trainer.strategy.root_device)
        if memory is not None:
            metrics["memory_gb"] = memory / 1e9
        total = max(trainer.max_steps, gpt2.estimated_steps)
        if total > 0:
            metrics["hours_left"] = self._timer.seconds_until(total) / 3600
        gpt2.add_metrics(metrics)
        self._since, self._steps = time.perf_counter(), 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gpt2_of(trainer).add_metrics(self._position(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since += time.perf_counter() - self._validation_start

    def warn_of_jump(self, step: int, loss: float) -> None:
        """Warn if the loss is far above the ones before."""
        if len(self._losses) >= 10:
            mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + max(6 * deviation, 0.1 * mean):
                logger.warning(f"step {step}: the loss jumped to {loss:.3f} from about {mean:.3f}")
        self._losses.append(loss)

    def _seconds(self) -> float:
        return self._earlier_seconds + self._timer.seconds()

    def _position(self, trainer: pl.Trainer) -> dict[str, float]:
        passes = {f"epoch/{name}": count for name, count in passes_done(trainer).items()}
        return {"epoch": epochs_done(trainer), **passes, "hours": self._seconds() / 3600}


class StepTimer:
    """Measures the speed of a run since it was started or resumed, after `step` optimizer steps."""

    def __init__(self, step: int) -> None:
        self._start = time.monotonic()
        self._marks = [(step, self._start)]  # steps and times: of the start, after the first steps, and now
        self._steps = 0

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def step(self, step: int) -> None:
        """Record the time at which this optimizer step ended."""
        self._steps += 1
        self._marks = [*self._marks[: 1 if self._steps <= _FIRST_STEPS else 2], (step, time.monotonic())]

    def seconds_until(self, total: int) -> float:
        """Return the seconds until the step `total`, if validations and saves are as frequent as so far."""
        return self._seconds_per_step() * (total - self._marks[-1][0])

    def steps_in(self, seconds: float) -> int | None:
        """Return the steps that fit into a time. None: it is too early to estimate."""
        if len(self._marks) < 3 or self._marks[-1][0] - self._marks[1][0] < _MIN_STEPS:
            return None
        return max(int(seconds / self._seconds_per_step()), 0)

    def _seconds_per_step(self) -> float:
        (first_step, first_time), (step, now) = self._marks[-2:]  # without the first steps, if there are others
        return (now - first_time) / (step - first_step)


class ProgressBar(callbacks.ProgressBar):
    """Shows the step, epoch, smoothed loss, val_bpb with its step, speed, memory and time left.

    Without a terminal, it prints lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._loss = SmoothedMean(0.9)

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, bar_format=_BAR_FORMAT, dynamic_ncols=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not self._enabled:
            return
        step = trainer.global_step
        metrics = self._formatted_metrics(trainer) if step % log_every(trainer) == 0 else []
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if metrics:  # the time left comes first, because a narrow terminal cuts off the end
                self._bar.bar_format = _BAR_FORMAT + "  ".join(metrics[-1:] + metrics[:-1])
                self._bar.refresh()
        elif metrics:
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            print("  ".join([f"step {step}{total}", *metrics]), file=sys.stderr)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _formatted_metrics(self, trainer: pl.Trainer) -> list[str]:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if "train_loss" in metrics:
            metrics["train_loss"] = self._loss.add(metrics["train_loss"])
        texts = {name: format_(metrics[name]) for name, format_ in _FORMATS.items() if name in metrics}
        if "val_bpb" in texts and (validation := gpt2_of(trainer).validation):
            texts["val_bpb"] += f" (step {validation.step})"
        passes = [f"{name[6:]} {value:.2f}" for name, value in metrics.items() if name.startswith("epoch/")]
        if "epoch" in texts and passes:
            texts["epoch"] += f" ({', '.join(passes[:_SHOWN_TEXTS])}{', ...' if passes[_SHOWN_TEXTS:] else ''})"
        return list(texts.values())


_SHOWN_TEXTS = 4  # of several training texts
_BAR_FORMAT = "step {n_fmt}/{total_fmt} |{bar:10}| "
_FORMATS: dict[str, Callable[[float], str]] = {
    "epoch": "epoch {:.2f}".format,
    "train_loss": "loss {:.3f}".format,
    "val_bpb": "val_bpb {:.3f}".format,
    "tokens_per_s": "tokens/s {:,.0f}".format,
    "mfu": "MFU {:.0%}".format,
    "memory_gb": "{:.2f} GB".format,
    "hours_left": lambda hours: f"{timedelta(seconds=round(hours * 3600))} left",
}


class SmoothedMean:
    """An exponential moving mean without a bias towards 0. Each value multiplies the earlier weights by `decay`."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Add a value and return the mean."""
        self._sum = self._decay * self._sum + value
        self._weight = self._decay * self._weight + 1
        return self._sum / self._weight


class Baseline(callbacks.Callback):
    """Validates before the first step and reports bits per byte before and after training, to show what it changes.

    Does nothing if a run starts from random weights. The first value is part of the run's state (`GPT2Module.start`),
    so a resumed run reports it as well. Before another stage, the validation shows what is known of the new text, and
    from where the earlier text is forgotten.
    """

    def __init__(self, begins_stage: bool = False) -> None:
        self._begins_stage = begins_stage

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = gpt2_of(trainer).start
        if not datamodule_of(trainer).files["valid"]:
            return
        if self._begins_stage:
            run_validation(trainer)
        if start is None or trainer.global_step:
            return
        run_validation(trainer)
        bits = trainer.callback_metrics.get("val_bpb")
        if bits is not None:
            start["val_bpb"] = bits.item()
            logger.info(f"before training: {bits.item():.4f} bits per byte of the validation text")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start, bits = gpt2_of(trainer).start, trainer.callback_metrics.get("val_bpb")
        if len(datamodule_of(trainer).stages) > 1:
            return  # the first value is of other text
        if start is not None and start["val_bpb"] is not None and bits is not None:
            change = f"{start['val_bpb']:.4f} before training, {bits.item():.4f} now"
            logger.info(f"bits per byte of the validation text: {change}")
