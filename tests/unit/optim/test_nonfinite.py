"""The policy for gradients with NaN or Inf."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gpt2kit.errors import DivergedError
from gpt2kit.optim.adamw import AdamW
from gpt2kit.optim.nonfinite import NonFiniteGuard, unfuse

GOOD, BAD = torch.tensor(1.0), torch.tensor(torch.inf)


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter])


class OnGPU(Tensor):
    """A tensor that pretends to be on a GPU."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


def test_a_bad_gradient_stops_training_before_the_update(optimizer: torch.optim.Optimizer) -> None:
    guard = NonFiniteGuard()
    guard.before_update(optimizer, GOOD, 1, scaled=False)
    with pytest.raises(DivergedError, match="step 2: the gradient norm is inf, so training stopped"):
        guard.before_update(optimizer, BAD, 2, scaled=False)


def test_a_limited_number_of_updates_is_skipped(
    optimizer: torch.optim.Optimizer, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = NonFiniteGuard(max_nonfinite_steps=1)
    guard.before_update(optimizer, BAD, 1, scaled=False)
    assert guard.skipped == 1 and optimizer.param_groups[0]["params"][0].grad is None
    assert "update skipped (1 of at most 1)" in capsys.readouterr().err
    guard.before_update(optimizer, GOOD, 2, scaled=False)
    with pytest.raises(DivergedError, match="step 3"):
        guard.before_update(optimizer, BAD, 3, scaled=False)


def test_only_consecutive_fp16_overflows_stop_training(optimizer: torch.optim.Optimizer) -> None:
    guard = NonFiniteGuard(max_grad_scaler_skips=2)
    for norm in (BAD, BAD, GOOD, BAD, BAD):
        guard.before_update(optimizer, norm, 7, scaled=True)
    with pytest.raises(DivergedError, match="step 8: the gradient overflowed fp16 in 3 consecutive steps"):
        guard.before_update(optimizer, BAD, 8, scaled=True)
    assert guard.skipped == 0


def test_norms_on_a_gpu_are_collected_until_the_next_check(optimizer: torch.optim.Optimizer) -> None:
    """Checking at each step would make the program wait for the device."""
    guard = NonFiniteGuard()
    for step, norm in enumerate((GOOD, BAD, BAD), start=1):
        guard.before_update(optimizer, norm.as_subclass(OnGPU), step, scaled=False)
    with pytest.raises(DivergedError, match="step 2"):
        guard.check()
    guard.check()  # each norm is checked once


def test_an_unfused_optimizer_still_updates() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = AdamW([parameter])
    unfuse(optimizer)
    optimizer.step()
    assert (parameter != 1).all()
