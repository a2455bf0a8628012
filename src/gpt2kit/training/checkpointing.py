"""Exact saving and resuming: when a checkpoint is written, what is kept, and how a run leaves and goes on."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch.optim.lr_scheduler import LambdaLR

from gpt2kit.checkpoint import checkpoint
from gpt2kit.data.batches import STOPS
from gpt2kit.errors import MachineError, first_line
from gpt2kit.runs import lifecycle
from gpt2kit.training import run_state
from gpt2kit.training.run_state import datamodule_of, epochs, gpt2_of

KEEP = 2
"""Newest checkpoints kept, besides the best."""
MISSES = 3
"""Saves that may fail, one after the other, before the run stops."""


class DurableIO(TorchCheckpointIO):
    """Lightning's way to checkpoint files, through `gpt2kit.checkpoint`.

    A failure is kept in `failure` and not raised: the other ranks wait for this one, and training may go on.
    """

    failure = ""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.failure = ""
        try:
            checkpoint.write(checkpoint_, Path(path))
        except (OSError, RuntimeError) as error:  # torch says a full disk as RuntimeError
            self.failure = f"{path}: {first_line(error)}"

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return checkpoint.read(Path(path))


class ExactResume(Checkpoint):
    """Saves between optimizer steps and makes a resumed run go on exactly.

    A batch is a function of (seed, step) and so is each random number: nothing of the generators needs saving. The
    moment to save is the start of the next step: then the last one is logged, and validated if that was due.

    Args:
        every: optimizer steps between checkpoints; there is one after each validation and at the end as well. None:
            no checkpoints.
        save_top_k: how many with the lowest validation loss are kept besides the two newest.
        max_seconds: stop, saved, at the first step's end after so long.
        override: on resume, take the optimizer's settings from the config and not from the checkpoint.
        settings: the resolved config as plain types, to be stored in each checkpoint.
    """

    def __init__(
        self,
        every: int | None,
        save_top_k: int = 1,
        max_seconds: float | None = None,
        override: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.every, self.save_top_k, self.max_seconds, self.override = every, save_top_k, max_seconds, override
        self.settings = settings or {}
        self._signal = 0
        self._asked: tuple[torch.Tensor, torch.cuda.Event] | None = None  # what the ranks agreed on a step ago
        self._handlers: dict[signal.Signals, Any] = {}
        self._started = time.monotonic()
        self._validated = (-1, math.nan)  # the last validation's step and loss
        self._bits_per_byte: float | None = None  # of that validation
        self._misses = 0
        self._begun = False
        self._run: Path | None = None
        """The run's folder, if anything is to be saved there."""
        self._lock: FileLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._started = time.monotonic()
        gpt2 = gpt2_of(trainer)

        def look(raw: dict[str, Any]) -> None:
            run_state.refuse_other_shape(raw[checkpoint.KEY]["shape"], gpt2.shape)
            run_state.refuse_other_freeze(raw[checkpoint.KEY].get("freeze"), gpt2)

        # Callbacks are asked only after the weights are put in.
        gpt2.on_load_checkpoint = look  # type: ignore[method-assign, assignment]
        folder = trainer.log_dir  # the same on all ranks
        self._run = Path(folder) if self.every is not None and folder is not None else None
        if self._run is not None and trainer.is_global_zero:
            self._lock = lifecycle.claim(self._run)
            lifecycle.remove_leftovers(self._run)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After Lightning has installed its own handlers, and restored the optimizer."""
        for number in STOPS:
            self._handlers.setdefault(number, signal.signal(number, self._on_signal))
        if trainer.received_sigterm:  # by Lightning's handler
            self._signal = signal.SIGTERM
        # Ours agree on signals between steps; Lightning's way waits for the device in each forward pass.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if self.override:
            take_settings_from_config(trainer)
        set_rates(trainer)
        self._begun = True
        self._tell(trainer, "running")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._between_steps(trainer)
        slot = batch_idx * trainer.world_size + trainer.global_rank
        seed_generators(trainer.strategy.root_device, datamodule_of(trainer).seed + 1_000_003 * (slot + 1))
        # Lightning's own count is one short after some resumes, which would shift the steps that are logged.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx + 1 == trainer.max_steps * trainer.accumulate_grad_batches:
            trainer.val_check_batch = batch_idx + 1  # the final weights are validated, whatever the interval

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not trainer.sanity_checking:
            self._validated = (trainer.global_step, loss.item())
            self._bits_per_byte = trainer.callback_metrics["val_bpb"].item()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._tell(trainer, "done")
        self._release_signals()  # before Lightning gives back its own, which comes before teardown

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # A start that was refused, such as in a folder that another process holds, leaves that run's status alone.
        if self._begun and not isinstance(exception, SystemExit):
            self._tell(trainer, "failed", f"{type(exception).__name__}: {exception}")
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def _release_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _release(self) -> None:
        """Give back the signals and the folder."""
        self._release_signals()
        if self._lock is not None:
            self._lock.release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        text, gpt2 = datamodule_of(trainer), gpt2_of(trainer)
        facts = run_state.describe(gpt2, text, trainer.global_step, text.global_batch(trainer), self.settings)
        bits = self._bits_per_byte if self._validated[0] == trainer.global_step else None
        checkpoint_[checkpoint.KEY] = {**facts, "skipped": gpt2.guard.skipped, "val_bpb": bits}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint_: dict[str, Any]
    ) -> None:
        """Before loaders and loops are restored: set the position, in the micro-batches of the present devices."""
        text, facts = datamodule_of(trainer), checkpoint_[checkpoint.KEY]
        saved = run_state.saved_identity(facts["data"], text)
        run_state.refuse_other_data(saved, run_state.identity(text, text.global_batch(trainer)))
        gpt2 = gpt2_of(trainer)
        text.start_step = facts["step"]
        gpt2.guard.skipped, gpt2.start = facts["skipped"], facts.get("start")
        micro = facts["step"] * trainer.accumulate_grad_batches
        progress = checkpoint_["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("current", "total"):
            progress[part].update(ready=micro, started=micro, processed=micro, completed=micro)
        if self._run is not None and trainer.is_global_zero:
            lifecycle.set_aside(self._run, facts["step"])
            lifecycle.truncate_metrics(self._run, facts["step"])

    def _between_steps(self, trainer: pl.Trainer) -> None:
        """Save if it is time, and leave if somebody has asked to."""
        step = trainer.global_step
        over = self.max_seconds is not None and time.monotonic() - self._started >= self.max_seconds
        stop, late = self._agreed(trainer, self._signal, int(over))
        due = self.every is not None and step % self.every == 0
        if step and (stop or late or due or self._validated[0] == step):
            self._save(trainer)
        if stop:
            self._tell(trainer, "stopped", signal.Signals(stop).name)
            if stop == getattr(signal, "SIGUSR1", None):
                if trainer.is_global_zero:
                    requeue()
                trainer.strategy.barrier()  # a rank that left first might have SLURM end this one before it has asked
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
        gpt2_of(trainer).guard.check()
        saved = checkpoint.checkpoints(run)
        step = trainer.global_step
        missing = lifecycle.space_problem(run, self._bytes(trainer, saved)) if trainer.is_global_zero else ""
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
        return round(1.1 * next((path.stat().st_size for path in saved if path.exists()), 12 * weights))

    def _tell(self, trainer: pl.Trainer, state: str, reason: str = "") -> None:
        if self._run is not None and trainer.is_global_zero:
            with contextlib.suppress(OSError):  # on a full disk the old status stays
                lifecycle.write_status(self._run, state, trainer.global_step, reason)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal == signal.SIGINT == number:
            os._exit(128 + number)  # asked twice: leave at once
        self._signal = number
        if number == signal.SIGINT:
            print("\nstopping after this step, saved (Ctrl-C again: at once)", file=sys.stderr)

    def _agreed(self, trainer: pl.Trainer, *own: int) -> list[int]:
        """Of each number the largest that any rank has, so that all act at the same step.

        On GPUs those of the step before: to know today's, the program would have to wait for the device.
        """
        if trainer.world_size == 1:
            return list(own)
        device, found = trainer.strategy.root_device, torch.tensor(own)
        if device.type != "cuda":
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
            return found.tolist()
        found = found.pin_memory().to(device, non_blocking=True)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        before, self._asked = self._asked, (found.to("cpu", non_blocking=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
        self._asked[1].record()
        if before is None:
            return [0] * len(own)
        before[1].synchronize()
        return before[0].tolist()


def seed_generators(device: torch.device, seed: int) -> None:
    """Begin the random numbers of the CPU and of the device anew.

    `torch.manual_seed` does so for every kind of device there may be, and takes long to find that there is none.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def take_settings_from_config(trainer: pl.Trainer) -> None:
    """Put the config's learning rates, betas and decays in the place of those that the checkpoint has brought."""
    optimizer = trainer.optimizers[0]
    for group, fresh in zip(optimizer.param_groups, gpt2_of(trainer).fresh_groups, strict=True):
        group.update({**fresh, "initial_lr": fresh["lr"]})
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


def set_rates(trainer: pl.Trainer) -> None:
    """The rates of the step to come, by the schedule as it is now: with a later end it is another than when saved."""
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if isinstance(schedule, LambdaLR):
            groups = zip(trainer.optimizers[0].param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(schedule.last_epoch)


def requeue() -> None:
    """Under SLURM, put the job back into the queue; it will go on with `--ckpt_path last`."""
    if job := os.environ.get("SLURM_JOB_ID"):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            print(f"WARNING: scontrol requeue {job} failed: {done.stderr.strip()}", file=sys.stderr)
