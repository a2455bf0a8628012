"""The last step of a run that `trainer.max_time` alone limits, without epochs, steps or tokens.

A schedule is a function of the step and of the last step. While the rate rises or is constant, the last step need not
be known. When the time that is left is no more than what the decay takes at the speed so far, the last step is set;
from then on it is a run with `trainer.max_steps`. The last step and the time that has passed are part of each
checkpoint, so a resumed run uses the rates that the stopped one would have used.
"""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.optim.schedules import Schedule
from gpt2kit.training.checkpointing import update_learning_rates
from gpt2kit.training.lightning_patches import set_max_steps
from gpt2kit.training.module import log_every
from gpt2kit.training.progress import StepTimer
from gpt2kit.training.run_state import gpt2_of

logger = logging.getLogger(__name__)

# The fraction of the time that is planned for steps; the rest is for the last validation and save.
_USABLE = 0.98
# A last step that would come late by more than this fraction of the steps is set again.
_TOLERANCE = 0.01


class TimeLimit(Callback):
    """Estimates at each log step how many steps still fit, and sets the last one when the schedule needs it.

    Args:
        seconds: time of the whole run, over all its starts. None: the last step is known, and this does nothing.
        schedule: the schedule of the learning rate; constant up to some step.
    """

    def __init__(self, seconds: float | None, schedule: Schedule) -> None:
        self.seconds, self._schedule = seconds, schedule
        self.end: int | None = None
        self.estimated_steps = 0  # set by RunSetup, until the speed is known
        self._earlier_seconds = 0.0  # of earlier starts
        self._timer = StepTimer(0)

    @property
    def state_key(self) -> str:
        return "TimeHorizon"  # its first name, which is in checkpoints

    def state_dict(self) -> dict[str, Any]:
        seconds = self._earlier_seconds + self._timer.seconds()
        return {"seconds": seconds, "about": self.estimated_steps, "end": self.end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_seconds, self.estimated_steps = float(state_dict["seconds"]), int(state_dict["about"])
        self.end = state_dict["end"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._timer = StepTimer(trainer.global_step)
        self._apply(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, every = trainer.global_step, log_every(trainer)
        self._timer.step(step)
        if step % every:
            return
        seconds_left = self.seconds * _USABLE - self._earlier_seconds - self._timer.seconds()
        more, end, estimated_steps = self._timer.steps_in(seconds_left), self.end, self.estimated_steps
        if more is not None:
            estimated_steps = step + more
            end = planned_end(self._schedule, end, step, max(estimated_steps, step + 1), every)
        estimated_steps, end = trainer.strategy.broadcast((estimated_steps, end))
        if end != self.end:
            logger.info(f"step {step}: the run ends at step {end}, when trainer.max_time is over")
        self.estimated_steps, self.end = estimated_steps, end
        self._apply(trainer)
        update_learning_rates(trainer)

    def _apply(self, trainer: pl.Trainer) -> None:
        if self.seconds is not None:
            gpt2_of(trainer).about_steps = self.estimated_steps
            set_max_steps(trainer, -1 if self.end is None else self.end)


def planned_end(schedule: Schedule, end: int | None, step: int, total: int, every: int) -> int | None:
    """Return the last step if it must be set now, else None.

    `end` is the last step if it is set already, and changes only if it would come late. `step` steps are done, `total`
    steps of the whole run fit into the time, and the next call is after `every` steps.
    """
    if end is not None:
        return total if total < min(end * (1 - _TOLERANCE), end - 1) else end
    constant_until = schedule.constant_until(total)
    return total if constant_until is not None and constant_until < step + every else None
