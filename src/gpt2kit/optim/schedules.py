"""Learning-rate schedules: pure functions of the optimizer step and of the run's length."""

from __future__ import annotations

import math
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from gpt2kit.errors import UserError, refuse
from gpt2kit.ranges import range_problems


class Schedule:
    """The factor on the learning rate at each step, after a linear warmup. A subclass implements `after`.

    Args:
        warmup: Optimizer steps of linear warmup (a whole number), or a fraction of all steps (such as 0.02).
    """

    def __init__(self, warmup: int | float = 0.02) -> None:
        if not 0 <= warmup <= (1 if isinstance(warmup, float) else 1 << 53):
            raise UserError(
                f"model.schedule.warmup {warmup}: neither a number of steps nor a fraction of them. Give a whole "
                "number, or a fraction from 0.0 to 1.0"
            )
        if type(self).after is Schedule.after and type(self).__call__ is Schedule.__call__:
            raise UserError(f"model.schedule {type(self).__name__}: has no method `after`. Use a class that has one")
        self.warmup = warmup

    def __call__(self, step: int, total: int) -> float:
        """Return the factor for optimizer step `step` of `total`, counted from 0."""
        warmup = self.warmup_steps(total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after(min((step - warmup) / max(total - warmup, 1), 1.0))

    def warmup_steps(self, total: int) -> int:
        """Return the optimizer steps of the warmup."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)

    def after(self, progress: float) -> float:
        """Return the factor after the warmup; `progress` goes from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} has no `after`")

    def constant_until(self, total: int) -> int | None:
        """Return the step until which the factor stays 1 after the warmup, for any `total`; None if it never does."""
        return None


class Constant(Schedule):
    """The full learning rate throughout."""

    def after(self, progress: float) -> float:
        return 1.0

    def constant_until(self, total: int) -> int | None:
        return total


class Linear(Schedule):
    """Linear decay.

    Args:
        warmup: Optimizer steps of linear warmup (a whole number), or a fraction of all steps (such as 0.02).
        min_lr_ratio: The factor at the last step: the lowest learning rate, as a fraction of the highest.
    """

    def __init__(self, warmup: int | float = 0.02, min_lr_ratio: float = 0.0) -> None:
        super().__init__(warmup)
        refuse(range_problems({"model.schedule.min_lr_ratio": min_lr_ratio}))
        self.min_lr_ratio = min_lr_ratio

    def after(self, progress: float) -> float:
        return 1 - (1 - self.min_lr_ratio) * progress


class Cosine(Linear):
    """Cosine decay."""

    def after(self, progress: float) -> float:
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


class WarmupStableDecay(Linear):
    """The full learning rate, then linear decay over the last part of the run.

    Args:
        warmup: Optimizer steps of linear warmup (a whole number), or a fraction of all steps (such as 0.03).
        min_lr_ratio: The factor at the last step: the lowest learning rate, as a fraction of the highest.
        decay_ratio: The fraction of the steps after the warmup over which the rate decays.
    """

    def __init__(self, warmup: int | float = 0.03, min_lr_ratio: float = 0.0, decay_ratio: float = 0.6) -> None:
        super().__init__(warmup, min_lr_ratio)
        refuse(range_problems({"model.schedule.decay_ratio": decay_ratio}))
        self.decay_ratio = decay_ratio

    def after(self, progress: float) -> float:
        return super().after(max(progress - (1 - self.decay_ratio), 0.0) / max(self.decay_ratio, 1e-9))

    def constant_until(self, total: int) -> int | None:
        warmup = self.warmup_steps(total)
        return warmup + int((1 - self.decay_ratio) * (total - warmup))


class LRSchedule(LambdaLR):
    """Applies a schedule. It takes only numbers from a checkpoint: torch sets whatever the file names, even methods."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        numbers = {name: state_dict[name] for name in ("base_lrs", "last_epoch", "_step_count", "_last_lr")}
        super().load_state_dict({**numbers, "lr_lambdas": []})
