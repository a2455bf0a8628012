"""When checkpoints are written, which of them are kept, and how a run stops and resumes exactly."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.checkpoint.validation import first_nonfinite, optimizer_tensors
from gpt2kit.errors import DivergedError, MachineError, first_line
from gpt2kit.runs import lifecycle
from gpt2kit.training import lightning_patches, resume_check, run_state
from gpt2kit.training.run_state import datamodule_of, epochs_done, gpt2_of, schedule_of

logger = logging.getLogger(__name__)

# Number of newest checkpoints to keep, besides the best ones.
KEEP_NEWEST = 2
# Number of failed saves in a row that stop the run.
MAX_FAILED_SAVES = 3
# The signals after which a run saves and stops. SIGHUP: the terminal was closed. Windows has neither it nor SIGUSR1.
STOP_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, n)]
_SIGHUP = getattr(signal, "SIGHUP", None)


class DurableIO(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoints through `gpt2kit.checkpoint`.

    The error of a failed save is stored in `failure`, not raised: the other ranks wait for this one, and training may
    continue.
    """

    failure = ""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.failure = ""
        try:
            checkpoint.write(checkpoint_, Path(path))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.failure = f"{path}: {first_line(error)}"

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return checkpoint.read(Path(path))


@dataclass(eq=False)
class ExactResume(Checkpoint):
    """Saves between optimizer steps, and makes a resumed run continue exactly.

    Batches and random numbers are functions of the seed and the step, so no generator's state is saved. A checkpoint
    is written at the start of the next step: by then the last step is logged, and validated if that was due.
    """

    every: int | None  # optimizer steps between checkpoints; and one after each validation. None: no checkpoints
    save_top_k: int  # checkpoints with the lowest validation loss to keep, besides the newest
    max_seconds: float | None  # save and stop after the first step that ends later than this
    best_text: str | None  # the validation text whose loss decides which checkpoints are the best; None: all together
    override_optimizer: bool  # on resume, take the optimizer's settings from the config instead of the checkpoint
    settings: dict[str, Any]  # the resolved config as plain types, stored in each checkpoint
    begins_stage: bool = False  # another stage of the checkpoint's run begins, in a folder of its own
    only_text: str = ""  # the name of the run's only text so far, if it had none

    def __post_init__(self) -> None:
        self._signal = 0
        self._previous_maximum: tuple[torch.Tensor, torch.cuda.Event] | None = None  # over the ranks, one step ago
        self._handlers: dict[signal.Signals, Any] = {}  # Lightning's own, to be restored
        self._start_time = time.monotonic()
        self._failed_saves = 0
        self._is_started = False
        self._run: Path | None = None  # the run's folder, if checkpoints are written
        self._lock: FileLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._start_time = time.monotonic()
        gpt2 = gpt2_of(trainer)

        def check_architecture(raw: dict[str, Any]) -> None:
            if self.begins_stage:
                run_state.refuse_other_tokenizer(raw[checkpoint.KEY], datamodule_of(trainer))
            run_state.refuse_other_shape(raw[checkpoint.KEY]["shape"], gpt2.shape)
            run_state.refuse_other_freeze(raw[checkpoint.KEY].get("freeze"), gpt2)
            resume_check.refuse_damaged(trainer, gpt2, raw)

        # The module's own hook, because the callbacks' hook comes only after the weights are loaded.
        gpt2.on_load_checkpoint = check_architecture  # type: ignore[method-assign, assignment]
        lightning_patches.refuse_failed_restore(trainer)
        folder = trainer.log_dir  # a collective call
        self._run = Path(folder) if self.every is not None and folder is not None else None
        if self._run is not None and trainer.is_global_zero:
            self._lock = lifecycle.claim(self._run)
            lifecycle.remove_leftovers(self._run)
            lifecycle.remove_leftovers_of_killed_runs(self._run.parent)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # By now Lightning has installed its signal handlers and restored the optimizer.
        for number in STOP_SIGNALS:
            if number == _SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run continues without its terminal
            self._handlers.setdefault(number, signal.signal(number, self.handle_signal))
        if trainer.received_sigterm:  # by Lightning's handler
            self._signal = signal.SIGTERM
        lightning_patches.disable_signal_broadcast(trainer)
        if self.override_optimizer:
            apply_config_settings(trainer)
        update_learning_rates(trainer)
        self._is_started = True
        self._write_status(trainer, "running")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer)
        slot = batch_idx * trainer.world_size + trainer.global_rank
        seed_generators(trainer.strategy.root_device, datamodule_of(trainer).seed + 1_000_003 * (slot + 1))
        lightning_patches.correct_step_count(trainer)
        if batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches:
            lightning_patches.validate_after_batch(trainer, batch_idx)  # the final weights are always validated

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._write_status(trainer, "done")
        self._restore_signals()  # here, because Lightning restores the user's handlers before teardown

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # If the start was refused, for example because another process uses the folder, the status file is kept.
        if self._is_started and not isinstance(exception, SystemExit):
            self._write_status(trainer, "failed", f"{type(exception).__name__}: {exception}")
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_signals()
        if self._lock is not None:
            self._lock.release()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint_: dict[str, Any]) -> None:
        checkpoint_[checkpoint.KEY] = run_state.describe(trainer, self.settings)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint_: dict[str, Any]) -> None:
        # Lightning restores the loops after this. They count micro-batches, whose number depends on the devices.
        text, gpt2, metadata = datamodule_of(trainer), gpt2_of(trainer), checkpoint_[checkpoint.KEY]
        if not self.begins_stage:
            saved = run_state.saved_identity(metadata["data"], text)
            run_state.refuse_other_data(saved, run_state.identity(text, text.global_batch(trainer)))
        step = metadata["step"]
        text.start_step = step - text.first_step
        gpt2.guard.skipped, gpt2.start = metadata["skipped"], metadata.get("start")
        lightning_patches.set_batch_progress(checkpoint_, step * trainer.accumulate_grad_batches)
        if not trainer.is_global_zero:
            return
        for name in run_state.changed_texts(metadata, text, self.only_text) if self.begins_stage else ():
            logger.warning(
                f"data.train_files.{name}: not the text that the run was trained on. Some of what is now held out "
                "of it may have been trained on"
            )
        if self._run is None:
            return
        if not self.begins_stage:
            lifecycle.set_aside(self._run, step)
            lifecycle.truncate_metrics(self._run, step)
        elif (earlier := lifecycle.run_of(Path(str(trainer.ckpt_path)))) is not None:
            lifecycle.copy_metrics(earlier, self._run, step, self.only_text)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        """Save if it is due, and stop after a signal or at the time limit."""
        step = trainer.global_step
        is_late = self.max_seconds is not None and time.monotonic() - self._start_time >= self.max_seconds
        stop_signal, time_is_over = self._maximum_of_ranks(trainer, self._signal, int(is_late))
        is_due = self.every is not None and (step % self.every == 0 or step == self._last_stable_step(trainer))
        if step and (stop_signal or time_is_over or is_due or gpt2_of(trainer).current_validation() is not None):
            self._save(trainer)
        if stop_signal:
            self._write_status(trainer, "stopped", signal.Signals(stop_signal).name)
            if stop_signal == getattr(signal, "SIGUSR1", None):
                if trainer.is_global_zero:
                    requeue()
                # If a rank exited first, SLURM might end rank 0 before it has requeued the job.
                trainer.strategy.barrier()
            raise SystemExit(128 + stop_signal)
        if time_is_over:
            self._write_status(trainer, "stopped", "max_time")
            raise SystemExit(0)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save this step unless it is saved already; then delete checkpoints that are neither new nor among the best.

        Rank 0 decides for all ranks. If each decided for itself, they could disagree and wait forever.
        """
        run, step = self._run, trainer.global_step
        gpt2 = gpt2_of(trainer)
        gpt2.guard.check()
        refuse_nonfinite(trainer)
        if run is None:
            return
        saved = paths.checkpoints(run)
        is_saved = any(paths.step_of(path) == step for path in saved)
        problem = ""
        if trainer.is_global_zero:
            # A checkpoint is as large as the last one; the first one has weights and two moments in float32.
            first_size = 12 * sum(p.numel() for p in gpt2.parameters())
            size = next((path.stat().st_size for path in saved if path.exists()), first_size)
            problem = lifecycle.space_problem(run, round(1.1 * size))
        is_saved, problem = trainer.strategy.broadcast((is_saved, problem))
        if is_saved:
            return
        if not problem:
            validation = gpt2.current_validation()
            score = validation and (validation.scores[self.best_text] if self.best_text else validation.total)
            name = paths.file_name(int(epochs_done(trainer)), step, score.loss if score else None)
            path = run / "checkpoints" / name
            trainer.save_checkpoint(path, weights_only=False)
            problem = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "failure", ""))
        if problem:
            self._failed_saves += 1
            if self._failed_saves >= MAX_FAILED_SAVES:
                count = f"{self._failed_saves} saves have failed"
                raise MachineError(f"{problem}; {count}. Free some space and resume with --ckpt_path last")
            count = f"failure {self._failed_saves} of {MAX_FAILED_SAVES}"
            logger.warning(f"NOT SAVED, training continues: {problem} ({count})")
        elif trainer.is_global_zero:
            self._failed_saves = 0
            last_stable = self._last_stable_step(trainer)
            if last_stable is None or step <= last_stable:
                checkpoint.link(path, path.with_name(paths.STABLE))
            self._write_status(trainer, "running")
            saved = paths.checkpoints(run)
            for old in saved[KEEP_NEWEST:]:
                if old not in paths.best_of(saved, self.save_top_k):
                    checkpoint.remove(old)

    def _last_stable_step(self, trainer: pl.Trainer) -> int | None:
        """Return the last step before the learning rate falls; None until it is known, -1 if it falls at once."""
        gpt2 = gpt2_of(trainer)
        if trainer.max_steps < 0:
            return None
        constant_until = gpt2.schedule.constant_until(trainer.max_steps - gpt2.first_step)
        return -1 if constant_until is None else gpt2.first_step + constant_until

    def _write_status(self, trainer: pl.Trainer, state: str, reason: str = "") -> None:
        if self._run is not None and trainer.is_global_zero:
            with contextlib.suppress(OSError):  # on a full disk the old status is kept
                lifecycle.write_status(self._run, state, trainer.global_step, reason)

    def handle_signal(self, number: int, frame: Any) -> None:
        """Stop after this step; at a second Ctrl-C, stop at once."""
        if self._signal == signal.SIGINT == number:
            os._exit(128 + number)
        self._signal = number
        if number == _SIGHUP:
            discard_output_to_closed_terminal()
        if number == signal.SIGINT:
            print("\nsaving and stopping after this step (Ctrl-C again: stop at once)", file=sys.stderr)

    def _restore_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _maximum_of_ranks(self, trainer: pl.Trainer, *numbers: int) -> list[int]:
        """Return the maximum over all ranks of each number, so that all ranks stop at the same step.

        On GPUs it is the maximum of the step before: reading that of this step would have to wait for the device.
        """
        if trainer.world_size == 1:
            return list(numbers)
        device, maximum = trainer.strategy.root_device, torch.tensor(numbers)
        if device.type == "cuda":
            maximum = maximum.pin_memory().to(device, non_blocking=True)
        torch.distributed.all_reduce(maximum, op=torch.distributed.ReduceOp.MAX)
        if device.type != "cuda":
            return maximum.tolist()
        previous, copied = self._previous_maximum, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._previous_maximum = (maximum.to("cpu", non_blocking=True), copied)
        copied.record()
        if previous is None:
            return [0] * len(numbers)
        previous[1].synchronize()
        return previous[0].tolist()


def refuse_nonfinite(trainer: pl.Trainer) -> None:
    """Raise on all ranks if the weights or the optimizer's state contain NaN or Inf on one.

    A gradient may be finite although its update is not.
    """
    weights = ((f"weight {name}", weight) for name, weight in gpt2_of(trainer).named_parameters())
    states = (state for optimizer in trainer.optimizers for state in optimizer_tensors(optimizer.state))
    name = first_nonfinite(itertools.chain(weights, states))
    if not trainer.strategy.reduce_boolean_decision(not name, all=True):
        raise DivergedError(
            f"step {trainer.global_step}: {name or 'a weight of another rank'} contains NaN or Inf, so training "
            "stopped and this step was not saved. Lower the learning rate"
        )


def discard_output_to_closed_terminal() -> None:
    """Discard output to a terminal that was closed: writing to it would fail and end the run before it saves."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # the stream is closed
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and the device."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slow: it looks for every kind of device
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def apply_config_settings(trainer: pl.Trainer) -> None:
    """Replace the learning rates, betas and decays of the checkpoint with those of the config."""
    config_groups = gpt2_of(trainer).config_groups
    for group, config in zip(trainer.optimizers[0].param_groups, config_groups, strict=True):
        group.update({**config, "initial_lr": config["lr"]})
    schedule_of(trainer).base_lrs = [group["lr"] for group in config_groups]


def update_learning_rates(trainer: pl.Trainer) -> None:
    """Recompute the learning rates of the next step: they differ from the saved ones if the last step has changed."""
    groups, schedule = trainer.optimizers[0].param_groups, schedule_of(trainer)
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)


def requeue() -> None:
    """Put the job back into the queue if it runs under SLURM; it resumes with `--ckpt_path last`."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    process = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8", check=False)
    if process.returncode:
        logger.warning(f"scontrol requeue {job} failed: {process.stderr.strip()}")
