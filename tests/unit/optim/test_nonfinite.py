"""What is done about a gradient with NaN or Inf."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gpt2kit.errors import DivergedError
from gpt2kit.optim.nonfinite import NonFiniteGuard

GOOD, BAD = torch.tensor(1.0), torch.tensor(torch.inf)


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter])


class OnGPU(Tensor):
    """A number that says that it lies on a GPU."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


def test_it_stops_before_the_update(optimizer: torch.optim.Optimizer) -> None:
    guard = NonFiniteGuard()
    guard.before_update(optimizer, GOOD, 1, scaled=False)
    with pytest.raises(DivergedError, match="step 2: the gradient norm is inf, so training stopped"):
        guard.before_update(optimizer, BAD, 2, scaled=False)


def test_so_many_updates_are_left_out_and_no_more(
    optimizer: torch.optim.Optimizer, capsys: pytest.CaptureFixture[str]
) -> None:
    guard = NonFiniteGuard(max_nonfinite_steps=1)
    guard.before_update(optimizer, BAD, 1, scaled=False)
    assert guard.skipped == 1 and optimizer.param_groups[0]["params"][0].grad is None
    assert "update skipped (1 of at most 1)" in capsys.readouterr().err
    guard.before_update(optimizer, GOOD, 2, scaled=False)
    with pytest.raises(DivergedError, match="step 3"):
        guard.before_update(optimizer, BAD, 3, scaled=False)


def test_under_fp16_only_many_overflows_on_end_stop(optimizer: torch.optim.Optimizer) -> None:
    """The loss scaler skips such steps by itself; here is only the count of those on end."""
    guard = NonFiniteGuard(max_grad_scaler_skips=2)
    for norm in (BAD, BAD, GOOD, BAD, BAD):
        guard.before_update(optimizer, norm, 7, scaled=True)
    with pytest.raises(DivergedError, match="step 8: the gradient overflowed fp16 in 3 consecutive steps"):
        guard.before_update(optimizer, BAD, 8, scaled=True)
    assert guard.skipped == 0


def test_on_a_gpu_it_looks_only_when_asked_and_names_the_first_bad_step(optimizer: torch.optim.Optimizer) -> None:
    """A look at each step would make the program wait for the device."""
    guard = NonFiniteGuard()
    for step, norm in enumerate((GOOD, BAD, BAD), start=1):
        guard.before_update(optimizer, norm.as_subclass(OnGPU), step, scaled=False)
    with pytest.raises(DivergedError, match="step 2"):
        guard.check()
    guard.check()  # looked at once
