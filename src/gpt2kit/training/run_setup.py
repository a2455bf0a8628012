"""Converts the limits of a run to optimizer steps: epochs, steps and tokens at its start, a time while it trains."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.mixed_order import MixedOrder
from gpt2kit.errors import UserError
from gpt2kit.model.backends import REQUESTED, Choice, choose_compile, typical_flops_per_second
from gpt2kit.model.config import flops_per_token
from gpt2kit.optim.schedules import Schedule
from gpt2kit.optim.trial import tiny_groups
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import auto, distributed, estimate, run_info, run_summary
from gpt2kit.training.checkpointing import update_learning_rates
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.loggers import log_every
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import StepTimer
from gpt2kit.training.run_info import RunInfo
from gpt2kit.training.run_state import datamodule_of, gpt2_of

logger = logging.getLogger(__name__)

LIMITS = ("max_epochs", "max_steps", "max_tokens")
# The fraction of a time limit that is planned for steps; the rest is for the last validation and save.
_USABLE = 0.98
# The last step is changed if it would come late by more than this fraction of the steps.
_TOLERANCE = 0.01


def total_steps(
    max_epochs: int | None, max_steps: int | None, max_tokens: int | None, steps_per_epoch: int, tokens_per_step: int
) -> int:
    """Return the number of optimizer steps: the limit that is reached first; without any, one epoch."""
    steps = [
        max_epochs * steps_per_epoch if max_epochs is not None else None,
        max_steps,
        -(-max_tokens // tokens_per_step) if max_tokens is not None else None,
    ]
    return min((limit for limit in steps if limit is not None), default=steps_per_epoch)


def interval_steps(interval: int | float, steps_per_epoch: int) -> int:
    """Return the optimizer steps between validations: a whole number means steps, a fraction (1.0) epochs."""
    return interval if isinstance(interval, int) else max(round(interval * steps_per_epoch), 1)


def limits(trainer: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return the values of LIMITS; None for those that are not set, or chosen later (`auto`)."""
    values = (trainer[name] for name in LIMITS)
    epochs, steps, tokens = (None if value in (None, "auto") or value < 0 else value for value in values)
    return epochs, steps, tokens


def has_only_time(trainer: Mapping[str, Any]) -> bool:
    """Return whether `max_time` is the only limit."""
    is_limited = any(limit is not None for limit in limits(trainer))  # 0 is a limit
    return bool(trainer["max_time"]) and not trainer["fast_dev_run"] and not is_limited


def refuse_open_end(schedule: Schedule) -> None:
    """Raise UserError for a schedule that needs a number of steps, not a time alone."""
    if schedule.constant_until(1000) is None:
        raise UserError(
            f"trainer.max_time alone: the learning rate of model.schedule {type(schedule).__name__} depends on the "
            "last step from the start. Add trainer.max_epochs or max_steps, or use WarmupStableDecay"
        )


class TimeLimit(Callback):
    """Sets the last step of a run that `trainer.max_time` alone limits, as soon as the schedule needs it.

    The learning rate is a function of the step and of the last step, never of the clock. While it rises or is constant,
    the last step need not be known. It is set when the remaining time is no longer than the decay takes at the current
    speed; from then on the run behaves like one with `trainer.max_steps`. The last step and the time so far are part of
    each checkpoint, so a resumed run uses the rates that the stopped one would have used.

    Args:
        seconds: time of the whole run, over all its starts. None: the last step is known, so nothing is done.
        schedule: the schedule of the learning rate; constant up to some step.
        begins_stage: whether another stage begins, with a time of its own.
    """

    def __init__(self, seconds: float | None, schedule: Schedule, begins_stage: bool = False) -> None:
        self.seconds, self._schedule, self.begins_stage = seconds, schedule, begins_stage
        self.end: int | None = None
        self.first_step = 0  # of the stage; set by RunSetup
        self.estimated_steps = 0  # set by RunSetup, until the speed is known
        self._earlier_seconds = 0.0  # of earlier starts
        self._timer = StepTimer(0)

    @property
    def state_key(self) -> str:
        return "TimeHorizon"  # the name in checkpoints

    def state_dict(self) -> dict[str, Any]:
        seconds = self._earlier_seconds + self._timer.seconds()
        return {"seconds": seconds, "about": self.estimated_steps, "end": self.end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.begins_stage:
            return
        self._earlier_seconds, self.estimated_steps = float(state_dict["seconds"]), int(state_dict["about"])
        self.end = state_dict["end"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._timer = StepTimer(trainer.global_step)
        self._apply(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.seconds is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, every = trainer.global_step, log_every(trainer)
        self._timer.step(step)
        if step % every:
            return
        seconds_left = self.seconds * _USABLE - self._earlier_seconds - self._timer.seconds()
        more, end, total = self._timer.steps_in(seconds_left), self.end, self.estimated_steps
        if more is not None:
            total = step + more
            end = planned_end(self._schedule, end, step, max(total, step + 1), every, self.first_step)
        self.estimated_steps, end = trainer.strategy.broadcast((total, end))
        if end != self.end:
            logger.info(f"step {step}: the run ends at step {end}, when trainer.max_time is over")
        self.end = end
        self._apply(trainer)
        update_learning_rates(trainer)

    def _apply(self, trainer: pl.Trainer) -> None:
        if self.seconds is not None:
            gpt2_of(trainer).estimated_steps = self.estimated_steps
            set_max_steps(trainer, -1 if self.end is None else self.end)


def planned_end(
    schedule: Schedule, end: int | None, step: int, total: int, every: int, first_step: int = 0
) -> int | None:
    """Return the last step if it must be set now, else None.

    `end` is the last step if it is set already, and changes only if it would come late. `step` steps are done, `total`
    steps of the whole run fit into the time, and the next call is after `every` steps. The schedule begins with
    `first_step`.
    """
    if end is not None:
        return total if total < min(end * (1 - _TOLERANCE), end - 1) else end
    constant_until = schedule.constant_until(total - first_step)
    return total if constant_until is not None and first_step + constant_until < step + every else None


@dataclass
class RunSetup(Callback):
    """Applies the limits in `setup`, when the text is known and the loops have not started; records each start."""

    options: dict[str, Any]  # the user's options of the trainer
    seconds: float | None  # the time limit
    time_limit: TimeLimit
    precision: Choice
    arguments: list[str]  # the command line
    resumed: Path | None  # the checkpoint from which the run resumes
    settings: dict[str, Any]  # the resolved config as plain types
    info: RunInfo | None = field(default=None, init=False)
    chosen: dict[str, Any] = field(default_factory=dict, init=False)  # the values that replace `auto`
    passes: float = field(default=0.0, init=False)  # estimated if only the time is limited

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.choose(trainer, datamodule_of(trainer), gpt2_of(trainer))
        if not self.options["fast_dev_run"]:
            self.info = self.apply(trainer, datamodule_of(trainer), gpt2_of(trainer))
        distributed.refuse_disagreement(trainer, self.settings, self.resumed)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or self.info is None:
            return
        self.info["start"]["begun"] = gpt2_of(trainer).start_notes
        run = lifecycle.run_of(self.resumed) if self.resumed else None
        if run is not None and not self.time_limit.begins_stage:
            with run_folder.refuse_damaged(run / run_folder.START):
                report_other_choices(run_folder.read_starts(run), self.info["start"])
        run_summary.print_lines(run_summary.summary_lines(self.info), sys.stderr)
        run_info.record_start(self.info, self.settings, trainer.loggers)

    def choose(self, trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> None:
        """Replace `auto` with numbers: in the model, in the limits, and in the settings that are saved."""
        gpt2.take_vocabulary(data.vocab_size, data.document_start)
        order = data.order(data.global_batch(trainer))
        tokens, tokens_per_step = data.store("train").tokens, order.global_batch * data.block_size
        if isinstance(order, MixedOrder):
            tokens = order.blocks * order.stride  # of an epoch; some texts may be read in part
        flops = passes = None
        if has_only_time(self.options):
            speed = typical_flops_per_second(trainer.strategy.root_device, str(trainer.precision))
            flops = (self.seconds or 0) * speed * trainer.world_size
        elif any(limit is not None for limit in limits(self.options)) or self.options["max_epochs"] != "auto":
            steps = total_steps(*limits(self.options), order.steps_per_epoch, tokens_per_step)
            passes = steps * tokens_per_step / tokens
        sizes = auto.choose(tokens, gpt2.shape, passes, flops, is_pretrained=gpt2.init_from is not None)
        gpt2.take_sizes(sizes)
        estimate.refuse_too_large(trainer, gpt2, data.batch_size * data.block_size)
        if gpt2.init_from is not None and trainer.ckpt_path is None:
            gpt2.build_with_weights(data)
            sizes = trainer.strategy.broadcast(gpt2.sizes)  # ranks may round differently
            gpt2.take_sizes(sizes)
        epochs = round(sizes.passes) if flops is None and passes is None else None
        options = sizes.options(epochs, type(gpt2.make_optimizer(tiny_groups())))
        settings = lifecycle.flatten(self.settings)
        self.chosen = {name: value for name, value in options.items() if auto.is_automatic(name, settings.get(name))}
        if gpt2.initial_loss and not gpt2.lora_r and "model.optimizer.init_args.lr" in self.chosen:
            gpt2.start_notes.append(f"learning rates x {sizes.rate_factor:.2g}: {gpt2.initial_loss.describe()}")
        self.passes = sizes.passes
        if self.options["max_epochs"] == "auto":
            self.options["max_epochs"] = options["trainer.max_epochs"]
        self.chosen |= {f"data.{name}": value for name, value in data.resolved().items()}
        for name, value in self.chosen.items():
            auto.set_option(self.settings, name, value)

    def apply(self, trainer: pl.Trainer, data: TextDataModule, gpt2: GPT2Module) -> RunInfo:
        """Set the last step, the validation interval and what is compiled; return the info of the run."""
        order = data.order(data.global_batch(trainer))
        tokens_per_step = order.global_batch * data.block_size
        steps = -1  # not known yet
        if not has_only_time(self.options):
            steps = total_steps(*limits(self.options), order.steps_per_epoch, tokens_per_step)
        gpt2.first_step = self.time_limit.first_step = data.first_step
        set_max_steps(trainer, steps if steps < 0 else data.first_step + steps)
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
            self.time_limit.estimated_steps = data.first_step + max(round(steps_in_time), 1)
        choices = {"precision": self.precision, "attention": gpt2.choose_attention(device), "compile": compiled}
        return {
            "text": run_info.describe_text(data),
            "model": run_info.describe_model(gpt2),
            "run": run_info.describe_run(trainer, data, gpt2, validation_interval),
            "auto": {"options": self.chosen, "passes": self.passes},
            "start": run_info.describe_start(trainer, choices, self.arguments, self.resumed) | {"begun": []},
            "folder": trainer.log_dir,  # a collective call
        }


def report_other_choices(starts: list[RunInfo], start: RunInfo) -> None:
    """Report the choices of `auto` that differ from the last start, for example on another machine."""
    last = starts[-1].get("start", {}) if starts else {}
    for name, (old, _) in last.get("chosen", {}).items():
        value, reason = start["chosen"].get(name, (old, REQUESTED))
        if value != old and reason != REQUESTED:  # requested values are reported with the other settings
            logger.info(f"resume: {name} was {old}, now {value} ({reason}); results are equal up to rounding")
