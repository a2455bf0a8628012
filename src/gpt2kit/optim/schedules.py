"""Learning-rate schedules: a factor for each optimizer step, a pure function of the step and of the run's length."""

from __future__ import annotations

import math

from gpt2kit.errors import UserError


class Schedule:
    """The learning rate's factor at each step, after a linear warmup. Subclass it and write `after`.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
    """

    def __init__(self, warmup: int | float = 0.02) -> None:
        if warmup < 0 or (isinstance(warmup, float) and warmup > 1):
            raise UserError(
                f"model.schedule warmup {warmup}: must be optimizer steps, such as 100, or a share of them all, "
                "from 0.0 to 1.0"
            )
        self.warmup = warmup

    def __call__(self, step: int, total: int) -> float:
        """Factor for optimizer step `step` of `total`, counted from 0."""
        rise = self.rise(total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return self.after(min((step - rise) / max(total - rise, 1), 1.0))

    def rise(self, total: int) -> int:
        """Optimizer steps of the warmup."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)

    def after(self, progress: float) -> float:
        """Factor after the warmup; `progress` goes from 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__} has no `after`")

    def flat(self, total: int) -> int | None:
        """The step up to which, after the warmup, the factor is 1 whatever `total` is; None: there is none."""
        return None


class Constant(Schedule):
    """Stays at the full rate."""

    def after(self, progress: float) -> float:
        return 1.0

    def flat(self, total: int) -> int | None:
        return total


class Linear(Schedule):
    """Falls in a straight line.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
        final: the factor at the last step.
    """

    def __init__(self, warmup: int | float = 0.02, final: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = final

    def after(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


class Cosine(Linear):
    """Falls along half a cosine: slowly, fast, slowly."""

    def after(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class WarmupStableDecay(Linear):
    """Stays at the full rate, then falls in a straight line over the last part of the run.

    Args:
        warmup: optimizer steps of linear rise (a whole number), or a share of all steps (a fraction such as 0.02).
        final: the factor at the last step.
        decay: the share of the steps after the warmup over which the rate falls.
    """

    def __init__(self, warmup: int | float = 0.02, final: float = 0.0, decay: float = 0.4) -> None:
        super().__init__(warmup, final)
        if not 0 <= decay <= 1:
            raise UserError(f"model.schedule decay {decay}: must be a share of the steps, from 0 to 1")
        self.decay = decay

    def after(self, progress: float) -> float:
        return super().after(max(progress - (1 - self.decay), 0.0) / max(self.decay, 1e-9))

    def flat(self, total: int) -> int | None:
        return (rise := self.rise(total)) + int((1 - self.decay) * (total - rise))
