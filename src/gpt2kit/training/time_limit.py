"""The end of a run that has nothing but a time: `trainer.max_time` without epochs, steps or tokens.

A schedule is a function of the step and of the last step. While the rate rises or stays at its full height, the last
step need not be known. When no more time is left than the fall takes, at the pace so far, the end is set to an
optimizer step; from then on the run is one of `trainer.max_steps`. The end and the time that has passed are part of
each checkpoint: a resumed run takes its steps with the rates that the stopped one would have taken.
"""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from gpt2kit.optim.schedules import Schedule
from gpt2kit.training.checkpointing import set_rates
from gpt2kit.training.module import log_every
from gpt2kit.training.progress import Pace
from gpt2kit.training.run_state import gpt2_of
from gpt2kit.training.trainer import set_max_steps

_USED = 0.98
"""The share of the time that is planned with; the rest is for the last validation and save."""
_LATE = 0.01
"""An end that would come so much too late, as a share of the steps, is set anew."""


class TimeLimit(Callback):
    """Looks at each log step how many steps still fit into the time, and sets the end when the schedule needs it.

    Args:
        seconds: of the whole run, over all its starts; None: the end is known in steps, and there is nothing to do.
        schedule: of the learning rate; one that is flat up to some step.
    """

    def __init__(self, seconds: float | None, schedule: Schedule) -> None:
        self.seconds, self._schedule, self._about = seconds, schedule, 0
        self.end: int | None = None
        self._before = 0.0
        """Seconds of earlier starts."""
        self._pace = Pace(0)

    def guess(self, about: int) -> None:
        """About how many steps may fit, before the pace is known."""
        self._about = about

    @property
    def state_key(self) -> str:
        return "TimeHorizon"  # its first name, which is in checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._before + self._pace.seconds(), "about": self._about, "end": self.end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self._about = float(state_dict["seconds"]), int(state_dict["about"])
        self.end = state_dict["end"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pace = Pace(trainer.global_step)
        self._set(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, every = trainer.global_step, log_every(trainer)
        self._pace.step(step)
        if step % every:
            return
        more = self._pace.steps_in(self.seconds * _USED - self._before - self._pace.seconds())
        end = (
            self.end if more is None else planned_end(self._schedule, self.end, step, max(step + more, step + 1), every)
        )
        about = self._about if more is None else step + more
        before, (self._about, self.end) = self.end, trainer.strategy.broadcast((about, end))
        if self.end != before and trainer.is_global_zero:
            print(f"note   step {step}: the time will be over, and the run end, at step {self.end}", file=sys.stderr)
        self._set(trainer)
        set_rates(trainer)

    def _set(self, trainer: pl.Trainer) -> None:
        if self.seconds is not None:
            gpt2_of(trainer).about_steps = self._about
            set_max_steps(trainer, -1 if self.end is None else self.end)


def planned_end(schedule: Schedule, end: int | None, step: int, total: int, every: int) -> int | None:
    """The last step as far as it is to be set at `step`, given what was set before; None: it may stay open.

    `total`: steps of the whole run that fit into the time; `every`: steps until the next look.
    """
    if end is not None:
        return total if total < min(end * (1 - _LATE), end - 1) else end
    flat = schedule.constant_until(total)
    return total if flat is not None and flat < step + every else None
