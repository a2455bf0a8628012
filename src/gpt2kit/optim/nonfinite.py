"""The policy for gradients with NaN or Inf: skip the update, or stop."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit.errors import DivergedError

logger = logging.getLogger(__name__)


class NonFiniteGuard:
    """Checks the gradient norm before each update.

    On a GPU, a check makes the program wait for the device. Unless updates may be skipped, norms are only collected on
    a GPU, and checked when the program waits anyway: at log steps, validations, and before anything is saved. So a bad
    update may be applied, but it is never saved.

    Args:
        max_nonfinite_steps: maximum number of updates to skip in the whole run before it stops.
        max_grad_scaler_skips: maximum number of consecutive updates that the loss scaler may skip under 16-mixed.
    """

    def __init__(self, max_nonfinite_steps: int = 0, max_grad_scaler_skips: int = 50) -> None:
        self.max_nonfinite_steps, self.max_grad_scaler_skips = max_nonfinite_steps, max_grad_scaler_skips
        self.skipped = 0  # updates skipped so far; part of the run's state
        self._scaler_skips = 0
        self._unchecked: list[tuple[int, Tensor]] = []  # step and norm

    def before_update(self, optimizer: Optimizer, norm: Tensor, step: int, scaled: bool) -> None:
        """Check the norm, or collect it. `step` counts from 1; if `scaled`, a loss scaler skips bad updates itself."""
        if scaled:
            self._scaler_skips = 0 if torch.isfinite(norm) else self._scaler_skips + 1
            if self._scaler_skips > self.max_grad_scaler_skips:
                raise _diverged(step, f"the gradient overflowed fp16 in {self._scaler_skips} consecutive steps")
        elif self.skipped < self.max_nonfinite_steps and not torch.isfinite(norm):
            self.skipped += 1
            count = f"{self.skipped} of at most {self.max_nonfinite_steps}"
            logger.warning(f"step {step}: the gradient norm is {norm.item()}: update skipped ({count})")
            optimizer.zero_grad(set_to_none=True)  # an optimizer ignores parameters without a gradient
        else:
            self._unchecked.append((step, norm))
            if self.max_nonfinite_steps or norm.device.type != "cuda":
                self.check()

    def check(self) -> None:
        """Raise if a norm that has not been checked yet is NaN or Inf."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked or torch.isfinite(torch.stack([norm for _, norm in unchecked])).all():
            return
        step, norm = next((step, norm) for step, norm in unchecked if not torch.isfinite(norm))
        raise _diverged(step, f"the gradient norm is {norm.item()}")


def _diverged(step: int, reason: str) -> DivergedError:
    return DivergedError(
        f"step {step}: {reason}, so training stopped and this update was not saved. Lower the learning rate, warm up "
        "longer, or skip some such updates (model.max_nonfinite_steps)"
    )


def unfuse(optimizer: Optimizer) -> None:
    """Make a fused optimizer leave the unscaling of fp16 gradients to Lightning, which must clip them unscaled."""
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
