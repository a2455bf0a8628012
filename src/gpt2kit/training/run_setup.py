"""Turns the limits of a run into optimizer steps, once its text is known, and records what the run is."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.model.backends import REQUESTED, Choice, choose_compile, typical_flops_per_second
from gpt2kit.model.config import flops_per_token
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import plan, run_info
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_info import RunInfo, RunInfoCallback
from gpt2kit.training.run_state import datamodule_of, gpt2_of
from gpt2kit.training.time_limit import TimeLimit
from gpt2kit.training.trainer import has_only_time, interval_steps, total_steps


@dataclass
class RunSetup(Callback):
    """Applies the limits in `setup`, when the text is there and the loops have not started.

    Args:
        options: the trainer's options as the user gave them.
        seconds: the time limit, if there is one.
        time_limit: sets the last step of a run that has nothing but a time.
        precision: what is used, and why.
        arguments: the command line.
        resumed: the checkpoint from which the run resumes.
        record: keeps the info in the run's folder.
    """

    options: Mapping[str, Any]
    seconds: float | None
    time_limit: TimeLimit
    precision: Choice
    arguments: list[str]
    resumed: Path | None
    record: RunInfoCallback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self.options["fast_dev_run"]:
            self.record.info = self.apply(trainer, datamodule_of(trainer), gpt2_of(trainer))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.record.info:
            return
        info = self.record.info
        info["start"]["begun"] = gpt2_of(trainer).start_notes
        if self.resumed and (run := lifecycle.run_of(self.resumed)):
            with run_folder.refuse_damaged(run / run_folder.START):
                report_other_choices(run_folder.read_starts(run), info["start"])
        plan.print_lines(plan.summary_lines(info), sys.stderr)

    def apply(self, trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> RunInfo:
        """Set the last step, the validation interval and what is compiled; return the info of the run."""
        gpt2.take_vocabulary(data.vocab_size, data.document_start)
        order = data.order(data.global_batch(trainer))
        tokens_per_step = order.global_batch * data.block_size
        steps = -1
        if not has_only_time(self.options):
            epochs, steps_limit, tokens = (self.options[name] for name in ("max_epochs", "max_steps", "max_tokens"))
            steps = total_steps(epochs, steps_limit, tokens, order.steps_per_epoch, tokens_per_step)
        set_max_steps(trainer, steps)
        validation_interval = interval_steps(self.options["val_check_interval"], order.steps_per_epoch)
        trainer.val_check_interval = validation_interval * trainer.accumulate_grad_batches
        device, precision = trainer.strategy.root_device, str(trainer.precision)
        # An upper bound where parts are frozen: the network is not built yet.
        flops_per_step = flops_per_token(gpt2.shape) * tokens_per_step / trainer.world_size
        flops = flops_per_step * steps if steps > 0 else math.inf
        compiled = choose_compile(gpt2.wants_compile, device, precision, flops, self.seconds)
        gpt2.compiled = compiled.value  # type: ignore[assignment]
        if steps < 0 and self.seconds:
            steps_in_time = self.seconds * typical_flops_per_second(device, precision) / flops_per_step
            self.time_limit.estimated_steps = max(round(steps_in_time), 1)
        choices = {"precision": self.precision, "attention": gpt2.choose_attention(device), "compile": compiled}
        return {
            "text": run_info.describe_text(data),
            "model": run_info.describe_model(gpt2),
            "run": run_info.describe_run(trainer, data, gpt2, validation_interval),
            "start": run_info.describe_start(trainer, choices, self.arguments, self.resumed) | {"begun": []},
            "folder": trainer.log_dir,  # a collective call
        }


def report_other_choices(before: list[dict[str, Any]], now: RunInfo) -> None:
    """Print what `auto`, or another machine, has changed since the last start."""
    last = before[-1].get("start", {}) if before else {}
    for name, (old, _) in last.get("chosen", {}).items():
        value, reason = now["chosen"].get(name, (old, REQUESTED))
        if value != old and reason != REQUESTED:  # what the user asked for is reported with the other settings
            line = f"resume: {name} was {old}, now {value} ({reason}); the same results up to rounding"
            print(line, file=sys.stderr)
