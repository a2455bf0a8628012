"""What is done about a gradient with NaN or Inf: leave the update out, or stop."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit.errors import DivergedError


class Guard:
    """Looks at the gradient's norm before each update.

    On a GPU a look makes the program wait for the device, so there it only remembers the norms, unless updates may be
    left out, and looks when the program waits anyway: at log steps, validations, and before anything is saved. What
    was updated in between is lost then, but nothing of it is ever saved.

    Args:
        allowed: updates that may be left out before the run stops.
        scaler_allowed: under 16-mixed, updates that the loss scaler may leave out on end.
    """

    def __init__(self, allowed: int = 0, scaler_allowed: int = 50) -> None:
        self.allowed, self.scaler_allowed = allowed, scaler_allowed
        self.skipped = 0
        """Updates left out so far; part of the run's state."""
        self._by_scaler = 0
        self._unseen: list[tuple[int, Tensor]] = []

    def before_update(self, optimizer: Optimizer, norm: Tensor, step: int, scaled: bool) -> None:
        """`step`: of the update, from 1; `scaled`: whether a loss scaler watches, too."""
        self._unseen.append((step, norm))
        if scaled:
            self._watch_scaler()
        elif self.allowed:
            self._leave_out(optimizer)
        elif norm.device.type != "cuda":
            self.look()

    def look(self) -> None:
        """Stop if a norm that was not looked at yet is NaN or Inf."""
        unseen, self._unseen = self._unseen, []
        if not unseen or torch.isfinite(torch.stack([norm for _, norm in unseen])).all():
            return
        step, norm = next((step, norm) for step, norm in unseen if not torch.isfinite(norm))
        raise _diverged(step, f"the gradient is {norm.item()}")

    def _leave_out(self, optimizer: Optimizer) -> None:
        step, norm = self._unseen[-1]
        if torch.isfinite(norm) or self.skipped == self.allowed:
            self.look()
            return
        self._unseen.clear()
        self.skipped += 1
        print(f"step {step}: the gradient is {norm.item()}; update {self.skipped} left out", file=sys.stderr)
        optimizer.zero_grad(set_to_none=True)  # parameters without a gradient stay as they are

    def _watch_scaler(self) -> None:
        """The scaler skips such updates by itself, and lowers its scale."""
        step, norm = self._unseen.pop()
        self._by_scaler = 0 if torch.isfinite(norm) else self._by_scaler + 1
        if self._by_scaler > self.scaler_allowed:
            raise _diverged(step, f"the gradient overflowed fp16 in {self._by_scaler} steps on end")


def _diverged(step: int, what: str) -> DivergedError:
    return DivergedError(
        f"step {step}: {what}; nothing of it was saved. Lower the learning rate, clip (trainer.gradient_clip_val 1.0), "
        "warm up longer, or allow some such steps (model.skip_nonfinite)"
    )


def unfuse(optimizer: Optimizer) -> None:
    """Make a fused optimizer leave the unscaling of fp16 gradients to Lightning, which must clip them unscaled."""
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
